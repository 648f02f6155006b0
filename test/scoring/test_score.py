"""WER by sclite and without it, and what happens when hypotheses and references do not match."""

import json
import random
from pathlib import Path

import pytest
from ctm_sums import ctm_sums

from distill.bin import check_teacher
from distill.data.gigaspeech import scored_words
from distill.errors import UserError
from distill.scoring import score
from distill.scoring.counts import Counts, align, count_errors
from distill.scoring.sclite import find_sclite
from distill.scoring.text import piece_splitter, read_text, split_characters

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
    if with_sclite and find_sclite() is None:
        pytest.skip("sclite is not installed (Debian package sctk)")
    if not with_sclite:
        monkeypatch.setattr(score, "find_sclite", lambda: None)
    ref, decode_dir = write(tmp_path, HYPS)
    scores = score.score(ref, decode_dir)
    out = scores["wer"]
    assert (out["words"], out["sub"], out["del"], out["ins"]) == (11, 1, 2, 1)
    assert out["wer"] == pytest.approx(100 * 4 / 11)
    assert out["errors"] == [[3, 1], [2, 1], [1, 1], [4, 0], [1, 1]]
    assert out["wrong_utterances"] == 4
    # two: t w o / t o o; " five" deleted; " six" inserted; "nine" deleted
    assert scores["cer"]["errors"] == [[13, 1], [9, 5], [3, 4], [19, 0], [4, 4]]
    assert scores["cer"]["cer"] == pytest.approx(100 * 14 / 48)
    assert "ter" not in scores
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
        read_text(path)


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
            ref, output = ([rng.choice(words) for _ in range(rng.randint(0, 9))] for _ in range(2))
            key = f"{rng.choice('aAb')}-{number:05d}"
            text.write(
                key
                + rng.choice([" ", "\t", "  "])
                + rng.choice([" ", "   ", "\t"]).join(ref)
                + rng.choice([" \n", "\n"])
            )
            audio_s = rng.uniform(0.05, 3)
            times = sorted(rng.choice([0, audio_s, rng.uniform(0, audio_s)]) for _ in output)
            timed = [
                {"word": word, "start_s": start, "end_s": start + rng.choice([0, 0.1]), "confidence": rng.random()}
                for word, start in zip(output, times, strict=True)
            ]
            row = {"utterance": key, "text": " ".join(output), "words": timed, "audio_s": audio_s, "compute_s": 0.1}
            hyp.write(json.dumps(row) + "\n")
    return tmp_path / "text", decode_dir


@pytest.mark.skipif(find_sclite() is None, reason="sclite is not installed (Debian package sctk)")
def test_two_thousand_pairs_are_counted_as_by_sclite(tmp_path, monkeypatch):
    ref, decode_dir = random_pairs(tmp_path, 2000)
    by_sclite = score.score(ref, decode_dir)
    assert_ctm_agrees(decode_dir, by_sclite["wer"])
    monkeypatch.setattr(score, "find_sclite", lambda: None)
    actual = score.score(ref, decode_dir)
    assert actual.keys() == by_sclite.keys() == {"wer", "cer"}
    for unit, out in actual.items():
        assert (by_sclite[unit].pop("scorer"), out.pop("scorer")) == ("sclite", "distill")
        assert out == by_sclite[unit]
        assert min(out["sub"], out["del"], out["ins"]) > 500


def test_counts_of_many_pairs_are_those_of_their_alignments(monkeypatch):
    rng = random.Random(3)
    refs, hyps = ([[rng.choice("abc") for _ in range(rng.randint(0, 9))] for _ in range(500)] for _ in range(2))

    def of_alignment(ref: list[str], hyp: list[str]) -> Counts:
        pairs = align(ref, hyp)
        substituted = sum(i is not None and j is not None and ref[i] != hyp[j] for i, j in pairs)
        deleted, inserted = (sum(pair[side] is None for pair in pairs) for side in (1, 0))
        return Counts(len(ref), substituted, deleted, inserted)

    expected = [of_alignment(ref, hyp) for ref, hyp in zip(refs, hyps, strict=True)]
    assert count_errors(refs, hyps) == expected
    monkeypatch.setattr("distill.scoring.counts.BLOCK_CELLS", 100)  # blocks of a few pairs, and of one
    assert count_errors(refs, hyps) == expected


def assert_ctm_agrees(decode_dir: Path, out: dict) -> None:
    sums = ctm_sums(decode_dir / "score_wer")
    assert sums == {name: out[name] for name in sums}


GIGASPEECH = [
    ("STATE-OF-THE-ART <COMMA> UM E-COMMERCE", "STATE OF THE ART E COMMERCE"),
    ("uh Huh <UNK> <unk> <noise> yes", "yes"),
    ("- UHM HMM", "UHM HMM"),
    ("<SIL>", ""),
]


@pytest.mark.parametrize(("text", "counted"), GIGASPEECH)
def test_gigaspeechs_own_scoring(text, counted):
    assert scored_words(text) == counted


