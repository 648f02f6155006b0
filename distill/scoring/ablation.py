"""A table of students that differ in one thing, over several seeds, from what decode and score left.

    python -m distill.bin.ablation --expdir exp_ablation --test_sets "test test_unseen" < conditions.tsv

reads a line per condition from stdin (name, kind, what differs; separated by tabs) and looks for its scores in
EXPDIR/NAME_seedN/student_*/decode_*/SET. Conditions of the kinds stream and direct are compared with ``stream``, the
others with ``default``, seed by seed: a seed's students share teacher, data and test sets. The interval of a difference
is the 95 % one of Student's t over the seeds, mean ± t(n - 1) s / sqrt(n); with one seed there is none. Writes
EXPDIR/ablation.json and, from it, EXPDIR/ABLATION.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

from distill.errors import UserError, cli
from distill.files import atomic_write, json_object

STREAMING = ("stream", "direct")
SYSTEMS = {"stream": "student_stream", "no_kd": "student_full_no_kd"}  # by kind; of all others student_full


def scores(expdir: Path, name: str, kind: str, test_set: str) -> dict[int, float]:
    """WER in per cent by seed."""
    system = SYSTEMS.get(kind, "student_full")
    trained_in = "default" if kind == "no_kd" else name
    latency = "480ms" if kind in STREAMING else "full"
    found = {}
    for path in expdir.glob(f"{trained_in}_seed*/{system}/decode_{latency}/{test_set}/score_wer/score.json"):
        seed = path.relative_to(expdir).parts[0].removeprefix(f"{trained_in}_seed")
        found[int(seed)] = json.loads(path.read_text(encoding="utf-8"))["wer"]
    return dict(sorted(found.items()))


def interval(differences: list[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of normally distributed differences (Student 1908); None for fewer than two."""
    if len(differences) < 2:
        return None
    from scipy.stats import t

    half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.mean(differences)
    return mean - half, mean + half


Known = dict[tuple[str, str], dict[int, float]]  # WER by seed, by condition and test set


def read_known(paths: list[Path], note: str) -> Known:
    """Scores in the ablation.json of other machines."""
    known: Known = {}
    for path in paths:
        report = json_object(path.read_text(encoding="utf-8"), str(path), "give an ablation.json")
        if report.get("note") != note:
            raise UserError(f"{path}: is of trainings that were otherwise ({report.get('note')}), not of {note}")
        for row in report["rows"]:
            found = {int(seed): wer for seed, wer in row["wer"].items()}
            known.setdefault((row["condition"], row["test_set"]), {}).update(found)
    return known


def collect(expdir: Path, conditions: list[list[str]], test_sets: list[str], known: Known) -> list[dict]:
    """A row for each condition and test set that has scores, here or in ``known``; those here count."""

    def all_scores(name: str, kind: str, test_set: str) -> dict[int, float]:
        return dict(sorted({**known.get((name, test_set), {}), **scores(expdir, name, kind, test_set)}.items()))

    rows = []
    references = {
        (kind in STREAMING, test_set): all_scores(name, kind, test_set)
        for name, kind, _ in conditions
        if name in ("default", "stream")
        for test_set in test_sets
    }
    for name, kind, what in conditions:
        for test_set in test_sets:
            wer = all_scores(name, kind, test_set)
            reference = references.get((kind in STREAMING, test_set), {})
            paired = [wer[seed] - reference[seed] for seed in wer.keys() & reference.keys()]
            if wer:
                row = {
                    "condition": name,
                    "what": what,
                    "streaming": kind in STREAMING,
                    "test_set": test_set,
                    "wer": wer,
                }
                if name not in ("default", "stream") and paired:
                    row |= {"difference": statistics.mean(paired), "interval": interval(paired)}
                rows.append(row)
    return rows


def render(report: dict) -> str:
    """ABLATION.md from ablation.json."""
    rows = report["rows"]
    test_sets = list(dict.fromkeys(row["test_set"] for row in rows))
    lines = [
        f"{report['note']}. WER in %: mean over the seeds (each seed's); difference from the first line of its table,"
        " with its 95 % interval over the seeds, in bold where that does not hold 0."
    ]
    for streaming, title in ((False, "Stage 1, full context"), (True, "Stage 2, 480 ms")):
        mine = [row for row in rows if row["streaming"] == streaming]
        if not mine:
            continue
        lines += ["", f"**{title}**", "", "| | " + " | ".join(f"{name} | difference" for name in test_sets) + " |"]
        lines.append("|---" * (1 + 2 * len(test_sets)) + "|")
        for what in dict.fromkeys(row["what"] for row in mine):
            cells = []
            for test_set in test_sets:
                row = next((r for r in mine if (r["what"], r["test_set"]) == (what, test_set)), None)
                cells += ["", ""] if row is None else cells_of(row)
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cells_of(row: dict) -> list[str]:
    """WER and difference of one row, for the table."""
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


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expdir", type=Path, required=True)
    parser.add_argument("--test_sets", required=True, help="names, separated by spaces")
    parser.add_argument("--note", required=True, help="how long the trainings were, for the heading")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="ablation.json of other machines, to join")
    args = parser.parse_args(argv)
    conditions = [line.rstrip("\n").split("\t") for line in sys.stdin]
    for number, condition in enumerate(conditions, 1):
        if len(condition) != 3:
            raise UserError(f"stdin:{number}: expected name, kind and what differs, separated by tabs")
    rows = collect(args.expdir, conditions, args.test_sets.split(), read_known(args.also, args.note))
    if not rows:
        raise UserError(f"{args.expdir}: no scores there; run a condition first")
    with atomic_write(args.expdir / "ablation.json") as stream:
        json.dump({"note": args.note, "rows": rows}, stream, indent=1, ensure_ascii=False)
    text = render(json.loads((args.expdir / "ablation.json").read_text(encoding="utf-8")))
    with atomic_write(args.expdir / "ABLATION.md") as stream:
        stream.write(text)
    print(text)


if __name__ == "__main__":
    main()
