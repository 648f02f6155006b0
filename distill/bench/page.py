#!/usr/bin/env python
"""docs/performance.md from what the benchmarks of one run wrote.

    make bench
    python -m distill.bench.page --results exp_bench --output docs/performance.md

Reads NAME.json of each distill/bench/NAME.py in --results; a benchmark that is not there has no section.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.errors import UserError, cli
from distill.files import atomic_write

LARGE = "large"
NAMES = {"base": "wav2vec 2.0 Base", "large": "wav2vec 2.0 Large", **{f"s{n}": f"S{n}" for n in range(1, 6)}, "f": "F"}
# Times faster and smaller than Large that were aimed at, streaming at 480 ms on one thread, by student and weights
AIMS = {("s3", "float32"): (4, 11.8), ("s5", "float32"): (8, 14), ("f", "float32"): (20, 12), ("f", "int8"): (30, 40)}
PRODUCTS = ("Gemm", "DynamicQuantizeMatMul")  # of activations and weights, as onnxruntime calls them


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), ""]


def spread(figure: dict[str, float], form: str = ".4f") -> str:
    """``0.0271 (0.0269–0.0280)``."""
    return f"{figure['median']:{form}} ({figure['least']:{form}}–{figure['largest']:{form}})"


def times(figure: dict[str, float]) -> str:
    """``20.2x (18.4–20.5)``."""
    return f"{figure['median']:.1f}x ({figure['least']:.1f}–{figure['largest']:.1f})"


class Speed:
    """speed.json, looked up by what was measured."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.sizes: dict[str, dict[str, float]] = report["sizes"]
        self.rows: list[dict[str, Any]] = report["rows"]
        self.profiles: dict[str, dict[str, dict[str, Any]]] = report["profiles"]

    def find(self, system: str, latency_ms: int | None, runtime: str = "torch", threads: int = 1) -> dict[str, Any]:
        """The measurement; the faster one of a teacher's."""
        found = [
            row
            for row in self.rows
            if (row["system"], row["latency_ms"], row["threads"]) == (system, latency_ms, threads)
            and row["runtime"].split(" (")[0] == runtime
        ]
        return min(found, key=lambda row: row["rtf"]["median"])

    @property
    def students(self) -> list[str]:
        """Those that were measured."""
        return [system for system in self.sizes if system not in ("base", LARGE)]

    def faster(self, system: str, runtime: str) -> dict[str, float]:
        """Than Large's median with full context; the student streams at 480 ms, both on one thread."""
        large, own = self.find(LARGE, None)["rtf"]["median"], self.find(system, 480, runtime)["rtf"]
        return {"median": large / own["median"], "least": large / own["largest"], "largest": large / own["least"]}

    def smaller(self, system: str, kind: str) -> float:
        """Than Large in float32."""
        return self.sizes[LARGE]["float32_bytes"] / self.size(system, kind)

    def size(self, system: str, kind: str) -> float:
        """Bytes of the weights in float32, or of the file in int8."""
        return self.sizes[system]["float32_bytes" if kind == "float32" else "onnx_int8_bytes"]


def against_the_teacher(speed: Speed) -> list[str]:
    large = speed.find(LARGE, None)
    lines = [
        "## Against the teacher",
        "",
        f"Students stream at 480 ms; Large computes 15 s at once, {spread(large['rtf'])} of real time, with the "
        f"faster of its two ways to compute attention ({large['runtime'].split('(')[1][:-1]}). All on one thread; in "
        "brackets what the student's slowest and fastest rounds give. The paper publishes 8 times faster and 12 times "
        "smaller.",
    ]
    rows = []
    for system in speed.students:
        cells = [NAMES[system]]
        for kind in ("float32", "int8"):
            cells.append(f"{speed.size(system, kind) / 1e6:.1f} MB, {speed.smaller(system, kind):.1f}x")
        cells += [times(speed.faster(system, name)) for name in ("torch", "onnxruntime float32", "onnxruntime int8")]
        rows.append(cells)
    head = ("student", "size, smaller", "int8: size, smaller", "faster: torch", "onnxruntime", "onnxruntime int8")
    lines += table(head, rows)
    rows, obstacles = [], []
    for (system, kind), (faster, smaller) in AIMS.items():
        if system in speed.sizes:
            runtimes = [f"onnxruntime {kind}"] + (["torch"] if kind == "float32" else [])
            own = max((speed.faster(system, name) for name in runtimes), key=lambda figure: figure["median"])
            small = speed.smaller(system, kind)
            rows.append(
                [f"{NAMES[system]}, {kind}", f"{faster}x", times(own) + ("" if own["median"] >= faster else ", missed")]
                + [f"{smaller}x", f"{small:.1f}x{'' if small >= smaller else ', missed'}"]
            )
            if own["median"] < faster and system in speed.profiles:
                takes = 480 * speed.find(system, 480, f"onnxruntime {kind}")["rtf"]["median"]
                reading = speed.profiles[system][kind]["reading_ms"]
                obstacles.append(
                    f"- {NAMES[system]}, {kind}: a chunk takes {takes:.1f} ms and may take "
                    f"{480 * large['rtf']['median'] / faster:.1f}; {reading:.1f} ms are what reading the weights takes."
                )
    lines += ["What was aimed at, in whichever runtime is faster:"]
    lines += table(("student", "faster: aim", "reached", "smaller: aim", "reached"), rows)
    if obstacles:
        lines += [
            "What stands in the way: a student reads all its weights for every chunk, Large once in 15 s; and besides "
            "products with weights a chunk is hundreds of small calls ([below](#where-the-time-goes)).",
            "",
            *obstacles,
            "",
        ]
    return lines


