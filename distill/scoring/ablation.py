"""A table of trainings that differ from a reference in one thing each, over several random seeds.

Trainings of the kinds ``stream`` and ``direct`` are compared with the condition ``stream``, the others with
``default``, seed by seed: the students of a seed share teacher, data and test sets.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from distill.errors import UserError
from distill.files import atomic_write, json_object

REFERENCES = ("default", "stream")  # conditions that others are compared with
STREAMING = ("stream", "direct")  # kinds that are decoded at 480 ms; the others with full context
SYSTEMS = {"stream": "student_stream", "no_kd": "student_full_no_kd"}  # by kind; all other kinds: student_full

WersBySeed = dict[int, float]  # WER in per cent by seed
KnownWers = dict[tuple[str, str], WersBySeed]  # by condition and test set


class Condition(NamedTuple):
    """A training: its name, its kind (full, no_kd, stream or direct), and what differs, for the reader."""

    name: str
    kind: str
    what: str

    @property
    def streaming(self) -> bool:
        return self.kind in STREAMING


def write_ablation(expdir: Path, test_sets: str, note: str, also: list[Path], conditions: Iterable[str]) -> None:
    """Write EXPDIR/ablation.json and, from it, EXPDIR/ABLATION.md, and print the latter.

    Args:
        expdir: holds NAME_seedN/SYSTEM/decode_*/TEST_SET, scored.
        test_sets: their names, separated by spaces.
        note: how long the trainings were, for the heading; tables with other notes cannot be joined.
        also: ablation.json of the same trainings with other seeds.
        conditions: lines of name, kind and what differs, separated by tabs.
    """
    parsed = read_conditions(conditions)
    rows = collect(expdir, parsed, test_sets.split(), read_known(also, note))
    if not rows:
        raise UserError(f"{expdir}: no scores there; run a condition first")
    with atomic_write(expdir / "ablation.json") as stream:
        json.dump({"note": note, "rows": rows}, stream, indent=1, ensure_ascii=False)
    page = ablation_page(json.loads((expdir / "ablation.json").read_text(encoding="utf-8")))
    with atomic_write(expdir / "ABLATION.md") as stream:
        stream.write(page)
    print(page)


def read_conditions(lines: Iterable[str]) -> list[Condition]:
    """Conditions from lines of three fields separated by tabs."""
    conditions = []
    for number, line in enumerate(lines, 1):
        fields = line.rstrip("\n").split("\t")
        if len(fields) != 3:
            raise UserError(f"stdin:{number}: expected name, kind and what differs, separated by tabs")
        conditions.append(Condition(*fields))
    return conditions


def read_known(paths: list[Path], note: str) -> KnownWers:
    """WERs in ablation.json files of other runs, which must have the same note."""
    known: KnownWers = {}
    for path in paths:
        report = json_object(path.read_text(encoding="utf-8"), str(path), "give an ablation.json")
        if report.get("note") != note:
            raise UserError(f"{path}: of other trainings ({report.get('note')}, not {note}); give one with that note")
        for row in report["rows"]:
            wers = {int(seed): wer for seed, wer in row["wer"].items()}
            known.setdefault((row["condition"], row["test_set"]), {}).update(wers)
    return known


def read_wers(expdir: Path, condition: Condition, test_set: str) -> WersBySeed:
    """WERs of a condition in the experiment's directory."""
    system = SYSTEMS.get(condition.kind, "student_full")
    trained_in = "default" if condition.kind == "no_kd" else condition.name
    latency = "480ms" if condition.streaming else "full"
    wers = {}
    for path in expdir.glob(f"{trained_in}_seed*/{system}/decode_{latency}/{test_set}/score_wer/score.json"):
        seed = path.relative_to(expdir).parts[0].removeprefix(f"{trained_in}_seed")
        wers[int(seed)] = json.loads(path.read_text(encoding="utf-8"))["wer"]
    return wers


def collect(expdir: Path, conditions: list[Condition], test_sets: list[str], known: KnownWers) -> list[dict[str, Any]]:
    """A row for each condition and test set with scores in ``expdir`` or ``known``; those in ``expdir`` win."""
    wers = {
        (condition.name, test_set): dict(
            sorted({**known.get((condition.name, test_set), {}), **read_wers(expdir, condition, test_set)}.items())
        )
        for condition in conditions
        for test_set in test_sets
    }
    rows = []
    for condition in conditions:
        for test_set in test_sets:
            wer = wers[condition.name, test_set]
            if not wer:
                continue
            row: dict[str, Any] = {
                "condition": condition.name,
                "what": condition.what,
                "streaming": condition.streaming,
                "test_set": test_set,
                "wer": wer,
            }
            reference = wers.get(("stream" if condition.streaming else "default", test_set), {})
            differences = [wer[seed] - reference[seed] for seed in wer.keys() & reference.keys()]
            if condition.name not in REFERENCES and differences:
                row |= {"difference": statistics.mean(differences), "interval": mean_interval(differences)}
            rows.append(row)
    return rows


def mean_interval(differences: list[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of n normally distributed differences, mean ± t(n - 1) s / √n (Student 1908).

    None for fewer than two.
    """
    if len(differences) < 2:
        return None
    from scipy.stats import t

    half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.mean(differences)
    return mean - half, mean + half


def ablation_page(report: dict[str, Any]) -> str:
    """Text of ABLATION.md from the content of ablation.json."""
    rows = report["rows"]
    test_sets = list(dict.fromkeys(row["test_set"] for row in rows))
    lines = [
        f"{report['note']}. WER in %: mean over the seeds (each seed's); difference from the first line of its table,"
        " with its 95 % interval over the seeds, in bold where the interval does not contain 0."
    ]
    for streaming, title in ((False, "Stage 1, full context"), (True, "Stage 2, 480 ms")):
        stage_rows = [row for row in rows if row["streaming"] == streaming]
        if not stage_rows:
            continue
        lines += ["", f"**{title}**", "", "| | " + " | ".join(f"{name} | difference" for name in test_sets) + " |"]
        lines.append("|---" * (1 + 2 * len(test_sets)) + "|")
        for what in dict.fromkeys(row["what"] for row in stage_rows):
            cells = []
            for test_set in test_sets:
                row = next((r for r in stage_rows if (r["what"], r["test_set"]) == (what, test_set)), None)
                cells += ["", ""] if row is None else table_cells(row)
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table_cells(row: dict[str, Any]) -> list[str]:
    """WER and difference of one row."""
    each = " ".join(f"{wer:.2f}" for wer in row["wer"].values())
    wer = f"{statistics.mean(row['wer'].values()):.2f} ({each})"
    if "difference" not in row:
        return [wer, ""]
    text = f"{row['difference']:+.2f}"
    if row["interval"] is not None:
        low, high = row["interval"]
        text += f" ({low:+.2f}..{high:+.2f})"
        if low > 0 or high < 0:
            text = f"**{text}**"
    return [wer, text]
