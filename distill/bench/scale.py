"""What large corpora cost: time and memory of every step that reads a whole corpus, on synthetic tables of true size.

    make bench-scale
    python -m distill.bench.scale --output docs/scale.md --results exp_scale --share 0.1    # a tenth of the sizes

Each step runs in a process of its own, at several sizes; audio is a hard link, a teacher's outputs are one frame an
utterance, so that what is measured is the handling of a corpus and not the computation on its audio. What was measured
is kept in --results, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from distill.bench.parts import machine
from distill.bench.scale_inputs import (
    build_graph,
    check_data,
    check_targets,
    estimate_tokens,
    estimate_words,
    gather_results,
    make_data_directory,
    make_hypotheses,
    make_lm,
    make_results,
    make_targets,
    merge_targets,
    score_hypotheses,
    start_training,
    write_lengths,
)
from distill.bench.speed_sections import table
from distill.errors import UserError, cli
from distill.files import atomic_write

LIBRISPEECH, XL = 281_241, 8_282_988  # training utterances
UTTERANCES = (67_000, 267_000, 2_000_000)
MOST_GB = 3.0  # of a step at two million utterances
XL_SECONDS, XL_GB = 3600.0, 12.0


class Step(NamedTuple):
    """A step of a recipe.

    Attributes:
        what: the step, for the page.
        unit: what its size counts.
        sizes: that are measured; the last but one is LibriSpeech's where the step grows with the corpus.
        make: makes the input of a size; steps with the same one share it.
        run: what is measured.
        aim: size, seconds and gigabytes that are aimed at.
        xl: its size for GigaSpeech-XL; None if it does not grow with the corpus.
    """

    what: str
    unit: str
    sizes: tuple[int, ...]
    make: Callable[[int, Path], None] | None
    run: Callable[..., None]
    aim: tuple[int, float, float]
    xl: int | None = None


CORPUS = (UTTERANCES, make_targets)
NGRAMS, TEXTS, TESTS = (130_000, 1_300_000, 12_000_000), (31_000, 93_000, 281_000), (12_500, 25_000, 50_000)
MILLIONS = (2_000_000, math.inf, MOST_GB)
STEPS = {
    "check": Step(
        "stage 1: check of a directory with segments",
        "segments",
        UTTERANCES,
        make_data_directory,
        check_data,
        MILLIONS,
        XL,
    ),
    "denominator": Step(
        "stage 6: graph of order 3, 500 tokens",
        "sentences of 66 tokens",
        *(TEXTS, None, estimate_tokens, (281_000, math.inf, MOST_GB), XL),
    ),
    "targets": Step(
        "stage 8: check of unchanged targets", "utterances", *CORPUS, check_targets, (267_000, 10, MOST_GB), XL
    ),
    "merge": Step("stage 8: merge", "utterances", *CORPUS, merge_targets, MILLIONS, XL),
    "lengths": Step("stage 9: lengths", "utterances", *CORPUS, write_lengths, (267_000, 10, MOST_GB), XL),
    "start": Step("training: start with targets", "utterances", *CORPUS, start_training, (267_000, 15, MOST_GB), XL),
    "lm": Step(
        "stage 12: n-gram from text", "sentences of 33 words", TEXTS, None, estimate_words, (281_000, math.inf, 1.5)
    ),
    "graph": Step("stage 12: decoding graph, once", "n-grams", NGRAMS, make_lm, build_graph, (12_000_000, 600, 6)),
    "reuse": Step("stage 12: the graph in a job", "n-grams", NGRAMS, make_lm, build_graph, (12_000_000, 10, MOST_GB)),
    "score": Step(
        "stage 13: scoring without sclite",
        "utterances of 19 words",
        *(TESTS, make_hypotheses, score_hypotheses, (50_000, 60, MOST_GB)),
    ),
    "results": Step(
        "stage 13: results of 8 systems", "utterances", TESTS, make_results, gather_results, (50_000, 60, 1)
    ),
}


def status(field: str) -> float:
    """Gigabytes of a kind of this process's memory (Linux)."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1e6 if f"{field}:" in text else 0.0