def size_and_computation(speed: Speed) -> list[str]:
    lines = [
        "## Size and computation",
        "",
        "Multiply-adds per second of audio, in utterances of 15 s with full context, as torch counts them while they "
        "are computed (the Fourier transform of the log-mel is not counted), and by [plan.md](plan.md)'s formulae.",
    ]
    rows = []
    for system, size in speed.sizes.items():
        int8 = f"{size['onnx_int8_bytes'] / 1e6:.1f}" if "onnx_int8_bytes" in size else "-"
        fewer = speed.sizes[LARGE]["gmacs"] / size["gmacs"]
        rows.append(
            [NAMES[system], f"{size['params'] / 1e6:.1f}", f"{size['float32_bytes'] / 1e6:.1f}", int8]
            + [f"{size['gmacs']:.2f}", f"{size['formula_gmacs']:.2f}", f"{fewer:.1f}x"]
        )
    head = ("network", "M parameters", "float32 MB", "int8 MB", "GMAC/s counted", "by formula", "fewer than Large")
    return lines + table(head, rows)


def real_time_factors(speed: Speed) -> list[str]:
    lines = [
        "## Real-time factors",
        "",
        "Computation over length of audio, median (least–largest) of the rounds. Full context: 15 s at once.",
        "",
        "In torch:",
    ]
    rows = []
    for system in speed.sizes:
        for threads in (1, 2):
            cells = [NAMES[system], str(threads), spread(speed.find(system, None, "torch", threads)["rtf"])]
            for chunk_ms in (160, 320, 480, 960):
                measured = system in speed.students and (threads == 1 or chunk_ms == 480)
                cells.append(spread(speed.find(system, chunk_ms, "torch", threads)["rtf"]) if measured else "-")
            rows.append(cells)
    lines += table(("network", "threads", "full context", "160 ms", "320 ms", "480 ms", "960 ms"), rows)
    lines += ["In onnxruntime with huge pages ([deploy.md](deploy.md)), streaming at 480 ms:"]
    rows = []
    for system in speed.students:
        kinds = [(kind, threads) for threads in (1, 2) for kind in ("float32", "int8")]
        figures = [speed.find(system, 480, f"onnxruntime {kind}", threads)["rtf"] for kind, threads in kinds]
        rows.append([NAMES[system], *map(spread, figures)])
    head = ("student", "float32, 1 thread", "int8, 1 thread", "float32, 2 threads", "int8, 2 threads")
    return lines + table(head, rows)


def profiles(speed: Speed) -> list[str]:
    lines = [
        "## Where the time goes",
        "",
        "Milliseconds of a chunk of 480 ms in onnxruntime, one thread, by operator, as its profiler has them (which "
        "costs time itself), with the number of calls. A chunk is 12 frames of F and 24 of the others, so a product "
        "does as many multiply-adds for each weight that it reads; the last line is what it takes numpy to add up as "
        "many bytes.",
        "",
    ]
    for system, profile in speed.profiles.items():
        lines += [f"### {NAMES[system]}", ""]
        kinds = list(profile)
        took = [profile[kind]["operators"] for kind in kinds]
        for kind, operators in zip(kinds, took, strict=True):
            everything = sum(cell["ms"] for cell in operators.values())
            products = sum(cell["ms"] for name, cell in operators.items() if name in PRODUCTS)
            calls = sum(cell["calls"] for name, cell in operators.items() if name not in PRODUCTS)
            reading, rest = profile[kind]["reading_ms"], everything - products
            lines.append(
                f"- {kind}: {products:.1f} of {everything:.1f} ms are products with weights, where reading these takes "
                f"{reading:.1f} ms; the rest are {calls:.0f} calls of {rest:.1f} ms"
            )
        none = {"ms": 0.0, "calls": 0.0}
        rows = []
        names = {name for operators in took for name in operators}
        for name in sorted(names, key=lambda name: -max(operators.get(name, none)["ms"] for operators in took)):
            cells = [operators.get(name, none) for operators in took]
            if max(cell["ms"] for cell in cells) > 0.1:
                rows.append([name, *(f"{cell['ms']:.2f} ({cell['calls']:.0f})" for cell in cells)])
        rows.append(["all", *(f"{sum(cell['ms'] for cell in operators.values()):.2f}" for operators in took)])
        rows.append(["reading the weights", *(f"{profile[kind]['reading_ms']:.2f}" for kind in kinds)])
        lines += table(("operator", *kinds), rows)
    return lines if speed.profiles else []


