"""results.json, and RESULTS.md from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from distill.bin import results
from distill.scoring.results import find_systems
from distill.scoring.significance import bootstrap, matched_pairs


def make(
    expdir: Path, system: str, decode: str, errors: list[list[int]], chunk_ms: int | None, decoder: str | None = None
) -> None:
    folder = expdir / system / decode / "test"
    (folder / "score_wer").mkdir(parents=True)
    words, wrong = (sum(row[column] for row in errors) for column in (0, 1))
    score = {"words": words, "sub": wrong, "del": 0, "ins": 0, "wer": 100 * wrong / words, "utterances": len(errors)}
    score["wrong_utterances"] = sum(row[1] > 0 for row in errors)
    score |= {"timed_utterances": 2, "timed_s": 10.0}
    score |= {"audio_s": 20.0, "compute_s": 1.0 if system == "teacher" else 0.25, "errors": errors, "scorer": "sclite"}
    score["speakers"] = {"ann": errors[0], "bob": np.sum(errors[1:], 0).tolist()}
    (folder / "score_wer" / "score.json").write_text(json.dumps(score))
    (folder / "score_cer").mkdir()
    (folder / "score_cer" / "score.json").write_text(json.dumps({**score, "words": 5 * words, "cer": score["wer"] / 5}))
    size = 4_000_000 if system == "teacher" else 500_000
    about = {"params": size // 4, "model_bytes": size, "threads": 1, "chunk_ms": chunk_ms}
    if decoder:
        about |= {"decoder": decoder, "lm": "lm.arpa", "lm_weight": 0.5, "word_bonus": 0.0}
    (folder / "about.json").write_text(json.dumps(about))


def test_speeds_on_different_devices_are_not_compared(tmp_path):
    make(tmp_path, "teacher", "decode_full", [[5, 1], [5, 0]], None)
    make(tmp_path, "student_stream", "decode_480ms", [[5, 1], [5, 1]], 480)
    about = tmp_path / "teacher/decode_full/test/about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "device": "NVIDIA H200"}))
    results.main(["--expdir", str(tmp_path), "--test_sets", "test", "--recipe", "egs2/x"])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "on NVIDIA H200 and on 1 CPU thread, beside other jobs" in text and "a sample of 2 utterances" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| student_stream | 480 ms | 20.00 (+")]
    assert line.endswith("| 8.0x | - |")
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["device"], row["rtf_utterances"]) for row in rows] == [("NVIDIA H200", 2), ("cpu", 2)]


def test_what_failed_at_once_and_what_is_left_out(tmp_path, capsys):
    make(tmp_path, "teacher", "decode_full", [[5, 1], [5, 0]], None)
    make(tmp_path, "student_stream", "decode_full", [[5, 1], [5, 1]], None)
    failed = tmp_path / "student_stream/decode_50ms/test"
    failed.mkdir(parents=True)
    (failed / "made_from").touch()
    arguments = ["--expdir", str(tmp_path), "--recipe", "egs2/x", "--test_sets"]
    results.main([*arguments, "test"])
    assert "| speaker | words | teacher | student_stream full |" in (tmp_path / "RESULTS.md").read_text()
    assert "--test_sets" not in capsys.readouterr().out
    for path in list(tmp_path.glob("*/decode_full")):
        shutil.copytree(path / "test", path / "other")
    results.main([*arguments, "other"])
    assert "RESULTS.md: without test, which --test_sets does not name; its scores are kept\n" in capsys.readouterr().out


def test_names_and_values_are_shown_as_they_are(tmp_path, capsys):
    """Markdown, HTML and a terminal take nothing in them for their own."""
    make(tmp_path, "teacher", "decode_full", [[5, 1], [5, 0]], None)
    make(tmp_path, "student_stream", "decode_480ms", [[5, 1], [5, 1]], 480, decoder="beam")
    bad = "<img src=x> | `code` [a](http://b)\n# title \x1b[2J"
    for path in tmp_path.glob("*/*/test"):
        about, score = path / "about.json", path / "score_wer/score.json"
        about.write_text(json.dumps({**json.loads(about.read_text()), "device": bad, "lm": bad}))
        speakers = {bad: [5, 1], "bob": [5, 1]}
        score.write_text(json.dumps({**json.loads(score.read_text()), "speakers": speakers}))
    results.main(["--expdir", str(tmp_path), "--test_sets", "test", "--recipe", bad])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "\x1b" not in text and "\n# title" not in text and "\x1b" not in capsys.readouterr().out
    outside_code = "".join(text.split("`")[::2])
    assert "<img" not in outside_code and "](http" not in outside_code.replace("\\]", "")
    (row,) = [line for line in text.splitlines() if line.startswith("| &lt;img")]
    (head,) = [line for line in text.splitlines() if line.startswith("| speaker")]
    assert row.replace("\\|", "").count("|") == head.count("|"), "no cell more than the head has"


def test_rows_and_table(tmp_path, capsys):
    make(tmp_path, "teacher", "decode_full", [[5, 1], [5, 0], [10, 1]], None)
    make(tmp_path, "student_stream", "decode_960ms", [[5, 1], [5, 1], [10, 1]], 960)
    make(tmp_path, "student_stream", "decode_160ms", [[5, 2], [5, 1], [10, 1]], 160)
    results.main(["--expdir", str(tmp_path), "--test_sets", "test", "--recipe", "egs2/x"])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["system"], row["latency_ms"]) for row in rows] == [
        ("teacher", None),
        ("student_stream", 160),
        ("student_stream", 960),
    ]
    assert rows[1]["relative_loss"] == pytest.approx(100.0)
    assert rows[2]["relative_loss"] == pytest.approx(50.0)
    assert rows[1]["rtf"] == pytest.approx(0.025)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| student_stream | 160 ms | 20.00 (" in text and "8.0x" in text and "4.0x" in text
    assert "| student_stream | 160 ms | 20.00 (+100.0) | 0.12 M | 0.5 | 8.0x | 4.0x |" in capsys.readouterr().out
    beside = text.split("## Beside the paper")[1].split("\n## ")[0].splitlines()
    assert [line for line in beside if line.startswith("| ")][1:] == [
        "| teacher | full | 10.00 | 1.00 M | 4.0 | 1.0x | 1.0x |",
        "| student_stream | 160 ms | 20.00 (+100.0) | 0.12 M | 0.5 | 8.0x | 4.0x |",
        "| student_stream | 960 ms | 15.00 (+50.0) | 0.12 M | 0.5 | 8.0x | 4.0x |",
        "| *published* | 480 ms | (+9 to +23.4) | ? | ? | 12x | 8x |",
    ]
    espnet = text.split("## As ESPnet tabulates them")[1]
    assert "### WER" in espnet and "### TER" not in espnet
    assert "|student_stream/decode_160ms/test|3|20|80.0|20.0|0.0|0.0|20.0|100.0|" in espnet.split("### CER")[0]
    assert "|student_stream/decode_160ms/test|3|100|96.0|4.0|0.0|0.0|4.0|100.0|" in espnet.split("### CER")[1]


def test_systems_that_recognise_nothing_are_not_compared(tmp_path):
    make(tmp_path, "teacher", "decode_full", [[5, 5], [5, 5], [10, 9]], None)
    make(tmp_path, "student_stream", "decode_480ms", [[5, 1], [5, 1], [10, 1]], 480)
    make(tmp_path, "student_stream", "decode_full", [[5, 5], [5, 5], [10, 9]], None)
    results.main(["--expdir", str(tmp_path), "--test_sets", "test", "--recipe", "egs2/x"])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "**Warning:** on test more than 90 % is wrong of teacher, student_stream full; they are not" in text
    assert "take another" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| student_stream | 480 ms | 15.00 (")]
    assert line.split(" | ")[4:6] == ["-", "-"]  # relative loss and p
    assert "| student_stream | 480 ms | 15.00 | 0.12 M |" in text


def test_the_published_figures_stand_below_the_480_ms_of_every_decoder(tmp_path):
    for decoder, suffix in (("greedy", ""), ("beam", "_beam")):
        make(tmp_path, "teacher", f"decode_full{suffix}", [[5, 1], [5, 0]], None, decoder)
        make(tmp_path, "student_stream", f"decode_480ms{suffix}", [[5, 1], [5, 1]], 480, decoder)
        make(tmp_path, "student_stream", f"decode_960ms{suffix}", [[5, 1], [5, 0]], 960, decoder)
    results.main(["--expdir", str(tmp_path), "--test_sets", "test", "--recipe", "egs2/x"])
    beside = (tmp_path / "RESULTS.md").read_text().split("## Beside the paper")[1].split("\n## ")[0].splitlines()
    rows = [line.split(" | ")[0:3] for line in beside if line.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows].index("*published*") == 4
    assert rows[3] == ["| student_stream", "480 ms", "beam"]


def test_phones_without_a_lexicon_are_compared_by_their_tokens(tmp_path):
    make(tmp_path, "teacher", "decode_full", [[5, 1], [5, 0], [10, 1]], None)
    make(tmp_path, "student_full", "decode_full", [[5, 1], [5, 1], [10, 1]], None)
    for folder in tmp_path.glob("*/decode_full/test"):
        score = json.loads((folder / "score_wer/score.json").read_text())
        (folder / "score_ter").mkdir()
        (folder / "score_ter/score.json").write_text(json.dumps({**score, "ter": score.pop("wer")}))
        for unit in ("wer", "cer"):
            shutil.rmtree(folder / f"score_{unit}")
    results.main(["--expdir", str(tmp_path), "--test_sets", "test", "--recipe", "egs2/x"])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["wer"], row["words"], row["scores"]["ter"]["err"]) for row in rows] == [
        (None, None, 10.0),
        (None, None, 15.0),
    ]
    assert rows[1]["relative_loss"] == pytest.approx(50.0) and rows[1]["ter_low"] < 15 < rows[1]["ter_high"]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| TER % (95 %) |" in text and "Beside the paper" not in text and "### WER" not in text


def test_bootstrap_covers_the_estimate_and_narrows():
    rng = np.random.default_rng(1)
    small = np.stack([np.full(50, 4), rng.binomial(4, 0.1, 50)], 1)
    large = np.tile(small, (20, 1))
    narrow, wide = (bootstrap([errors], [None])[0] for errors in (large, small))
    wer = 100 * small[:, 1].sum() / small[:, 0].sum()
    for out in (narrow, wide):
        assert out["low"] < wer < out["high"]
    assert narrow["high"] - narrow["low"] < 0.5 * (wide["high"] - wide["low"])


def test_identical_systems_have_no_loss():
    errors = np.array([[3, 1], [4, 0], [2, 1], [5, 2]])
    _, out = bootstrap([errors, errors], [None, 0])
    assert out["relative_loss"] == pytest.approx(0)


def test_teacher_without_errors_gives_no_relative_loss():
    teacher, student = np.array([[3, 0], [4, 0]]), np.array([[3, 1], [4, 0]])
    assert "relative_loss" not in bootstrap([teacher, student], [None, 0])[1]


def test_decoders_are_compared_with_the_teachers_own(tmp_path, capsys):
    make(tmp_path, "teacher", "decode_full", [[5, 2], [5, 2], [10, 0]], None)
    make(tmp_path, "teacher", "decode_full_beam", [[5, 1], [5, 1], [10, 0]], None, "beam")
    make(tmp_path, "student_full", "decode_full_beam", [[5, 2], [5, 2], [10, 0]], None, "beam")
    results.main(["--expdir", str(tmp_path), "--test_sets", "test", "--recipe", "egs2/x"])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["system"], row["decoder"]) for row in rows] == [
        ("teacher", "greedy"),
        ("teacher", "beam"),
        ("student_full", "beam"),
    ]
    assert rows[2]["relative_loss"] == pytest.approx(100.0)
    assert rows[2]["lm_weight"] == 0.5
    assert "| student_full | full | beam | 20.00 (+100.0)" in capsys.readouterr().out
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| student_full | full | beam | 20.00" in text and "`lm.arpa`" in text
    assert "| ann | 5 | 40.0 | 20.0 | 40.0 |" in text and "| bob | 15 | 13.3 | 6.7 | 13.3 |" in text


def test_matched_pairs():
    rng = np.random.default_rng(0)
    words = np.full(400, 10)
    one, same, worse = (np.stack([words, rng.binomial(10, p, 400)], 1) for p in (0.1, 0.1, 0.15))
    assert matched_pairs(one, one) == 1.0
    assert matched_pairs(one, same) > 0.05
    assert matched_pairs(worse, one) < 1e-4
    assert matched_pairs(worse, one) == pytest.approx(matched_pairs(one, worse))
    d = np.array([1, 0, 1, 1, 0, 2, -1, 0])  # by hand: mean 0.5, sd 0.9258, z = 1.5275
    pair = np.stack([np.full(8, 5), d + 2], 1), np.stack([np.full(8, 5), np.full(8, 2)], 1)
    assert matched_pairs(*pair) == pytest.approx(0.12663, abs=1e-4)


def test_blocks_of_bootstrap_samples_continue_each_other(monkeypatch):
    errors = np.random.default_rng(2).integers(0, 9, (30, 2))
    whole = bootstrap([errors, errors[::-1]], [None, 0])
    monkeypatch.setattr("distill.scoring.significance.BLOCK", 1000)
    assert bootstrap([errors, errors[::-1]], [None, 0]) == whole


def test_scores_of_different_utterances_are_not_compared(tmp_path, capsys):
    make(tmp_path, "teacher", "decode_full", [[5, 2], [5, 2]], None)
    make(tmp_path, "student_full", "decode_full", [[5, 2], [5, 2], [1, 0]], None)
    with pytest.raises(SystemExit) as end:
        results.main(["--expdir", str(tmp_path), "--test_sets", "test", "--recipe", "egs2/x"])
    assert end.value.code == 2 and "student_full/decode_full/test: scores of 3 utterances" in capsys.readouterr().err


def test_trainings_that_were_moved_aside_are_no_systems(tmp_path):
    for name in ("student_stream_fixed1280", "student_stream_fixed320", "student_stream_fixed320.old-20260101-120000"):
        (tmp_path / name).mkdir()
    fixed = [name for name in find_systems(tmp_path) if "fixed" in name]
    assert fixed == ["student_stream_fixed320", "student_stream_fixed1280"]
