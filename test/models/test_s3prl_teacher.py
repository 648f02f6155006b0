"""Experiments of ESPnet over upstreams of s3prl become teachers with the same outputs."""

import numpy as np
import pytest
import torch
import yaml
from make_s3prl_golden import GOLDEN, LENGTHS, audio_of, lengths_of
from s3prl_experiments import CASES, LAYERS, PREFIX, upstream_shapes, write_s3prl_experiment

from distill.bin.adopt_teacher import main
from distill.checkpoints import s3prl
from distill.checkpoints.load import load_network, network_shape


def adopted(folder, case: str):
    """The teacher of a case, and its configuration."""
    write_s3prl_experiment(folder / "asr", case)
    main(["--model", str(folder / "asr/valid.acc.ave.pth"), "--output", str(folder / "exp")])
    network, _, config = load_network(folder / "exp")
    return network, config


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_puts_out_what_espnet_does_over_s3prl(tmp_path, golden, case):
    """Logits and layers that ESPnet and s3prl themselves computed, see make_s3prl_golden.py."""
    network, _ = adopted(tmp_path, case)
    ms = CASES[case].ms
    assert network_shape(tmp_path / "exp") == (3, 16, ms, ms) and network.frame_ms == network.encoder_frame_ms == ms
    for samples in lengths_of(CASES[case]):
        output = network(audio_of(samples), torch.tensor([samples]))
        expected = torch.from_numpy(golden[f"{case}/{samples}/logits"])[None]
        assert output.lengths.tolist() == output.hidden_lengths.tolist() == [network.frames(samples)]
        torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=1e-4)
        assert expected.std() > 0.3
        if samples == next(iter(LENGTHS)):
            hidden = torch.from_numpy(golden[f"{case}/{samples}/hidden"])
            torch.testing.assert_close(torch.cat(output.hidden), hidden, atol=1e-4, rtol=1e-4)
    for samples in (1, 399, 980):  # s3prl fails at the last, and ESPnet's convolutions at all
        output = network(torch.ones(1, samples), torch.tensor([samples]))
        assert output.logits.shape[1] == int(output.lengths) == network.frames(samples) >= 1
        assert output.logits.isfinite().all()


@torch.no_grad()
def test_padding_changes_no_features(tmp_path):
    """With layer norm in the CNN an utterance has the same features in a batch, its last frames repeated."""
    front_end = adopted(tmp_path, "wavlm large")[0].encoder.frontend
    lengths = torch.tensor([9000, 16000, 300])
    audio = torch.zeros(3, 20000)
    for row, samples in enumerate(lengths.tolist()):
        audio[row, :samples] = torch.randn(samples, generator=torch.Generator().manual_seed(row))
    together, frames = front_end(audio, lengths)
    assert frames.tolist() == [29, 50, 1] and together.shape[1] == 50
    for row, samples in enumerate(lengths.tolist()):
        alone, _ = front_end(audio[row : row + 1, :samples], lengths[row : row + 1])
        torch.testing.assert_close(together[row, : frames[row]], alone[0], atol=1e-4, rtol=1e-4)
    assert together[0, 28].equal(together[0, 26]) and not together[0, 26].equal(together[0, 25])


TRUE = {
    "wavlm_large": ("wavlm", True, 1024, 4096, 24, 16),
    "wavlm_base": ("wavlm", False, 768, 3072, 12, 12),
    "hubert_large_ll60k": ("hubert", True, 1024, 4096, 24, 16),
    "hubert": ("hubert", False, 768, 3072, 12, 12),
    "mhubert_base_vp_en_es_fr_it3": ("hubert", False, 768, 3072, 12, 12),
    "wav2vec2_large_960": ("wav2vec2", False, 1024, 4096, 24, 16),
    "wav2vec2_large_ll60k": ("wav2vec2", True, 1024, 4096, 24, 16),
    "xlsr_53": ("wav2vec2", True, 1024, 4096, 24, 16),
    "xls_r_1b": ("wav2vec2", True, 1280, 5120, 48, 16),
}


