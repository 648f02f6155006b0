"""WER by sclite and by jiwer, and what happens when hypotheses and references do not match."""

import json
from pathlib import Path

import pytest

from distill.bin import score
from distill.errors import UserError

REFS = {"A-1": "one two three", "a-1": "four five", "b": "six", "c(d)": "seven eight {x} a/b", "é": "nine"}
HYPS = {"A-1": "one too three", "a-1": "four", "b": "six six", "c(d)": "seven eight {x} a/b", "é": ""}


def write(tmp_path: Path, hyps: dict[str, str]) -> tuple[Path, Path]:
    ref = tmp_path / "text"
    ref.write_text("".join(f"{key} {text}\n" for key, text in REFS.items()))
    decode_dir = tmp_path / "decode_full" / "test"
    decode_dir.mkdir(parents=True)
    for job in (1, 2):
        rows = [
            {"utterance": key, "text": text, "tokens": [], "audio_s": 1.0, "compute_s": 0.1}
            for index, (key, text) in enumerate(hyps.items())
            if index % 2 == job - 1
        ]
        (decode_dir / f"hyp.{job}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ref, decode_dir


@pytest.mark.parametrize("with_sclite", [True, False])
def test_counts(tmp_path, monkeypatch, with_sclite):
    if with_sclite and score.find_sclite() is None:
        pytest.skip("sclite is not installed (Debian package sctk)")
    if not with_sclite:
        monkeypatch.setattr(score, "find_sclite", lambda: None)
    ref, decode_dir = write(tmp_path, HYPS)
    out = score.score(ref, decode_dir)
    assert (out["words"], out["sub"], out["del"], out["ins"]) == (11, 1, 2, 1)
    assert out["wer"] == pytest.approx(100 * 4 / 11)
    assert out["errors"] == [[3, 1], [2, 1], [1, 1], [4, 0], [1, 1]]
    assert (decode_dir / "text").read_text().splitlines()[-1] == "é "
    assert (decode_dir / "score_wer" / "result.txt").stat().st_size > 0


def test_missing_hypothesis_is_refused(tmp_path):
    ref, decode_dir = write(tmp_path, {key: text for key, text in HYPS.items() if key != "b"})
    with pytest.raises(UserError, match="such as b"):
        score.score(ref, decode_dir)
    assert not (decode_dir / "score_wer").exists()


def test_duplicate_reference_is_refused(tmp_path):
    path = tmp_path / "text"
    path.write_text("a one\na two\n")
    with pytest.raises(UserError, match=r"text:2: utterance a is there twice"):
        score.read_text(path)
