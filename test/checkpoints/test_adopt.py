"""Recognisers of Hugging Face's on-disk format become teachers with the same outputs."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from tiny_networks import TEACHER, batch

from distill.bin.adopt_teacher import main
from distill.checkpoints.load import load_network, network_shape

VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "'"]
TOKENS = ["<blank>", "<unk>", "<space>", "a", "'", "t", "<sos/eos>"]  # another order, another case, no E


def recogniser(directory: Path, name: str, **changes) -> torch.nn.Module:
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(VOCABULARY), pad_token_id=0, **{**TEACHER, **changes}
    )
    model = getattr(transformers, f"{name}ForCTC")(config).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(directory)
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": "|", "unk_token": "<unk>"}))
    (directory / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 16000}))
    return model


@pytest.mark.parametrize("name", ["Wav2Vec2", "Hubert", "WavLM"])
def test_an_adopted_teacher_puts_out_what_the_recogniser_did(tmp_path, name, capsys):
    model = recogniser(tmp_path / "hf", name)
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    options = ["--model", str(tmp_path / "hf"), "--token_list", str(tmp_path / "tokens.txt")]
    main([*options, "--output", str(tmp_path / "exp")])
    assert "2 outputs of the model are not among them" in capsys.readouterr().out  # <s> and E
    network, tokens, config = load_network(tmp_path / "exp")
    assert tokens == TOKENS and config["token_type"] == "char"
    assert network_shape(tmp_path / "exp") == (3, 32, 20, 20)
    audio, lengths = batch([8000, 8000])
    audio = (audio - audio.mean(1, keepdim=True)) / (audio.var(1, keepdim=True, correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        reference, actual = model(audio).logits, network(audio, lengths)
        hidden = model(audio, output_hidden_states=True).hidden_states
    order = [VOCABULARY.index(token) for token in ("<pad>", "<unk>", "|", "A", "'", "T", "</s>")]
    torch.testing.assert_close(actual.logits, reference[:, :, order], atol=1e-4, rtol=0)
    torch.testing.assert_close(actual.hidden[0], hidden[1], atol=1e-4, rtol=0)


def test_the_models_own_tokens(tmp_path, capsys):
    recogniser(tmp_path, "Wav2Vec2")
    main(["--model", str(tmp_path), "--show_tokens"])
    assert capsys.readouterr().out.split() == ["<blank>", "<unk>", "<space>", "E", "T", "A", "'", "<sos/eos>"]


def refused(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as failure:
        main(arguments)
    assert failure.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_what_cannot_be_adopted_is_refused_in_one_line(tmp_path, capsys):
    directory, tokens = tmp_path / "hf", tmp_path / "tokens.txt"
    model = recogniser(directory, "Wav2Vec2")
    tokens.write_text("<blank>\n<unk>\nA\nß\n<sos/eos>\n")
    options = ["--model", str(directory), "--token_list", str(tokens), "--output", str(tmp_path / "exp")]
    assert "no output for ß" in refused(options, capsys)
    tokens.write_text("\n".join(TOKENS) + "\n")
    model.wav2vec2.save_pretrained(directory)  # a pretrained encoder, never fine-tuned
    assert "fine-tuned" in refused(options, capsys)
    (directory / "vocab.json").write_text("{")
    assert "not JSON" in refused(options, capsys)
    (directory / "vocab.json").unlink()
    assert "vocab.json: not found" in refused(options, capsys)
    assert not (tmp_path / "exp").exists()


TRUE_SIZES = {
    "wav2vec2-base": ("Wav2Vec2", {"num_hidden_layers": 12}, 94.4),
    "hubert-base": ("Hubert", {"num_hidden_layers": 12}, 94.4),
    "wavlm-base-plus": ("WavLM", {"num_hidden_layers": 12}, 94.4),
    "wav2vec2-large-lv60": (
        "Wav2Vec2",
        {
            **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            **{"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
        },
        315.5,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUE_SIZES)
def test_true_sizes(tmp_path, name):
    """The architectures as published, with random weights, written and read in their own format."""
    kind, config, millions = TRUE_SIZES[name]
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(vocab_size=len(VOCABULARY), pad_token_id=0, **config)
    model = getattr(transformers, f"{kind}ForCTC")(made).eval()
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    assert (tmp_path / "hf/model.safetensors").stat().st_size > 3.9e6 * millions
    options = ["--model", str(tmp_path / "hf"), "--token_list", str(tmp_path / "tokens.txt")]
    main([*options, "--output", str(tmp_path / "exp")])
    network = load_network(tmp_path / "exp").network
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    audio, lengths = batch([4000])
    with torch.no_grad():
        reference, actual = model(audio).logits, network(audio, lengths).logits
    order = [VOCABULARY.index(token) for token in ("<pad>", "<unk>", "|", "A", "'", "T", "</s>")]
    torch.testing.assert_close(actual, reference[:, :, order], atol=1e-4, rtol=0)