@pytest.mark.parametrize("name", TRUE)
def test_true_sizes(name):
    """The published layouts, without memory: every tensor has its place, and nothing else is there."""
    from distill.models.teachers.espnet_s3prl import S3prlFrontEnd

    kind, layer_norm, width, inner, layers, heads = TRUE[name]
    case = CASES["xls-r"]._replace(upstream=name.removeprefix("m"), layer_norm=layer_norm)
    shapes = upstream_shapes(case, width, inner, layers)
    weights = {f"{PREFIX}{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
    weights["frontend.featurizer.weights"] = torch.empty(layers + 1, device="meta")
    options = {"frontend_conf": {"upstream": name}, "multilayer_feature": True}
    arguments = s3prl.front_end(options, weights, "config.yaml")
    conf = arguments["upstream"]
    assert (conf["model_type"], conf["num_attention_heads"], conf["do_stable_layer_norm"]) == (kind, heads, layer_norm)
    assert arguments["normalize"] is layer_norm and "layer" not in arguments
    with torch.device("meta"):
        network = S3prlFrontEnd(**arguments)
    found = {s3prl.new_name(key, arguments): tuple(value.shape) for key, value in weights.items()}
    found.pop(None)
    assert found == {f"frontend.{key}": tuple(value.shape) for key, value in network.state_dict().items()}


def refused(folder, capsys) -> str:
    """The line with which the experiment of a folder is refused; nothing is written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as failure:
        main(["--model", str(folder / "asr/valid.acc.ave.pth"), "--output", str(folder / "exp")])
    message = capsys.readouterr().err
    assert failure.value.code == 2 and message.count("\n") == 1 and not (folder / "exp").exists()
    assert len(message) - message.count(str(folder)) * len(str(folder)) < 300, message
    return message


def test_what_is_no_such_experiment_is_refused_in_one_line(tmp_path, capsys):
    write_s3prl_experiment(tmp_path / "asr", "wavlm large")
    path, checkpoint = tmp_path / "asr/config.yaml", tmp_path / "asr/valid.acc.ave.pth"
    config = yaml.safe_load(path.read_text())
    front = config["frontend_conf"]

    def options(**changes) -> dict:
        return {"frontend_conf": {**front, "frontend_conf": {"upstream": "wavlm_large", **changes}}}

    for changes, reason in (
        (options(upstream="data2vec"), "upstream 'data2vec'"),
        (options(upstream="wav2vec2_conformer_rope"), "upstream 'wav2vec2_conformer_rope'"),
        (options(upstream=None), "upstream None"),
        (options(upstream={"a" * 400: 1}), "upstream {"),
        (options(upstream="hubert_base"), "is unknown"),
        (options(normalize=True), "frontend_conf.normalize"),
        (options(tile_factor=2), "tile_factor"),
        (options(extra_conf={"feature_selection": "fairseq_layers"}), "extra_conf"),
        ({"frontend_conf": {**front, "frontend_conf": "x"}}, "upstream None"),
        ({"frontend_conf": {**front, "layer": 4}}, "more than the 3"),
        ({"frontend_conf": {**front, "layer": -9}}, "layer"),
        ({"frontend_conf": {**front, "layer": "x"}}, "layer"),
        ({"frontend_conf": {**front, "multilayer_feature": 10**30}}, "multilayer_feature"),
        ({"frontend_conf": {**front, "fs": 8000}}, "fs"),
        ({"frontend_conf": None}, "upstream None"),
        ({"frontend": "whisper"}, "frontend 'whisper'"),
        ({"preencoder": "sinc"}, "preencoder 'sinc'"),
        ({"preencoder": None}, "does not fit|unknown"),
        ({"preencoder_conf": {"input_size": 32, "output_size": 65537}}, "65536"),
        ({"preencoder_conf": {"input_size": 65536, "output_size": 65536}}, "does not fit"),
        ({"preencoder_conf": {"input_size": 32}}, "TypeError"),
        ({"preencoder_conf": 5}, "no map"),
        ({"encoder_conf": {**config["encoder_conf"], "input_layer": "conv2d8"}}, "frames of 160 ms"),
        ({"encoder_conf": {**config["encoder_conf"], "input_layer": None}}, "frames of 0 ms"),
        ({"encoder_conf": {**config["encoder_conf"], "linear_units": 65536}}, "does not fit"),
        ({"normalize": "global_mvn"}, "missing"),
    ):
        path.write_text(yaml.safe_dump({**config, **changes}))
        assert any(part in (message := refused(tmp_path, capsys)) for part in reason.split("|")), (changes, message)
    path.write_text(yaml.safe_dump(config))
    weights = torch.load(checkpoint)
    for name, value, reason in (
        (f"{PREFIX}encoder.pos_conv.0.weight_v", None, "weight_v of 3 dimensions"),
        (f"{PREFIX}feature_extractor.conv_layers.6.0.weight", None, "conv_layers.6.0.weight of 3 dimensions"),
        (f"{PREFIX}feature_extractor.conv_layers.7.0.weight", torch.zeros(16, 16, 2), "is unknown"),
        (f"{PREFIX}encoder.layers.0.fc1.weight", torch.zeros(0, 32), "fc1.weight of 2 dimensions"),
        (f"{PREFIX}encoder.layers.0.fc1.weight", torch.zeros(1, 100), "config.yaml: "),
        (f"{PREFIX}encoder.layers.1.fc2.bias", None, "missing"),
        (f"{PREFIX}encoder.layers.1.fc2.bias", torch.full((32,), torch.nan), "not finite"),
        (f"{PREFIX}encoder.layers.0.self_attn.relative_attention_bias.weight", torch.zeros(32, 3), "heads"),
        (f"{PREFIX}encoder.layers.0.self_attn.relative_attention_bias.weight", torch.zeros(2, 4), "num_buckets"),
        ("frontend.featurizer.weights", torch.zeros(LAYERS), "does not fit"),
        ("preencoder.linear_out.bias", None, "missing"),
    ):
        torch.save({key: v for key, v in {**weights, name: value}.items() if v is not None}, checkpoint)
        assert reason in (message := refused(tmp_path, capsys)), (name, message)
    for content in (b"", b"x", checkpoint.read_bytes()[:20000]):
        checkpoint.write_bytes(content)
        assert "valid.acc.ave.pth" in refused(tmp_path, capsys)


def test_a_changed_configuration_of_a_teacher_is_refused(tmp_path):
    """What is read again with the teacher is checked again."""
    from distill.errors import UserError

    network, config = adopted(tmp_path, "xls-r")
    del network
    path = tmp_path / "exp/config.yaml"
    front = config["network_conf"]["config"]["frontend_conf"]
    for changes in (
        {"upstream": {**front["upstream"], "hidden_size": 10**9}},
        {"upstream": {**front["upstream"], "model_type": "espnet"}},
        {"upstream": {**front["upstream"], "intermediate_size": 65536}},
        {"upstream": {**front["upstream"], "output_hidden_size": 10**9}},
        {"upstream": 5},
        {"layer": 4},
        {"normalize": "x"},
        {"other": 1},
    ):
        encoder = {**config["network_conf"]["config"], "frontend_conf": {**front, **changes}}
        path.write_text(yaml.safe_dump({**config, "network_conf": {"config": encoder}}))
        with pytest.raises(UserError):
            load_network(tmp_path / "exp")
