"""Experiments of ESPnet's own asr task become teachers with the same outputs."""

import functools

import pytest
import torch
import yaml
from espnet_experiments import TOKENS, write_experiment
from tiny_networks import batch

from distill.bin.adopt_teacher import main
from distill.checkpoints.load import load_network, network_shape


@pytest.mark.parametrize(
    ("encoder", "normalize", "ms"),
    [("conformer", "global_mvn", 40), ("e_branchformer", "utterance_mvn", 40), ("transformer", None, 80)],
)
@torch.no_grad()
def test_puts_out_what_espnet_does(tmp_path, encoder, normalize, ms):
    model = write_experiment(tmp_path / "asr", encoder, normalize)
    main(["--model", str(tmp_path / "asr/valid.loss.ave.pth"), "--output", str(tmp_path / "exp")])
    assert network_shape(tmp_path / "exp") == (3, 16, ms, ms)
    network, tokens, config = load_network(tmp_path / "exp")
    assert tokens == TOKENS and config["token_type"] == "word" and network.sees_padding
    assert (network.frame_ms, network.encoder_frame_ms) == (ms, ms)
    for samples in (16000, 9000, 12345, 300):
        audio, lengths = batch([samples])
        output = network(audio, lengths)
        frames = network.frames(samples)
        assert output.lengths.tolist() == output.hidden_lengths.tolist() == [frames] and frames >= 1
        if samples == 300:  # ESPnet refuses it
            continue
        features, feature_lengths = model._extract_feats(audio, lengths)
        if model.normalize is not None:
            features, feature_lengths = model.normalize(features, feature_lengths)
        hidden = []
        keep = functools.partial(lambda kept, _layer, _inputs, output: kept.append(output), hidden)
        hooks = [layer.register_forward_hook(keep) for layer in model.encoder.encoders]
        encoded, encoded_lengths, _ = model.encoder(features, feature_lengths)
        for hook in hooks:
            hook.remove()
        assert int(encoded_lengths) == frames
        torch.testing.assert_close(output.logits, model.ctc.ctc_lo(encoded), atol=1e-4, rtol=1e-4)
        assert output.logits.std() > 0.3 and len(output.hidden) == len(hidden) == 3
        for actual, expected in zip(output.hidden, hidden, strict=True):
            while isinstance(expected, tuple):
                expected = expected[0]
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def refused(arguments, capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as failure:
        main(arguments)
    message = capsys.readouterr().err
    assert failure.value.code == 2 and message.count("\n") == 1
    return message


def test_what_is_no_teacher_is_refused_in_one_line(tmp_path, capsys):
    write_experiment(tmp_path / "asr", "conformer", "global_mvn")
    options = ["--model", str(tmp_path / "asr/valid.loss.ave.pth"), "--output", str(tmp_path / "exp")]
    path = tmp_path / "asr/config.yaml"
    config = yaml.safe_load(path.read_text())
    encoder = config["encoder_conf"]
    for key, value, reason in (
        ("frontend", "s3prl", "upstream None"),
        ("encoder", "whisper", "encoder: 'whisper'"),
        ("frontend_conf", {"hop_length": 128}, "frames of 32 ms"),
        ("frontend_conf", {"hop_length": "x"}, "config.yaml"),
        ("frontend_conf", {"hop_length": 160, "n_mels": 10**9}, "65536"),
        ("frontend_conf", 5, "no map"),
        ("encoder_conf", {**encoder, "num_blocks": 10**8}, "config.yaml"),
        ("encoder_conf", {**encoder, "max_pos_emb_len": 60000, "output_size": 16384}, "does not fit|config.yaml"),
        ("encoder_conf", {**encoder, "linear_units": 40}, "does not fit"),
        ("encoder_conf", {**encoder, "unknown": 1}, "TypeError"),
        ("encoder_conf", {**encoder, "num_blocks": None}, "config.yaml"),
        ("normalize_conf", {"norm_vars": False}, "normalize_conf"),
        ("token_list", None, "token_list"),
        ("token_list", ["<blank>", "a"], "does not fit"),
        ("token_type", "hugging_face", "token_type"),
    ):
        path.write_text(yaml.safe_dump({**config, key: value}))
        assert any(part in (message := refused(options, capsys)) for part in reason.split("|")), (key, value, message)
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "asr/valid.loss.ave.pth").write_bytes(b"x")
    assert "valid.loss.ave.pth" in refused(options, capsys)
    assert not (tmp_path / "exp").exists()
