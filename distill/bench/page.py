"""Write docs/performance.md from the results of the benchmarks.

    make bench
    python -m distill.bench.page --results exp_bench --output docs/performance.md

Reads NAME.json of each benchmark in --results; a benchmark whose file is missing has no section.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from distill.bench.parts import summarise, write_json
from distill.bench.speed_sections import (
    LARGE,
    NAMES,
    Speed,
    against_the_teacher,
    memory,
    profiles,
    real_time_factors,
    size_and_computation,
    spread,
    table,
)
from distill.errors import UserError, cli
from distill.files import atomic_write


def exports(report: dict[str, Any]) -> list[str]:
    """Exported models beside torch."""
    lines = ["## Exported", "", "Chunks of 480 ms on one thread, processor time, runtimes in turns."]
    rows = [
        [NAMES[row["student"]], row["runtime"].replace("_", "-onnx "), f"{row['mb']:.1f}", f"{row['size_ratio']:.2f}"]
        + [f"{row['ms_per_chunk']:.1f} ({row['ms_range'][0]:.1f}–{row['ms_range'][1]:.1f})"]
        + [f"{row['times_as_fast_as_torch']:.2f} ({row['ratio_range'][0]:.2f}–{row['ratio_range'][1]:.2f})"]
        for row in report["rows"]
    ]
    return lines + table(("student", "runtime", "MB", "of torch's", "ms a chunk", "times as fast as torch"), rows)


def lfmmi(report: dict[str, Any]) -> list[str]:
    """The denominator of LF-MMI beside k2's and CTC."""
    lines = [
        "## LF-MMI",
        "",
        f"Score and gradient of the denominator for a batch of B utterances of T frames, {report['threads']} threads, "
        f"medians (least), measured on {report['date']}; n-grams of {report['text']['sentences']} sentences of real "
        "text in V - 1 sentencepieces. "
        "Error: the largest difference of a score from the exact one, in nats; for k2 from the exact score of its own "
        "graph, which is icefall's and counts a listed bigram by back-off as well. ctc_loss is torch's, which has no "
        "denominator to sum over. A dash: not tried (V above 2001), or not done within ten minutes.",
    ]
    rows = []
    for row in report["rows"]:
        seconds, floor = row["seconds"], row["ctc_seconds"]
        cells = [str(row["batch"]), str(row["frames"]), str(row["pieces"] + 1), str(row["order"]), row["kind"]]
        cells.append(f"{row['listed']}")
        cells.append(f"{1000 * seconds['median']:.0f} ms ({1000 * seconds['least']:.0f}), {row['error']:.1g}")
        k2 = {result["beam"]: result for result in row["k2"]}
        for beam in (8.0, 15.0):
            there = k2.get(beam)
            cells.append(f"{1000 * there['seconds']['median']:.0f} ms, {there['error']:.2g}" if there else "-")
        cells += [f"{1000 * floor['median']:.0f} ms", f"{row['added_mb']:.0f} MB"]
        rows.append(cells)
    head = ("B", "T", "V", "order", "emissions", "n-grams", "this, error", "k2 beam 8, error", "beam 15", "ctc_loss")
    return lines + table((*head, "memory of this"), rows)


def training(report: dict[str, Any]) -> list[str]:
    """A training step with and without a teacher."""
    steps = {name: report[name] for name in ("none", "stored", "online")}
    plain = statistics.median(steps["none"]["seconds"])
    lines = [
        "## A training step",
        "",
        f"S3 on {steps['none']['audio_s']:.0f} s of audio, all cores, Large as its teacher.",
    ]
    names = {"none": "CTC, no teacher", "stored": "distillation, stored targets", "online": "distillation, online"}
    rows = []
    for name, step in steps.items():
        figure = summarise(step["seconds"])
        ratio = f"{figure['median'] / plain:.2f}x"
        rows.append([names[name], f"{spread(figure, '.1f')} s", ratio, f"{step['peak_mb'] / 1000:.1f} GB"])
    return lines + table(("", "a step", "of a CTC step", "peak memory"), rows)


def scaling(report: dict[str, Any]) -> list[str]:
    """A training step in one process and in two."""
    lines = ["## Two processes", "", f"{NAMES[report['student']]} with CTC on the CPU, gradients averaged over gloo."]
    rows = [
        [f"{row['processes']} x {row['threads']}", f"{row['audio_s']:.0f} s", f"{spread(row['seconds'], '.2f')} s"]
        + [f"{row['gain']:.2f}x"]
        for row in report["rows"]
    ]
    return lines + table(("processes x threads", "audio of a step", "a step", "audio per second, of 1 x 1"), rows)


