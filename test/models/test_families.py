"""Teachers of every family put out what transformers' own recogniser does, whatever they are padded with."""

import json
import re

import pytest
import tiny_teachers
import torch
import transformers
from tiny_networks import VOCAB, batch
from tiny_teachers import FAMILIES, inputs_of, vocabulary_of, write_recogniser
from transformers import AutoModelForCTC

from distill.checkpoints.adopt import adopt_teacher
from distill.checkpoints.load import load_network, network_shape, shape_of
from distill.checkpoints.schema import encoder_conf
from distill.errors import UserError
from distill.models.teachers import build_teacher

TOKENS = ["<blank>", "<unk>", "<space>", "a", "'", "t", "<sos/eos>"]  # another order, another case, no E


@pytest.fixture(scope="module", params=FAMILIES)
def adopted(request, tmp_path_factory):
    """The name of a family, a directory with a recogniser (hf) and the teacher made of it (exp), and the recogniser."""
    folder = tmp_path_factory.mktemp("family")
    model = write_recogniser(folder / "hf", request.param)
    tokens = [token.replace("<space>", "▁") for token in TOKENS] if request.param == "parakeet" else TOKENS
    (folder / "tokens.txt").write_text("\n".join(tokens) + "\n")
    adopt_teacher(folder / "hf", folder / "tokens.txt", "char", folder / "exp")
    return request.param, folder, model