def measure(name: str, size: int, folder: Path) -> None:
    """Run a step in this process and print what it took as a line of JSON."""
    step = STEPS[name]
    wall, cpu = time.perf_counter(), time.process_time()
    step.run(folder, *([] if step.make else [size]))
    took = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    took |= {"gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "private_gb": status("RssAnon")}
    print(json.dumps(took))


def child(*words: str) -> str:
    """Output of this module in a process of its own."""
    command = [sys.executable, "-m", "distill.bench.scale", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise UserError(f"{' '.join(command)}: failed; its error is above")
    return done.stdout


def run_all(results: Path, names: list[str], share: float, largest: int) -> dict[str, dict[str, Any]]:
    """Measure all that ``results`` has not got yet; what it has then, by step and size."""
    measured: dict[str, dict[str, Any]] = json.loads(results.read_text()) if results.exists() else {}
    wanted = [(name, round(size * share)) for name in names for size in STEPS[name].sizes if size * share <= largest]
    makers = dict.fromkeys((STEPS[name].make or STEPS[name].run, size) for name, size in wanted)
    for maker, size in makers:
        todo = [n for n, s in wanted if s == size and maker in (STEPS[n].make, STEPS[n].run)]
        todo = [n for n in todo if str(size) not in measured.get(n, {})]
        if not todo:
            continue
        with tempfile.TemporaryDirectory(dir=results.parent) as folder:
            if STEPS[todo[0]].make:
                child("--make", todo[0], "--size", str(size), "--folder", folder)
            if "reuse" in todo and "graph" not in todo:
                child("--measure", "graph", "--size", str(size), "--folder", folder)
            for name in todo:
                took = json.loads(child("--measure", name, "--size", str(size), "--folder", folder).splitlines()[-1])
                measured.setdefault(name, {})[str(size)] = took
                print(f"{name} {size}: {took['cpu']:.1f} s of a core, {took['gb']:.2f} GB", file=sys.stderr, flush=True)
                with atomic_write(results) as stream:
                    json.dump(measured, stream, indent=1)
    return measured


def fitted(sizes: dict[str, Any], size: int) -> tuple[float, float, float]:
    """Seconds and gigabytes at another size, and the exponent of growth.

    Seconds grow by the power law through the two largest sizes, at least linearly; memory by the line through them.
    """
    (before, first), (last, second) = sorted((int(n), took) for n, took in sizes.items())[-2:]
    exponent = math.log(second["cpu"] / first["cpu"]) / math.log(last / before)
    seconds = second["cpu"] * (size / last) ** max(1.0, exponent)
    slope = max(0.0, second["gb"] - first["gb"]) / (last - before)
    return seconds, second["gb"] + slope * (size - last), exponent


def page(measured: dict[str, dict[str, Any]]) -> str:
    """docs/scale.md."""
    lines = ["# What large corpora cost", ""]
    lines += [
        "Written by `make bench-scale`: each step of a recipe that reads a whole corpus, on synthetic tables, in a",
        "process of its own on one core. Seconds are processor time. Audio is hard links of one file, or in the",
        "largest sizes one ark, so that a file's status costs what it does when it is in memory. Trainings, and the",
        "decoding of audio, are in [plan.md](plan.md).",
    ]
    aims, growth, nodes = [], [], []
    for name, step in STEPS.items():
        sizes = measured.get(name, {})
        at, seconds, gb = step.aim
        if str(at) in sizes:
            took = sizes[str(at)]
            aim = ", ".join([f"{seconds:.0f} s"] * (seconds < math.inf) + [f"{gb:g} GB"])
            holds = "yes" if took["cpu"] <= seconds and took["gb"] <= gb else "no"
            aims.append([step.what, f"{at:,} {step.unit}", aim, f"{took['cpu']:.1f} s, {took['gb']:.2f} GB", holds])
        for size, took in sizes.items():
            growth.append([step.what, f"{int(size):,} {step.unit}", f"{took['cpu']:.1f}", f"{took['gb']:.2f}"])
        if len(sizes) > 1 and step.xl is not None:
            libri, xl = fitted(sizes, LIBRISPEECH), fitted(sizes, step.xl)
            holds = "yes" if xl[0] <= XL_SECONDS and xl[1] <= XL_GB else "no"
            nodes.append(
                [
                    step.what,
                    f"{xl[2]:.2f}",
                    f"{libri[0]:.0f} s, {libri[1]:.1f} GB",
                    f"{xl[0]:.0f} s, {xl[1]:.1f} GB",
                    holds,
                ]
            )
    lines += ["", "## Aims"]
    lines += table(("step", "size", "at most", "measured", "holds"), aims)
    if "reuse" in measured:
        size = max(measured["reuse"], key=int)
        took = measured["reuse"][size]
        lines += [
            f"A decoding graph is mapped into memory: of the {took['gb']:.2f} GB of a job with {int(size):,} n-grams",
            f"{took['private_gb']:.2f} GB are its own, the rest is shared by all jobs of a machine.",
            "",
        ]
    lines += [
        "## What a node needs",
        "",
        "By fitted growth: seconds by the power law through the two largest sizes, at least",
    ]
    lines += ["linearly, memory by the line through them. For GigaSpeech-XL at most an hour and 12 GB are aimed at."]
    lines += table(("step", "exponent", "LibriSpeech, 960 h", "GigaSpeech-XL", "holds"), nodes)
    lines += ["## Growth"]
    lines += table(("step", "size", "seconds", "GB"), growth)
    left_out = [
        f"{step.what} at {', '.join(f'{size:,}' for size in step.sizes if str(size) not in measured.get(name, {}))}"
        for name, step in STEPS.items()
        if any(str(size) not in measured.get(name, {}) for size in step.sizes)
    ]
    if left_out:
        lines += [f"Not measured in this run: {'; '.join(left_out)}.", ""]
    about = machine()
    lines += [f"On {about['processor']}, {about['memory']}; {about['software']}."]
    return "\n".join(lines) + "\n"


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/scale.md"), help="the page (default: docs/scale.md)")
    parser.add_argument(
        "--results", type=Path, default=Path("exp_scale"), help="folder of measurements (default: exp_scale)"
    )
    parser.add_argument("--steps", nargs="+", choices=tuple(STEPS), default=list(STEPS), help="(default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the sizes that are measured (default: 1)")
    parser.add_argument("--largest", type=int, default=10**9, help="leave out sizes above (default: none)")
    for option in ("--make", "--measure"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.make is not None:
        step = STEPS[options.make]
        assert step.make is not None
        step.make(options.size, options.folder)
    elif options.measure is not None:
        measure(options.measure, options.size, options.folder)
    else:
        options.results.mkdir(parents=True, exist_ok=True)
        measured = run_all(options.results / "scale.json", options.steps, options.share, options.largest)
        with atomic_write(options.output) as stream:
            stream.write(page(measured))


if __name__ == "__main__":
    main()
