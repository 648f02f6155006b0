"""The directory for transformers gives what the model gives, by transformers' own ways of loading and decoding."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import CHANNELS, TEACHER, speech, student, teacher
from tokenizers import Tokenizer
from transformers import AutoModelForCTC, AutoProcessor, PreTrainedTokenizerFast, pipeline

from distill.bin import pack, transcribe
from distill.checkpoints.load import load_network
from distill.decode.token_text import tokens_to_text
from distill.models.student import Student
from distill.pack.transformers_directory import tokenizer_files
from distill.training.loss_terms import ctc

TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]
SIZES = {"width": 32, "layers": 3, "heads": 2, "ffn": 48, "kernel": 7}
FBANK = {"front_end": "fbank", "front_end_conf": {"channels": 16}, **SIZES}


def training(directory: Path, trained: torch.nn.Module, **config) -> Path:
    """A training's directory as the trainer leaves it."""
    directory.mkdir()
    content = {"token_list": TOKENS, "token_type": "char", **config}
    (directory / "config.yaml").write_text(yaml.safe_dump(content))
    torch.save({f"network.{k}": v for k, v in trained.state_dict().items()}, directory / "valid.loss.ave.pth")
    return directory


@pytest.fixture(scope="module")
def systems(tmp_path_factory) -> Path:
    """A teacher, a streaming student with the teacher's CNN, one on log-mel features; and a recording."""
    exp = tmp_path_factory.mktemp("exp")
    chunks = {"chunk_ms": [160, 960], "left_ms": 2000, "hop": 0.5}
    training(exp / "teacher", teacher(), network="teacher", network_conf={"config": TEACHER})
    conf = {"front_end_conf": {"channels": list(CHANNELS)}, **SIZES}
    training(exp / "cnn", student(), network="student", network_conf=conf, chunk_conf=chunks)
    torch.manual_seed(5)
    fbank = Student(vocab_size=len(TOKENS), **FBANK)
    torch.nn.init.normal_(fbank.output.weight, std=1.0)  # so that tokens win frames
    training(exp / "fbank", fbank, network="student", network_conf=FBANK, chunk_conf=chunks)
    soundfile.write(exp / "some.wav", speech(48000, 1).numpy(), 16000)
    for name in ("teacher", "cnn", "fbank"):
        options = ["--license", "cc-by-4.0", "--language", "en"]
        pack.main(
            ["--format", "transformers", "--model", str(exp / name), *options, "--output", str(exp / "hf" / name)]
        )
    return exp


@pytest.mark.parametrize("name", ["teacher", "cnn", "fbank"])
def test_a_pipeline_gives_the_text_of_transcribe(systems, name):
    printed = io.StringIO()
    with redirect_stdout(printed):
        transcribe.main(["--model", str(systems / name), "--chunk_ms", "480", str(systems / "some.wav")])
    text = printed.getvalue().split("\t" if "\t" in printed.getvalue() else None, 1)[1].strip()
    recognise = pipeline("automatic-speech-recognition", str(systems / "hf" / name), trust_remote_code=True)
    assert recognise(soundfile.read(systems / "some.wav")[0])["text"].strip() == text and len(text) > 3


@pytest.mark.parametrize("name", ["teacher", "cnn", "fbank"])
def test_logits_and_loss_are_those_of_the_network(systems, name):
    loaded = load_network(systems / name)
    model = AutoModelForCTC.from_pretrained(systems / "hf" / name, trust_remote_code=True, chunk_ms=None).eval()
    processor = AutoProcessor.from_pretrained(systems / "hf" / name)
    audio = [speech(n, n).numpy() for n in (20000, 31000)]
    inputs = processor(audio, sampling_rate=16000, padding=True, return_tensors="pt")
    labels = torch.tensor([[2, 3, -100], [4, 5, 6]])
    with torch.no_grad():
        output = model(**inputs, labels=labels)
        expected = loaded.network(inputs["input_values"], torch.tensor([20000, 31000]))
        loss = ctc(expected.logits, expected.lengths, labels, torch.tensor([2, 3])).mean()
    for row, frames in enumerate(expected.lengths):
        torch.testing.assert_close(output.logits[row, :frames], expected.logits[row, :frames], atol=1e-5, rtol=1e-5)
        assert (output.logits[row, frames:].argmax(-1) == 0).all()
    assert output.logits.shape[1] > expected.lengths[0]
    torch.testing.assert_close(output.loss, loss)


def test_a_chunk_length_is_taken_at_loading(systems):
    inputs = speech(48000, 1)[None]
    logits = {
        chunk_ms: AutoModelForCTC.from_pretrained(
            systems / "hf/fbank", trust_remote_code=True, chunk_ms=chunk_ms
        )(inputs).logits[:, : 48000 // 320 - 4]
        for chunk_ms in (None, 160, 480)
    }  # fmt: skip
    assert not torch.allclose(logits[None], logits[160]) and not torch.allclose(logits[160], logits[480])
    config = json.loads((systems / "hf/fbank/config.json").read_text())
    assert (
        config["chunk_ms"] == 480 and json.loads((systems / "hf/teacher/config.json").read_text())["chunk_ms"] is None
    )


WORDS = ["the", "lamp", "on", "off"]
PIECES = ["▁the", "▁", "la", "mp", "▁on"]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["char", "bpe", "word", "phn"]))
def test_the_tokenizer_writes_text_as_the_decoders_do(data, token_type):
    tokens = ["<blank>", "<unk>", *{"char": [*"ab", "<space>"], "bpe": PIECES}.get(token_type, WORDS), "<sos/eos>"]
    files = tokenizer_files(tokens, token_type)
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=12))
    kept = [n for n, before in zip(ids, [None, *ids], strict=False) if n != before and n]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(files["tokenizer.json"].decode()),
        pad_token="<blank>",
        clean_up_tokenization_spaces=False,
    )
    expected = tokens_to_text([tokens[n] for n in kept], token_type)
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected


def test_what_cannot_be_written_is_one_line(systems, capsys):
    for options, message in (
        (["--model", str(systems / "cnn"), "--output", str(systems / "hf/cnn")], "is there already"),
        (
            ["--export", str(systems / "cnn"), "--output", str(systems / "new")],
            "--format transformers: needs --model DIR, and has no place",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            pack.main(["--format", "transformers", *options])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    card = (systems / "hf/cnn/README.md").read_text()
    assert "library_name: transformers" in card and "trust_remote_code=True" in card and "license: cc-by-4.0" in card