def exports(report: dict[str, Any]) -> list[str]:
    lines = ["## Exported", "", "Chunks of 480 ms on one thread, time of the processor, by turns."]
    rows = [
        [NAMES[row["student"]], row["runtime"].replace("_", "-onnx "), f"{row['mb']:.1f}", f"{row['size_ratio']:.2f}"]
        + [f"{row['ms_per_chunk']:.1f} ({row['ms_range'][0]:.1f}–{row['ms_range'][1]:.1f})"]
        + [f"{row['times_as_fast_as_torch']:.2f} ({row['ratio_range'][0]:.2f}–{row['ratio_range'][1]:.2f})"]
        for row in report["rows"]
    ]
    return lines + table(("student", "runtime", "MB", "of torch's", "ms a chunk", "times as fast as torch"), rows)


def memory(speed: Speed) -> list[str]:
    lines = ["## Memory", "", "Largest resident memory of the whole process, Python and libraries included, in MB."]
    rows = []
    for system in speed.sizes:
        cells = [NAMES[system], f"{speed.find(system, None)['peak_mb']['median']:.0f}"]
        for runtime in ("torch", "onnxruntime float32", "onnxruntime int8"):
            known = system in speed.students
            cells.append(f"{speed.find(system, 480, runtime)['peak_mb']['median']:.0f}" if known else "-")
        rows.append(cells)
    head = ("network", "15 s at once", "480 ms: torch", "onnxruntime", "onnxruntime int8")
    return lines + table(head, rows)


def lfmmi(report: dict[str, Any]) -> list[str]:
    lines = [
        "## LF-MMI",
        "",
        f"The denominator's score and gradient for a batch, {report['threads']} threads, medians; k2 with the beam of "
        "8 that its recipes use, and torch's ctc_loss, which has no denominator to sum over, as a floor.",
    ]
    rows = []
    for row in report["speed"]:
        ours, k2, ctc = row["native_s"], row["k2_s"], row["ctc_loss_s"]
        shape = [str(row[name]) for name in ("batch", "frames", "vocab", "kind")]
        others = [f"{1000 * k2:.1f} ms, {k2 / ours:.1f}x" if k2 else "-", f"{1000 * ctc:.1f} ms, {ctc / ours:.2f}x"]
        rows.append([*shape, f"{1000 * ours:.1f} ms", *others])
    return lines + table(("B", "T", "V", "emissions", "this", "k2", "ctc_loss"), rows)


def training(report: dict[str, Any]) -> list[str]:
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
        seconds = step["seconds"]
        figure = {"median": statistics.median(seconds), "least": min(seconds), "largest": max(seconds)}
        ratio = f"{figure['median'] / plain:.2f}x"
        rows.append([names[name], f"{spread(figure, '.1f')} s", ratio, f"{step['peak_mb'] / 1000:.1f} GB"])
    return lines + table(("", "a step", "of a CTC step", "peak memory"), rows)


def scaling(report: dict[str, Any]) -> list[str]:
    lines = ["## Two processes", "", f"{NAMES[report['student']]} with CTC on the CPU, gradients averaged over gloo."]
    rows = [
        [f"{row['processes']} x {row['threads']}", f"{row['audio_s']:.0f} s", f"{spread(row['seconds'], '.2f')} s"]
        + [f"{row['gain']:.2f}x"]
        for row in report["rows"]
    ]
    return lines + table(("processes x threads", "audio of a step", "a step", "audio per second, of 1 x 1"), rows)


def sessions(report: dict[str, Any]) -> list[str]:
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


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="directory with speed.json and others")
    parser.add_argument("--output", type=Path, required=True, help="Markdown; the figures go beside it as JSON")
    args = parser.parse_args(argv)
    reports = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in args.results.glob("*.json")}
    if "speed" not in reports:
        raise UserError(f"{args.results}: has no speed.json; run make bench")
    about, speed = reports["speed"]["machine"], Speed(reports["speed"])
    lines = [
        "# Performance",
        "",
        f"Written by `make bench` in one run on {datetime.date.today():%d %B %Y}; all figures are beside it, in "
        "[performance.json](performance.json). Networks have their full size and random weights, on which speed does "
        "not depend. Absolute times are this machine's; ratios carry further.",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
    ]
    for section in (against_the_teacher, size_and_computation, real_time_factors, profiles, memory):
        lines += section(speed)
    more_sections = {"export": exports, "streaming": sessions, "lfmmi": lfmmi, "targets": training, "scaling": scaling}
    for name, more in more_sections.items():
        if name in reports:
            lines += more(reports[name])
    with atomic_write(args.output.with_suffix(".json")) as stream:
        json.dump(reports, stream, indent=1)
    with atomic_write(args.output) as stream:
        stream.write("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
