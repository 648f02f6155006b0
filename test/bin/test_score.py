"""WER by sclite and without it, and what happens when hypotheses and references do not match."""

import json
import random
import re
import subprocess
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


# Letters that fold or do not, what sclite's formats give a meaning, and words that are only nearly equal
ODD = [
    "É",
    "é",
    "ß",
    "SS",
    "ss",
    "İ",
    "ı",
    "i",
    "I",
    "Σ",
    "ς",
    "σ",
    "日本",
    "а",
    "А",
    "ﬁ",
    "fi",
    "-",
    "a-",
    "%hes",
    "*",
]
ODD += ["**", "***", "<x>", "<", "[noise]", "&", "|", "#", ";;", ";;;", "a;b", "'s", '"', "{", "}", "/", "(", ")", "@"]
ODD += [
    "\\",
    "^",
    "_",
    "(a)",
    "(%a)",
    "{a",
    "/b",
    "é\u0301",
    "😀",
    "a\u200bb",
    ":",
    "!",
    "?",
    "$",
    "1.5",
    "-99",
    "K",
    "\u212a",
]


def random_pairs(tmp_path: Path, count: int) -> tuple[Path, Path]:
    """References and hypotheses of few different words, so that many alignments cost the same; some are empty."""
    rng = random.Random(7)
    decode_dir = tmp_path / "decode_full" / "test"
    decode_dir.mkdir(parents=True)
    with open(tmp_path / "text", "w") as text, open(decode_dir / "hyp.1.jsonl", "w") as hyp:
        for number in range(count):
            words = ("ab", "abc", ODD, rng.sample(ODD, 5))[number % 4]
            ref, said = ([rng.choice(words) for _ in range(rng.randint(0, 9))] for _ in range(2))
            key = f"{rng.choice('aAb')}-{number:05d}"
            text.write(
                key
                + rng.choice([" ", "\t", "  "])
                + rng.choice([" ", "   ", "\t"]).join(ref)
                + rng.choice([" \n", "\n"])
            )
            audio_s = rng.uniform(0.05, 3)
            times = sorted(rng.choice([0, audio_s, rng.uniform(0, audio_s)]) for _ in said)
            timed = [
                {"word": word, "start_s": start, "end_s": start + rng.choice([0, 0.1]), "confidence": rng.random()}
                for word, start in zip(said, times, strict=True)
            ]
            row = {"utterance": key, "text": " ".join(said), "words": timed, "audio_s": audio_s, "compute_s": 0.1}
            hyp.write(json.dumps(row) + "\n")
    return tmp_path / "text", decode_dir


@pytest.mark.skipif(score.find_sclite() is None, reason="sclite is not installed (Debian package sctk)")
def test_two_thousand_pairs_are_counted_as_by_sclite(tmp_path, monkeypatch):
    ref, decode_dir = random_pairs(tmp_path, 2000)
    by_sclite = score.score(ref, decode_dir)
    score_dir = decode_dir / "score_wer"
    times = ["-r", score_dir / "ref.stm", "stm", "-h", score_dir / "hyp.ctm", "ctm"]
    ctm = subprocess.run(
        [*score.find_sclite(), *times, "-e", "utf-8", "-o", "rsum", "stdout"], capture_output=True, errors="replace"
    )
    total = re.search(r"\| *Sum *\|(.*)", ctm.stdout).group(1)
    monkeypatch.setattr(score, "find_sclite", lambda: None)
    ours = score.score(ref, decode_dir)
    assert (by_sclite.pop("scorer"), ours.pop("scorer")) == ("sclite", "distill")
    assert ours == by_sclite
    assert min(ours["sub"], ours["del"], ours["ins"]) > 500
    utterances, words, _, sub, deleted, inserted, wrong, *_ = map(int, re.findall(r"-?\d+", total))
    assert (utterances, words) == (2000, ours["words"])
    assert (sub, deleted, inserted) == (ours["sub"], ours["del"], ours["ins"])


def test_files_for_other_tools(tmp_path):
    ref = tmp_path / "text"
    ref.write_text("u1 one two\nu2 (hm)\n")
    (tmp_path / "utt2spk").write_text("u1 ann\nu2 bob\n")
    rows = [
        {
            "utterance": "u1",
            "text": "one",
            "words": [{"word": "one", "start_s": 0.1, "end_s": 0.32, "confidence": 0.75}],
            "nbest": [{"text": "one", "score": -1.5}, {"text": "one two", "score": -2.25}],
            "score": -1.5,
        },
        {"utterance": "u2", "text": "", "words": [], "score": -0.5},
    ]
    decode_dir = tmp_path / "test"
    decode_dir.mkdir()
    lines = [json.dumps(row | {"audio_s": 1.0, "compute_s": 0.1}) + "\n" for row in rows]
    (decode_dir / "hyp.1.jsonl").write_text("".join(lines))
    out = score.score(ref, decode_dir)
    assert out["speakers"] == {"ann": [2, 1], "bob": [1, 1]}
    assert (decode_dir / "text").read_text() == "u1 one\nu2 \n"
    assert (decode_dir / "nbest").read_text() == "u1-1 one\nu1-2 one two\nu2-1 \n"
    assert (decode_dir / "nbest_score").read_text() == "u1-1 -1.5000\nu1-2 -2.2500\nu2-1 -0.5000\n"
    assert (decode_dir / "score_wer/hyp.ctm").read_text() == "u1 1 0.10 0.22 one 0.7500\n"
    assert (decode_dir / "score_wer/ref.stm").read_text() == (
        "u1 1 ann 0.00 1.01 <o> one two\nu2 1 bob 0.00 1.01 <o> <lp>hm<rp>\n"
    )