@torch.no_grad()
def test_puts_out_what_transformers_does(adopted):
    """Logits and every layer, of utterances that stand in a batch with longer ones, against each of them alone."""
    family, folder, model = adopted
    reference = AutoModelForCTC.from_pretrained(folder / "hf").eval()
    assert type(reference) is type(model)
    network = load_network(folder / "exp").network
    samples = [16000, 9000, 12345, 3000]
    audio, lengths = batch(samples)
    output = network(audio, lengths)
    ms, outputs = FAMILIES[family].ms, vocabulary_of(family)
    space = "▁" if family == "parakeet" else "|"
    order = [outputs.index(token) for token in ("<pad>", "<unk>", space, "A", "'", "T", "</s>")]
    assert (network.frame_ms, network.encoder_frame_ms) == ms == network_shape(folder / "exp")[2:]
    assert network_shape(folder / "exp")[:2] == (3, 32) and len(output.hidden) == 3
    for b, n in enumerate(samples):
        expected = reference(**inputs_of(family, audio[b, :n]), output_hidden_states=True)
        frames, layer_frames = network.frames(n), network.frames(n) * ms[0] // ms[1]
        assert (output.lengths[b], output.hidden_lengths[b]) == (frames, layer_frames)
        assert 0 <= expected.logits.shape[1] - frames <= FAMILIES[family].dropped
        actual = output.logits[b, :frames]
        assert expected.logits.std() > 0.3
        torch.testing.assert_close(actual, expected.logits[0, :frames, order], atol=1e-4, rtol=0)
        for i in (1, 2):  # what the entry of the last layer means differs between versions of transformers
            layer = output.hidden[i - 1][b, :layer_frames]
            assert expected.hidden_states[i].std() > 0.1
            torch.testing.assert_close(layer, expected.hidden_states[i][0, :layer_frames], atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing(adopted):
    network = load_network(adopted[1] / "exp").network
    assert not network.sees_padding
    samples = [16000, 300, 7777, 1200]
    audio, lengths = batch(samples)
    together = network(audio, lengths)
    wider = network(torch.nn.functional.pad(audio, (0, 5000)), lengths)
    for b, n in enumerate(samples):
        alone = network(audio[b : b + 1, :n], lengths[b : b + 1])
        frames, layer_frames = int(alone.lengths), int(alone.hidden_lengths)
        assert frames == network.frames(n) >= 1 and layer_frames >= 1
        for output in (together, wider):
            assert (output.lengths[b], output.hidden_lengths[b]) == (frames, layer_frames)
            torch.testing.assert_close(output.logits[b, :frames], alone.logits[0, :frames], atol=1e-4, rtol=1e-4)
            for actual, reference in zip(output.hidden, alone.hidden, strict=True):
                actual, reference = actual[b, :layer_frames], reference[0, :layer_frames]
                torch.testing.assert_close(actual, reference, atol=1e-4, rtol=1e-4)


def test_trains_with_masks(adopted):
    """One step of fine-tuning: every weight that is trained has a gradient."""
    network = load_network(adopted[1] / "exp").network.train()
    audio, lengths = batch([16000, 9000])
    network(audio, lengths).logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name


@pytest.mark.parametrize("samples", [560, 719, 720, 16000, 16160, 52345])
@pytest.mark.parametrize(
    ("family", "model_type"), [("wav2vec2-bert", "wav2vec2-bert"), ("parakeet", "parakeet_encoder")]
)
def test_log_mel_features_are_those_of_transformers(family, model_type, samples):
    network = build_teacher(VOCAB, {**tiny_teachers.arguments_of(family), "model_type": model_type})
    audio, lengths = batch([samples, 60000])
    if family == "parakeet":
        features = network._log_mel(audio, lengths[:, None])[0][0]
    else:
        features = network._inputs(audio, lengths)[0]
    expected = inputs_of(family, audio[0, :samples])
    frames = int(expected["attention_mask"].sum())
    if family == "wav2vec2-bert":
        assert frames == network.frames(samples)
    torch.testing.assert_close(features[:frames], expected["input_features"][0, :frames], atol=2e-3, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_true_sizes(family):
    """Layers and frames of published sizes, by their configuration alone and by networks without memory."""
    name, _, true, layers, ms, _ = FAMILIES[family]
    kind = "ParakeetEncoderConfig" if name == "Parakeet" else f"{name}Config"
    config = getattr(transformers, kind)(**true)
    config = {**config.to_diff_dict(), "model_type": config.model_type}
    with torch.device("meta"):
        network = build_teacher(VOCAB, config)
    assert len(network.stack.layers) == layers
    assert (network.frame_ms, network.encoder_frame_ms) == ms
    shape = shape_of({"network": "teacher", "network_conf": {"config": config}})
    assert shape == (layers, network.width, *ms)
    seconds = 10
    assert network.frames(16000 * seconds) * ms[0] == pytest.approx(1000 * seconds, abs=ms[1])


def test_a_language_of_mms(tmp_path, capsys):
    """Its adapter and vocabulary are those that are named, else the tokenizer's; what is missing is refused."""
    from distill.bin.adopt_teacher import main

    folder, tokens = tmp_path / "hf", tmp_path / "tokens.txt"
    model = write_recogniser(folder, "mms")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", "ä", "o", "z"]
    weights = tiny_teachers.write_language(folder, "deu-x_y", letters)
    main(["--model", str(folder), "--language", "deu-x_y", "--show_tokens"])
    shown = capsys.readouterr().out
    assert shown.split() == ["<blank>", "<unk>", "<space>", "ä", "o", "z", "<sos/eos>"]
    tokens.write_text(shown)
    options = ["--model", str(folder), "--token_list", str(tokens), "--output", str(tmp_path / "exp")]
    main([*options, "--language", "deu-x_y"])
    model.lm_head = torch.nn.Linear(32, len(letters))
    model.load_state_dict({**model.state_dict(), **weights})
    network = load_network(tmp_path / "exp").network
    audio, lengths = batch([9000])
    with torch.no_grad():
        expected, actual = model(**inputs_of("mms", audio[0])).logits, network(audio, lengths).logits
    torch.testing.assert_close(actual, expected[:, :, [0, 3, 4, 5, 6, 7, 2]], atol=1e-4, rtol=0)

    def refused(*more: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as failure:
            main([*options, *more])
        message = capsys.readouterr().err
        assert failure.value.code == 2 and message.count("\n") == 1
        return message

    assert "must be a language" in refused() and "must be a language" in refused("--language", "../fra")
    assert "adapter.eng.safetensors: not found" in refused("--language", "eng")
    (folder / "tokenizer_config.json").write_text('{"target_lang": "deu-x_y"}')
    main(options)  # no longer needs the option
    adapter = folder / "adapter.deu-x_y.safetensors"
    adapter.write_bytes(b"x" * 99)
    assert "not a language's adapter" in refused()
    tiny_teachers.write_recogniser(folder, "mms", hidden_size=48)
    tiny_teachers.write_language(folder, "deu-x_y", letters)
    other = adapter.read_bytes()
    tiny_teachers.write_recogniser(folder, "mms")
    assert "has one vocabulary only" in refused("--language", "deu-x_y")
    tiny_teachers.write_language(folder, "deu-x_y", letters)
    adapter.write_bytes(other)
    assert "does not fit the network" in refused("--language", "deu-x_y")


def test_a_recogniser_of_fairseq2(tmp_path):
    """Under fairseq2's names for its tensors, with a sentencepiece tokenizer, as omniASR_CTC is published."""
    import sentencepiece

    from distill.bin.adopt_teacher import main

    model = write_recogniser(tmp_path / "reference", "wav2vec2", num_attention_heads=16)
    state = {}
    for name, value in model.state_dict().items():
        for part, other in FAIRSEQ2:
            name = re.sub(part, other, name)
        state[name] = value
    torch.save({"model": state}, tmp_path / "omni.pt")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["at a tea"] * 9), model_prefix=str(tmp_path / "omni"), model_type="char", vocab_size=8,
        bos_id=0, pad_id=1, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    source = ["--model", str(tmp_path / "omni.pt"), "--tokenizer", str(tmp_path / "omni.model")]
    main([*source, "--output", str(tmp_path / "hf")])
    config = tmp_path / "hf/config.json"
    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\n<space>\na\ne\nt\n<sos/eos>\n")
    options = ["--model", str(tmp_path / "hf"), "--token_list", str(tmp_path / "tokens.txt")]
    main([*options, "--output", str(tmp_path / "exp")])
    outputs = json.loads((tmp_path / "hf/vocab.json").read_text())
    network = load_network(tmp_path / "exp").network
    assert network.normalize and json.loads(config.read_text())["num_hidden_layers"] == 3
    audio, lengths = batch([9000])
    with torch.no_grad():
        expected, actual = model(**inputs_of("wav2vec2", audio[0])).logits, network(audio, lengths).logits
    order = [outputs[token] for token in ("<s>", "<unk>", "▁", "a", "e", "t", "</s>")]
    torch.testing.assert_close(actual, expected[:, :, order], atol=1e-4, rtol=0)
    for path, damaged in (("omni.pt", {"encoder.x": torch.zeros(3)}), ("omni.pt", [1]), ("omni.model", b"x")):
        torch.save(damaged, tmp_path / path)
        with pytest.raises(SystemExit) as failure:
            main([*source, "--output", str(tmp_path / "again")])
        assert failure.value.code == 2 and not (tmp_path / "again/model.safetensors").exists()


FAIRSEQ2 = [  # what transformers and fairseq2 call a tensor
    (r"^wav2vec2\.feature_extractor\.conv_layers", "encoder_frontend.feature_extractor.layers"),
    (r"^wav2vec2\.feature_projection\.layer_norm", "encoder_frontend.post_extract_layer_norm"),
    (r"^wav2vec2\.feature_projection\.projection", "encoder_frontend.model_dim_proj"),
    (r"^wav2vec2\.encoder\.pos_conv_embed", "encoder_frontend.pos_encoder"),
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
    (r"^wav2vec2\.masked_spec_embed", "masker.temporal_mask_embed"),
    (r"^wav2vec2\.encoder\.layers\.(\d+)\.layer_norm", r"encoder.layers.\1.self_attn_layer_norm"),
    (r"^wav2vec2\.encoder\.layers\.(\d+)\.final_layer_norm", r"encoder.layers.\1.ffn_layer_norm"),
    (r"^wav2vec2\.encoder\.layers\.(\d+)\.attention\.out_proj", r"encoder.layers.\1.self_attn.output_proj"),
    (r"^wav2vec2\.encoder\.layers\.(\d+)\.attention", r"encoder.layers.\1.self_attn"),
    (r"^wav2vec2\.encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense", r"encoder.layers.\1.ffn.inner_proj"),
    (r"^wav2vec2\.encoder\.layers\.(\d+)\.feed_forward\.output_dense", r"encoder.layers.\1.ffn.output_proj"),
    (r"^wav2vec2\.encoder\.layer_norm", "encoder.layer_norm"),
    (r"^lm_head", "final_proj"),
]
ODD = [None, 0, -1, 2.5, "x", True, float("nan"), [1], 10**12]


@pytest.mark.parametrize("family", ["data2vec-audio", "wav2vec2-conformer", "sew", "wav2vec2-bert", "parakeet_encoder"])
def test_odd_values_are_refused_before_anything_is_built(family):
    """The keys that only some families have; values of any type."""
    keys = {
        "data2vec-audio": ("conv_pos_kernel_size", "num_conv_pos_embeddings", "feat_extract_norm"),
        "wav2vec2-conformer": ("conv_depthwise_kernel_size", "max_source_positions", "position_embeddings_type"),
        "sew": ("squeeze_factor", "conv_kernel", "hidden_size"),
        "wav2vec2-bert": ("feature_projection_input_dim", "left_max_position_embeddings", "add_adapter"),
        "parakeet_encoder": ("subsampling_factor", "num_mel_bins", "conv_kernel_size", "subsampling_conv_stride"),
    }
    config = {**tiny_teachers.arguments_of(family.split("_")[0]), "model_type": family}
    encoder_conf(config, "config.json")
    for key in keys[family]:
        for value in ODD:
            if repr((key, value)) in (
                "('position_embeddings_type', None)", "('left_max_position_embeddings', 0)"
            ):  # fmt: skip
                continue
            with pytest.raises(UserError, match="^config.json"):
                encoder_conf({**config, key: value}, "config.json")
    for value in (*ODD[1:], "sew-d", "bert", {}):
        with pytest.raises(UserError, match="is not a teacher"):
            encoder_conf({**config, "model_type": value}, "config.json")


def test_frames_of_sew_fill_frames_of_its_layers():
    network = build_teacher(VOCAB, {**tiny_teachers.arguments_of("sew"), "model_type": "sew"}).eval()
    counts = {samples: network.frames(samples) for samples in (1, 719, 720, 1039, 1040, 1359, 1360)}
    assert counts == {1: 2, 719: 2, 720: 2, 1039: 2, 1040: 2, 1359: 2, 1360: 4}
