"""Gather every score of an experiment in results.json, and make RESULTS.md from that file alone.

A row of results.json is a system on a test set at a latency with a decoder. Its ``scores`` hold counts and error rates
of words (wer), characters (cer) and tokens (ter). A phone model decoded without a lexicon gives no words: ``wer`` is
then null, and intervals and relative loss are those of its tokens. ``rtf`` is the real-time factor of the
``rtf_utterances`` utterances that were recognised one at a time; the others were recognised in batches. A system is
compared with the teacher that was decoded in the same way; :mod:`distill.scoring.significance` gives intervals and p
values.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from distill.decode.settings import DECODERS
from distill.errors import UserError
from distill.files import atomic_write
from distill.scoring.significance import bootstrap, matched_pairs
from distill.scoring.tables import FIXED, PUBLISHED, literal, paper_table, results_page, warnings

SYSTEMS = ("teacher", "student_full", "student_full_no_kd", "student_stream")

Row = dict[str, Any]


def write_results(expdir: Path, test_sets: str, recipe: str) -> None:
    """Write EXPDIR/results.json and EXPDIR/RESULTS.md, and print the latter's warnings and its first table.

    Args:
        expdir: holds SYSTEM/decode_*/TEST_SET, decoded and scored.
        test_sets: their names, separated by spaces.
        recipe: name of the recipe, for the heading.
    """
    rows = collect(expdir, test_sets.split())
    left_out = sorted(sets_in(expdir / "results.json") - set(test_sets.split()))
    results = {"recipe": recipe, "environment": environment(), "published": PUBLISHED, "rows": rows}
    with atomic_write(expdir / "results.json") as stream:
        json.dump(results, stream, indent=1)
    page = results_page(json.loads((expdir / "results.json").read_text(encoding="utf-8")))
    with atomic_write(expdir / "RESULTS.md") as stream:
        stream.write(page)
    rows = literal(rows)
    for line in warnings(rows):
        print(f"warning: {line}")
    if word_rows := [row for row in rows if row["wer"] is not None]:
        print("\n".join(paper_table(word_rows)))
    if left_out:
        names = ", ".join(left_out)
        print(f"{expdir / 'RESULTS.md'}: without {names}, which --test_sets does not name; its scores are kept")
    print(f"{expdir / 'RESULTS.md'}: the same with intervals, by test set and speaker")


def sets_in(file: Path) -> set[str]:
    """Names of the test sets in a results.json; none if it cannot be read."""
    try:
        return {row["test_set"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def find_systems(expdir: Path) -> list[str]:
    """Names of the systems an experiment may hold, with the students for one chunk length that are there."""
    chunks = [path.name.removeprefix(FIXED) for path in expdir.glob(f"{FIXED}*")]
    # Not what a changed training was moved aside to: student_stream_fixed320.old-<date>
    return [*SYSTEMS, *(f"{FIXED}{chunk}" for chunk in sorted(filter(str.isdecimal, chunks), key=int))]


def collect(expdir: Path, test_sets: list[str]) -> list[Row]:
    """A row for each system, test set, latency and decoder that has been scored.

    Raises:
        UserError: nothing is scored, something is decoded but not scored, or scores are of different utterances.
    """
    systems = find_systems(expdir)
    rows: list[Row] = []
    for test_set in test_sets:
        found = [path for system in systems for path in sorted(expdir.glob(f"{system}/decode_*/{test_set}"))]
        # Of jobs that failed at once nothing is there but a note of what they began with.
        decode_dirs = [path for path in found if {file.name for file in path.iterdir()} - {"made_from"}]
        if decode_dirs:
            rows += compare(decode_dirs, [read_scores(decode_dir) for decode_dir in decode_dirs])
    if not rows:
        raise UserError(f"{expdir}: no scores there; run stages 12 and 13")
    rows.sort(
        key=lambda row: (
            test_sets.index(row["test_set"]),
            systems.index(row["system"]),
            row["latency_ms"] or math.inf,
            DECODERS.index(row["decoder"]),
        )
    )
    return rows


def read_scores(decode_dir: Path) -> tuple[Row, np.ndarray]:
    """A row without comparisons, and (N, 2) words and errors of each utterance.

    Where words were not scored, tokens stand in for them.
    """
    scores = {}
    for unit in ("wer", "cer", "ter"):
        score_file = decode_dir / f"score_{unit}" / "score.json"
        if score_file.is_file():
            scores[unit] = json.loads(score_file.read_text(encoding="utf-8"))
    if not scores:
        raise UserError(f"{decode_dir}: decoded but not scored; run stage 13")
    unit = "wer" if "wer" in scores else "ter"
    score = scores[unit]
    about = json.loads((decode_dir / "about.json").read_text(encoding="utf-8"))
    row = {
        "system": decode_dir.parts[-3],
        "test_set": decode_dir.name,
        "latency_ms": about["chunk_ms"],
        "decoder": about.get("decoder", "greedy"),
        **{key: about[key] for key in ("lm", "lm_weight", "word_bonus") if key in about},
        **{key: score[key] if unit == "wer" else None for key in ("wer", "sub", "del", "ins", "words")},
        "utterances": score["utterances"],
        "scores": {name: summary(name, unit_score) for name, unit_score in scores.items()},
        **{key: about[key] for key in ("params", "model_bytes", "threads")},
        "device": about.get("device", "cpu"),
        "audio_s": score["audio_s"],
        "rtf": score["compute_s"] / score["timed_s"] if score["timed_s"] else None,
        "rtf_utterances": score["timed_utterances"],
        "scorer": score["scorer"],
        "scoring": score.get("scoring", "plain"),
        "speakers": score.get("speakers", {}),
    }
    return row, np.array(score["errors"])


def compare(decode_dirs: list[Path], scored: list[tuple[Row, np.ndarray]]) -> list[Row]:
    """The rows of one test set with intervals, and with relative loss and p value against the teacher."""
    teacher_of_decoder: dict[str, int] = {}
    for index, (row, errors) in enumerate(scored):
        if len(errors) != len(scored[0][1]):
            raise UserError(
                f"{decode_dirs[index]}: scores of {len(errors)} utterances, but {decode_dirs[0]} has "
                f"{len(scored[0][1])}; decode and score again (stages 12 and 13)"
            )
        if row["system"] == "teacher":
            teacher_of_decoder[row["decoder"]] = index
    teachers = [None if row["system"] == "teacher" else teacher_of_decoder.get(row["decoder"]) for row, _ in scored]
    intervals = bootstrap([errors for _, errors in scored], teachers)
    rows = []
    for (row, errors), teacher, interval in zip(scored, teachers, intervals, strict=True):
        unit = "ter" if row["wer"] is None else "wer"
        row |= {f"{unit}_{name}" if name in ("low", "high") else name: value for name, value in interval.items()}
        if teacher is not None:
            row["p_value"] = matched_pairs(errors, scored[teacher][1])
        rows.append(row)
    return rows


def summary(unit: str, score: dict[str, Any]) -> dict[str, float]:
    """Counts of a score in one unit, and its error rate in per cent (``err``)."""
    counts = {name: score[name] for name in ("sub", "del", "ins", "utterances", "wrong_utterances")}
    return {"err": score.get(unit, 0.0), "units": score["words"], **counts}


def environment() -> dict[str, str]:
    """Date, machine and versions, as ESPnet's RESULTS.md gives them."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: metadata.version(name) for name in ("espnet", "torch", "transformers")},
        "git commit": commit or "none",
    }
