"""Decoding with every decoder: from a text to a language model, tuned weights, hypotheses and scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_networks import CHANNELS, TALKATIVE_SEED, VOCAB, speech, student

from distill.bin import decode, make_lm, transcribe, tune_decoding
from distill.decode.settings import DecodeConf
from distill.errors import UserError
from distill.scoring import score
from distill.streaming import StreamingRecognizer

TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]
assert len(TOKENS) == VOCAB


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming student, six utterances with a text in which its outputs are frequent words, and an n-gram of it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("work")
    model, data = root / "student", root / "valid"
    model.mkdir()
    data.mkdir()
    conf = {"front_end": "cnn", "front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2,
            "ffn": 48, "kernel": 7}  # fmt: skip
    config = {"token_list": TOKENS, "token_type": "char", "network": "student", "network_conf": conf}
    config["chunk_conf"] = {"chunk_ms": 480, "left_ms": 2000}
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({f"network.{k}": v for k, v in student(seed=TALKATIVE_SEED).state_dict().items()}, model / "model.pth")
    recognizer = StreamingRecognizer.from_pretrained(model)
    lines = {"wav.scp": "", "text": "", "utt2spk": ""}
    for number in range(6):
        audio = speech(16000 + 4000 * number, number).numpy()
        soundfile.write(data / f"{number}.wav", audio, 16000)
        recognizer.accept_waveform(audio)
        output = recognizer.finish()["text"].split() or ["a"]
        recognizer.reset()
        lines["wav.scp"] += f"u{number} {data / f'{number}.wav'}\n"
        lines["text"] += f"u{number} {' '.join(output + (['bad'] if number % 2 else []))}\n"
        lines["utt2spk"] += f"u{number} ann\n"
    for name, text in lines.items():
        (data / name).write_text(text)
    make_lm.main(["--text", str(data / "text"), "--order", "2", "--output", str(root / "lm.arpa")])
    return root


def test_from_tuning_to_scores(work, capsys):
    model, lm, tuned = work / "student", work / "lm.arpa", work / "tuned.json"
    shared = ["--model", str(model), "--chunk_ms", "480", "--lm", str(lm)]
    grid = ["--lm_weights", "0.1", "5", "--word_bonuses", "0", "20"]
    tune_decoding.main(
        [*shared, "--data_dir", str(work / "valid"), "--decoder", "beam", "wfst", *grid, "--output", str(tuned)]
    )
    weights = json.loads(tuned.read_text())
    for decoder in ("beam", "wfst"):
        points = weights[decoder]["grid"]
        assert len(points) == 4 and weights[decoder]["wer"] == min(point["wer"] for point in points)
        assert len({point["wer"] for point in points}) > 1, "a grid on which nothing depends tests nothing"
    capsys.readouterr()
    run = [*shared, "--data_dirs", str(work / "valid"), "--decoder", "greedy", "beam", "wfst", "--nbest", "3"]
    decode.main([*run, "--tuned", str(tuned)])
    for decoder in ("greedy", "beam", "wfst"):
        folder = model / ("decode_480ms" + ("" if decoder == "greedy" else f"_{decoder}")) / "valid"
        about = json.loads((folder / "about.json").read_text())
        assert about["decoder"] == decoder
        out = score.score(work / "valid/text", folder)["wer"]
        assert out["speakers"]["ann"][0] == out["words"]
        rows = [json.loads(line) for line in (folder / "hyp.1.jsonl").read_text().splitlines()]
        assert len(rows) == 6
        for row in rows:
            assert " ".join(word["word"] for word in row["words"]) == row["text"]
            assert all(0 <= w["start_s"] < w["end_s"] <= row["audio_s"] + 1e-6 for w in row["words"])
        if decoder != "greedy":
            assert about["lm_weight"] == weights[decoder]["lm_weight"]
            # The validation set is tuned on and here decoded again: the WER must be the same
            assert out["wer"] == pytest.approx(weights[decoder]["wer"])
            several = [row["nbest"] for row in rows if "nbest" in row]
            assert several
            for nbest in several:
                assert [other["score"] for other in nbest] == sorted((other["score"] for other in nbest), reverse=True)
                assert len({other["text"] for other in nbest}) == len(nbest)


@pytest.mark.parametrize("decoder", ["beam", "wfst"])
def test_audio_in_pieces_gives_what_it_gives_at_once(work, decoder):
    decoding = DecodeConf(decoder, lm=work / "lm.arpa", lm_weight=0.6, nbest=2)
    session = StreamingRecognizer.from_pretrained(work / "student", 480, decoding=decoding)
    audio = np.concatenate([soundfile.read(work / f"valid/{n}.wav", dtype="float32")[0] for n in range(4)])
    found = []
    for size in (len(audio), 1600, 9999):
        partials = [r for start in range(0, len(audio), size) for r in session.accept_waveform(audio[start:][:size])]
        assert partials and partials[-1]["text"]
        result = session.finish()
        texts = [[word.text for word in other.words or ()] for other in session.hypotheses]
        times = [[(t.id, t.start_frame) for t in other.tokens] for other in session.hypotheses]
        found.append((result["text"], [t["start_s"] for t in result["tokens"]], texts, times))
        session.reset()
    assert found[0] == found[1] == found[2]
    assert found[0][0]


@pytest.mark.parametrize("decoder", ["beam", "wfst"])
def test_endpoints_begin_a_sentence_anew(work, decoder):
    decoding = DecodeConf(decoder, lm=work / "lm.arpa", lm_weight=0.3)
    session = StreamingRecognizer.from_pretrained(work / "student", 480, endpoint_ms=20, decoding=decoding)
    audio = np.concatenate([soundfile.read(work / f"valid/{n}.wav", dtype="float32")[0] for n in range(6)])
    results = session.accept_waveform(audio) + [session.finish()]
    starts = [token["start_s"] for result in results if result["event"] == "final" for token in result["tokens"]]
    assert sum(result["event"] == "final" for result in results) > 1
    assert starts == sorted(starts) and starts[-1] <= len(audio) / 16000


def test_transcribe_with_a_decoder(work, capsys):
    (work / "names.txt").write_text("bad cab\n")
    wav = str(work / "valid/1.wav")
    for options in (["--decoder", "beam", "--hotwords", str(work / "names.txt")], ["--decoder", "wfst"]):
        transcribe.main(["--model", str(work / "student"), "--lm", str(work / "lm.arpa"), *options, wav])
        assert capsys.readouterr().out.startswith(wav)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoder", "wfst"], "needs an n-gram"),
        (["--decoder", "beam", "--lm", "none.arpa"], "none.arpa: not found"),
        (["--decoder", "beam", "--tuned", "none.json"], "none.json: not found"),
        (["--decoder", "beam", "--nbest", "0"], "nbest: 0"),
        (["--decoder", "beam", "--beam", "0"], "beam: 0"),
        (["--decoder", "beam", "--hotwords", "none.txt"], "none.txt: not a text file"),
    ],
)
def test_bad_options_are_one_line(work, options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        decode.main(["--model", str(work / "student"), "--data_dirs", str(work / "valid"), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_decoder_is_refused():
    with pytest.raises(UserError, match="decoder: 'magic'"):
        DecodeConf("magic")


@pytest.mark.parametrize(
    ("text", "message"), [("u1 a\nu2\n", "text:2: no text"), ("", "no sentences"), (None, "not found")]
)
def test_a_language_model_needs_text(tmp_path, capsys, text, message):
    if text is not None:
        (tmp_path / "text").write_text(text)
    with pytest.raises(SystemExit):
        make_lm.main(["--text", str(tmp_path / "text"), "--output", str(tmp_path / "lm.arpa")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "lm.arpa").exists()
