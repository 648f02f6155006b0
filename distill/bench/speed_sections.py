"""Sections of docs/performance.md on the speed and size of teacher and students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LARGE = "large"
NAMES = {"base": "wav2vec 2.0 Base", "large": "wav2vec 2.0 Large", **{f"s{n}": f"S{n}" for n in range(1, 6)}, "f": "F"}
# Aims: how many times faster and smaller than Large, streaming at 480 ms on one thread, by student and weights
AIMS = {("s3", "float32"): (4, 11.8), ("s5", "float32"): (8, 14), ("f", "float32"): (20, 12), ("f", "int8"): (30, 40)}
PRODUCTS = ("Gemm", "DynamicQuantizeMatMul")  # onnxruntime's operators that multiply activations with weights


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, with an empty line before and after."""
    return ["", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), ""]


def spread(figure: dict[str, float], form: str = ".4f") -> str:
    """Format a summary as ``0.0271 (0.0269–0.0280)``: median (least–largest)."""
    return f"{figure['median']:{form}} ({figure['least']:{form}}–{figure['largest']:{form}})"


def times(figure: dict[str, float]) -> str:
    """Format a summary of ratios as ``20.2x (18.4–20.5)``."""
    return f"{figure['median']:.1f}x ({figure['least']:.1f}–{figure['largest']:.1f})"


class Speed:
    """The measurements of distill/bench/teacher_and_students.py."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.sizes: dict[str, dict[str, float]] = report["sizes"]
        self.rows: list[dict[str, Any]] = report["rows"]
        self.profiles: dict[str, dict[str, dict[str, Any]]] = report["profiles"]

    def find(self, system: str, latency_ms: int | None, runtime: str = "torch", threads: int = 1) -> dict[str, Any]:
        """The row of a network (latency None: full context); the faster one of a teacher's two."""
        rows = [
            row
            for row in self.rows
            if (row["system"], row["latency_ms"], row["threads"]) == (system, latency_ms, threads)
            and row["runtime"].split(" (")[0] == runtime
        ]
        return min(rows, key=lambda row: row["rtf"]["median"])

    @property
    def students(self) -> list[str]:
        """The students that were measured."""
        return [system for system in self.sizes if system not in ("base", LARGE)]

    def faster(self, system: str, runtime: str) -> dict[str, float]:
        """How many times faster than Large with full context a student streams at 480 ms, both on one thread."""
        large, rtf = self.find(LARGE, None)["rtf"]["median"], self.find(system, 480, runtime)["rtf"]
        return {"median": large / rtf["median"], "least": large / rtf["largest"], "largest": large / rtf["least"]}

    def smaller(self, system: str, kind: str) -> float:
        """How many times smaller than Large in float32."""
        return self.sizes[LARGE]["float32_bytes"] / self.size(system, kind)

    def size(self, system: str, kind: str) -> float:
        """Bytes of the weights in float32, or of the file in int8."""
        return self.sizes[system]["float32_bytes" if kind == "float32" else "onnx_int8_bytes"]