def bfloat16(report: dict[str, Any]) -> list[str]:
    """A training step in float32 and in bfloat16."""
    lines = [
        "## bfloat16 on a CPU",
        "",
        f"Networks of conf/from_scratch/small on {report['audio_s']:.0f} s of audio with CTC, 1 thread, measured on "
        f"{report['date']} on a processor {'with' if report['native'] else 'without'} instructions for it.",
    ]
    rows = []
    for row in report["rows"]:
        gain = row["float32"]["median"] / row["bfloat16"]["median"]
        rows.append(
            [row["training"], *(f"{spread(row[kind], '.2f')} s" for kind in ("float32", "bfloat16")), f"{gain:.2f}x"]
        )
    return lines + table(("training", "float32", "bfloat16 (`cpu_bfloat16: true`)", "faster"), rows)


def sessions(report: dict[str, Any]) -> list[str]:
    """Many streams in one process."""
    lines = ["## Many sessions", "", "Streams at 480 ms in torch on one thread."]
    rows = [
        [
            NAMES[row["name"]],
            f"{row['chunk_median_ms']:.1f} ms ({row['chunk_p99_ms']:.1f})",
            f"{row['together_gain']:.2f}x",
        ]
        for row in report["students"]
    ]
    head = ("student", "a chunk, median (99 %)", f"{report['sessions']} sessions in one batch, faster than in turn")
    return lines + table(head, rows)


def streams(report: dict[str, Any]) -> list[str]:
    """Streams in real time on one core, by runtime."""
    lines = [
        "## Streams on one core",
        "",
        f"Streams in real time, at 480 ms, of which 99 of 100 results are at most {report['late_ms']:.0f} ms late; "
        f"counted in processor time, measured on {report['date']}. The grid of numbers is coarse.",
    ]
    rows = [
        [NAMES[row["student"]], row["runtime"], str(row["streams"])]
        + [f"{row['median_ms']:.0f} ms", f"{row['p99_ms']:.0f} ms", f"{100 * row['busy']:.0f} %"]
        for row in report["rows"]
    ]
    lines += table(("student", "runtime", "streams", "late, median", "99 %", "of the core"), rows)
    return [*lines, *(line for remark in report.get("remarks", ()) for line in (remark, ""))]


def large(report: dict[str, Any]) -> list[str]:
    """Large in two runtimes, and how many times faster students are than in each."""
    whole = {row["runtime"]: row["rtf"] for row in report["rows"] if row["network"] == LARGE}
    lines = [
        "## Large in its faster runtime",
        "",
        "Large computes 15 s at once, students stream at 480 ms, all on one thread of "
        f"{report['processor']} with huge pages; least processor time, measured on {report['date']} "
        "(`python -m distill.bench.large`).",
    ]
    rows = []
    for row in report["rows"]:
        ratios = [f"{rtf / row['rtf']:.1f}x" if row["network"] != LARGE else "-" for rtf in whole.values()]
        rows.append([NAMES[row["network"]], row["runtime"], f"{row['mb']:.1f}", f"{row['rtf']:.4f}", *ratios])
    head = ("network", "runtime", "MB", "of real time", *(f"faster than Large in {runtime}" for runtime in whole))
    lines += table(head, rows)
    return [*lines, *(line for remark in report.get("remarks", ()) for line in (remark, ""))]


def int4(report: dict[str, Any]) -> list[str]:
    """Weights of 4 bits beside float32 and int8."""
    lines = [
        "## Weights of 4 bits",
        "",
        f"A chunk of 480 ms on one thread, least processor time, measured on {report['date']} "
        "(`python -m distill.bench.int4`). A format is worth exporting where it is no slower than int8.",
    ]
    rows = [[NAMES[r["student"]], r["weights"], f"{r['mb']:.1f}", f"{r['ms']:.2f}"] for r in report["rows"]]
    return lines + table(("student", "weights", "MB", "ms a chunk"), rows)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="directory with the benchmarks' JSON files")
    parser.add_argument("--output", type=Path, required=True, help="Markdown; the figures go beside it as JSON")
    args = parser.parse_args(argv)
    reports = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in args.results.glob("*.json")}
    if "teacher_and_students" not in reports:
        raise UserError(f"{args.results}: has no teacher_and_students.json; run make bench")
    about, speed = reports["teacher_and_students"]["machine"], Speed(reports["teacher_and_students"])
    lines = [
        "# Performance",
        "",
        f"Written by `make bench` in one run on {datetime.date.today():%d %B %Y}; all figures are beside it, in "
        "[performance.json](performance.json). Networks have their full size and random weights; speed does not "
        "depend on the weights. Absolute times depend on the machine, ratios less so.",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
    ]
    for section in (against_the_teacher, size_and_computation, real_time_factors, profiles, memory):
        lines += section(speed)
    more_sections = {
        "large": large,
        "export": exports,
        "streaming": sessions,
        "streams": streams,
        "int4": int4,
        "lfmmi": lfmmi,
        "targets": training,
        "scaling": scaling,
        "bfloat16": bfloat16,
    }
    for name, more in more_sections.items():
        if name in reports:
            lines += more(reports[name])
    write_json(args.output.with_suffix(".json"), reports)
    with atomic_write(args.output) as stream:
        stream.write("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