@pytest.mark.skipif(find_sclite() is None, reason="sclite is not installed (Debian package sctk)")
def test_fillers_and_hyphens_count_only_when_scored_plainly(tmp_path):
    ref = tmp_path / "text"
    ref.write_text("u1 UM WELL-KNOWN\nu2 YES\n")
    decode_dir = tmp_path / "test"
    decode_dir.mkdir()
    rows = {"u1": ["WELL", "KNOWN", "UH"], "u2": ["YES-YES"]}
    for key, words in rows.items():
        timed = [{"word": w, "start_s": 0.3 * n, "end_s": 0.3 * n + 0.2, "confidence": 1} for n, w in enumerate(words)]
        row = {"utterance": key, "text": " ".join(words), "words": timed, "audio_s": 1.0, "compute_s": 0.1}
        with open(decode_dir / "hyp.1.jsonl", "a") as stream:
            stream.write(json.dumps(row) + "\n")
    plain = score.score(ref, decode_dir)["wer"]
    assert (plain["scoring"], plain["errors"]) == ("plain", [[2, 3], [1, 1]])
    assert_ctm_agrees(decode_dir, plain)
    giga = score.score(ref, decode_dir, "gigaspeech")["wer"]
    assert (giga["scoring"], giga["errors"]) == ("gigaspeech", [[2, 0], [1, 1]])
    assert_ctm_agrees(decode_dir, giga)
    assert (decode_dir / "text").read_text() == "u1 WELL KNOWN UH\nu2 YES-YES\n"  # what was recognised stays


def test_characters_and_pieces_are_espnets(tmp_path):
    import sentencepiece
    from espnet2.text.build_tokenizer import build_tokenizer

    texts = ["one two three", "é (a)  b", "", "日本 x"]
    (tmp_path / "text").write_text("\n".join(["one two three two one"] * 20 + ["é ( a ) b 日 本 x"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "bpe"), vocab_size=20, minloglevel=2
    )
    for kind, split in (("char", split_characters), ("bpe", piece_splitter(tmp_path / "bpe.model"))):
        reference = build_tokenizer(kind, bpemodel=str(tmp_path / "bpe.model"))
        for text in texts:
            assert split(text).split() == reference.text2tokens(text)


def test_phones_without_a_lexicon_have_no_words(tmp_path):
    (tmp_path / "text").write_text("u1 one two\nu2 one\n")
    (tmp_path / "text.phn").write_text("u1 W AH N T UW\nu2 W AH N\n")
    decode_dir = tmp_path / "test"
    decode_dir.mkdir()
    for key, output in {"u1": "W AH T UW", "u2": "W AH N"}.items():
        tokens = [{"token": phone} for phone in output.split()]
        row = {"utterance": key, "text": output, "tokens": tokens, "words": [], "audio_s": 1.0, "compute_s": 0.1}
        with open(decode_dir / "hyp.1.jsonl", "a") as stream:
            stream.write(json.dumps(row) + "\n")
    score.score(tmp_path / "text", decode_dir)
    assert (decode_dir / "score_wer").is_dir()
    (decode_dir / "about.json").write_text('{"text": "tokens"}')
    with pytest.raises(UserError, match="--ref_tokens"):
        score.score(tmp_path / "text", decode_dir)
    scores = score.score(tmp_path / "text", decode_dir, ref_tokens=tmp_path / "text.phn")
    assert scores.keys() == {"ter"} and not (decode_dir / "score_wer").exists()
    assert scores["ter"]["errors"] == [[5, 1], [3, 0]] and scores["ter"]["ter"] == 12.5


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
    out = score.score(ref, decode_dir)["wer"]
    assert out["speakers"] == {"ann": [2, 1], "bob": [1, 1]}
    assert (decode_dir / "text").read_text() == "u1 one\nu2 \n"
    assert (decode_dir / "nbest").read_text() == "u1-1 one\nu1-2 one two\nu2-1 \n"
    assert (decode_dir / "nbest_score").read_text() == "u1-1 -1.5000\nu1-2 -2.2500\nu2-1 -0.5000\n"
    assert (decode_dir / "score_wer/hyp.ctm").read_text() == "u1 1 0.10 0.22 one 0.7500\n"
    assert (decode_dir / "score_wer/ref.stm").read_text() == (
        "u1 1 ann 0.00 1.01 <o> one two\nu2 1 bob 0.00 1.01 <o> <lp>hm<rp>\n"
    )


@pytest.mark.parametrize(("unit", "words"), [("wer", "words"), ("ter", "tokens")])
def test_a_model_with_too_many_errors_is_refused_or_warned_of(tmp_path, capsys, unit, words):
    folder = tmp_path / f"score_{unit}"
    folder.mkdir()
    (folder / "score.json").write_text(json.dumps({unit: 60.5}))
    with pytest.raises(SystemExit) as stopped:
        check_teacher.main(["--max_error", "60", str(tmp_path)])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1
    assert f"60.50 % of the {words} wrong, more than 60 %" in message and "--allow_bad_teacher true" in message
    check_teacher.main(["--max_error", "60", "--allow", "true", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: ") and printed.out == ""
    check_teacher.main(["--max_error", "60.5", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path}: 60.50 % of the {words} wrong\n"


def test_a_model_that_is_not_scored_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        check_teacher.main([str(tmp_path)])
    assert "is not scored; run local/score.sh first" in capsys.readouterr().err