def against_the_teacher(speed: Speed) -> list[str]:
    """Sizes and speeds of the students beside Large's."""
    large = speed.find(LARGE, None)
    lines = [
        "## Against the teacher",
        "",
        f"Students stream at 480 ms; Large computes 15 s at once, {spread(large['rtf'])} of real time, with the "
        f"faster of two attention implementations ({large['runtime'].split('(')[1][:-1]}). All on one thread; in "
        "brackets the student's slowest and fastest rounds. The paper publishes 8 times faster and 12 times "
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
    return lines + table(head, rows) + aims(speed, large["rtf"]["median"])


def aims(speed: Speed, large: float) -> list[str]:
    """Aims of size and speed, what was reached, and what limits the speed where an aim was missed.

    Args:
        speed: the measurements.
        large: real-time factor of Large.
    """
    rows, obstacles = [], []
    for (system, kind), (faster, smaller) in AIMS.items():
        if system in speed.sizes:
            runtimes = [f"onnxruntime {kind}"] + (["torch"] if kind == "float32" else [])
            reached = max((speed.faster(system, name) for name in runtimes), key=lambda figure: figure["median"])
            small, missed = speed.smaller(system, kind), reached["median"] < faster
            rows.append(
                [f"{NAMES[system]}, {kind}", f"{faster}x", times(reached) + (", missed" if missed else "")]
                + [f"{smaller}x", f"{small:.1f}x{'' if small >= smaller else ', missed'}"]
            )
            if missed and system in speed.profiles:
                chunk = 480 * speed.find(system, 480, f"onnxruntime {kind}")["rtf"]["median"]
                reading = speed.profiles[system][kind]["reading_ms"]
                obstacles.append(
                    f"- {NAMES[system]}, {kind}: a chunk takes {chunk:.1f} ms, and the aim allows "
                    f"{480 * large / faster:.1f}; reading the weights alone takes {reading:.1f} ms."
                )
    lines = ["The aims, in whichever runtime is faster:"]
    lines += table(("student", "faster: aim", "reached", "smaller: aim", "reached"), rows)
    if obstacles:
        lines += [
            "What limits the speed: a student reads all its weights for every chunk, Large once in 15 s; and besides "
            "products with weights a chunk needs hundreds of small calls ([below](#where-the-time-goes)).",
            "",
            *obstacles,
            "",
        ]
    return lines


def size_and_computation(speed: Speed) -> list[str]:
    """Parameters, bytes and multiply-adds of every network."""
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
    """Real-time factors in torch and in onnxruntime, on one thread and on two."""
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
    """Where onnxruntime spends its time in a chunk, by operator."""
    lines = [
        "## Where the time goes",
        "",
        "Milliseconds of a chunk of 480 ms in onnxruntime, one thread, by operator, as its profiler gives them (it "
        "costs time itself), with the number of calls. A chunk is 12 frames of F and 24 of the others, so a product "
        "does as many multiply-adds for each weight that it reads; the last line is how long numpy takes to sum as "
        "many bytes.",
        "",
    ]
    for system, profile in speed.profiles.items():
        lines += [f"### {NAMES[system]}", ""]
        kinds = list(profile)
        by_kind = [profile[kind]["operators"] for kind in kinds]
        for kind, operators in zip(kinds, by_kind, strict=True):
            everything = sum(cell["ms"] for cell in operators.values())
            products = sum(cell["ms"] for name, cell in operators.items() if name in PRODUCTS)
            calls = sum(cell["calls"] for name, cell in operators.items() if name not in PRODUCTS)
            reading, rest = profile[kind]["reading_ms"], everything - products
            lines.append(
                f"- {kind}: {products:.1f} of {everything:.1f} ms are products with weights, while reading the "
                f"weights takes {reading:.1f} ms; the rest are {calls:.0f} calls of {rest:.1f} ms"
            )
        none = {"ms": 0.0, "calls": 0.0}
        rows = []
        names = {name for operators in by_kind for name in operators}
        for name in sorted(names, key=lambda name: -max(operators.get(name, none)["ms"] for operators in by_kind)):
            cells = [operators.get(name, none) for operators in by_kind]
            if max(cell["ms"] for cell in cells) > 0.1:
                rows.append([name, *(f"{cell['ms']:.2f} ({cell['calls']:.0f})" for cell in cells)])
        rows.append(["all", *(f"{sum(cell['ms'] for cell in operators.values()):.2f}" for operators in by_kind)])
        rows.append(["reading the weights", *(f"{profile[kind]['reading_ms']:.2f}" for kind in kinds)])
        lines += table(("operator", *kinds), rows)
    return lines if speed.profiles else []


def memory(speed: Speed) -> list[str]:
    """Peak memory of every network."""
    lines = ["## Memory", "", "Largest resident memory of the whole process, Python and libraries included, in MB."]
    rows = []
    for system in speed.sizes:
        cells = [NAMES[system], f"{speed.find(system, None)['peak_mb']['median']:.0f}"]
        for runtime in ("torch", "onnxruntime float32", "onnxruntime int8"):
            measured = system in speed.students
            cells.append(f"{speed.find(system, 480, runtime)['peak_mb']['median']:.0f}" if measured else "-")
        rows.append(cells)
    head = ("network", "15 s at once", "480 ms: torch", "onnxruntime", "onnxruntime int8")
    return lines + table(head, rows)
