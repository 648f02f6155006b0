#!/usr/bin/env python
"""Size and speed of exported students of full size (random weights), beside torch, on one thread.

    make bench

Each runtime computes the same chunks of 480 ms by turns, so that ratios hold whatever else the machine does; times are
of the processor, the median over a round's chunks, then over the rounds, with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import sherpa_onnx
import torch
import yaml

from distill.export.model import metadata, quantized, save, shapes_for, step_model
from distill.export.recognizer import LogProbStream, OnnxModel
from distill.export.sherpa import sherpa_metadata, sherpa_model, sherpa_tokens
from distill.files import atomic_write
from distill.models.student import Student

ROOT = Path(__file__).resolve().parents[1]
TOKENS = ["<blank>", *(f"t{number}" for number in range(31))]
CONFIG = {"token_type": "word", "chunk_conf": {"chunk_ms": 480, "left_ms": 6000}}
CHUNK_MS = 480
PIECE = CHUNK_MS * 16


def build(name: str) -> Student:
    torch.manual_seed(0)
    conf = yaml.safe_load((ROOT / "conf/students" / f"{name}.yaml").read_text())["network_conf"]
    return Student(len(TOKENS), **conf).eval()


def through_sherpa(recognizer: Any, stream: Any, audio: np.ndarray) -> None:
    """The next audio of a stream of sherpa-onnx."""
    stream.accept_waveform(8000, audio)
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)


def runtimes(network: Student, folder: Path) -> tuple[dict[str, Callable[[np.ndarray], Any]], dict[str, float]]:
    """What takes the next 480 ms of a stream, by runtime, and its megabytes."""
    shapes = shapes_for(network, CONFIG, CHUNK_MS, "conf/students")
    state = network.initial_state(1, shapes.chunk, shapes.left, shapes.lookahead)
    run: dict[str, Callable[[np.ndarray], Any]] = {
        "torch": lambda audio: network.stream(torch.from_numpy(audio)[None], state)
    }
    size = {"torch": sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6}
    (folder / "tokens.txt").write_text(sherpa_tokens(TOKENS, "word"), encoding="utf-8")
    step = step_model(network, shapes)
    for kind, model in (("float32", step), ("int8", quantized(step))):
        wrapped, paths = sherpa_model(model, shapes), (folder / f"{kind}.onnx", folder / f"sherpa_{kind}.onnx")
        save(wrapped, paths[1], sherpa_metadata(wrapped))
        save(model, paths[0], metadata(network, shapes, TOKENS, "word", CHUNK_MS))
        run[kind] = LogProbStream(OnnxModel(paths[0])).accept
        recognizer = sherpa_onnx.OnlineRecognizer.from_t_one_ctc(
            tokens=str(folder / "tokens.txt"), model=str(paths[1]), num_threads=1
        )

        run[f"sherpa_{kind}"] = partial(through_sherpa, recognizer, recognizer.create_stream())
        size |= {name: path.stat().st_size / 1e6 for name, path in zip((kind, f"sherpa_{kind}"), paths, strict=True)}
    return run, size


def measure(run: dict[str, Callable[[np.ndarray], Any]], rounds: int, chunks: int) -> dict[str, np.ndarray]:
    """Median milliseconds of processor time per chunk, of each round."""
    random = np.random.default_rng(0)
    times = {name: np.zeros((rounds, chunks)) for name in run}
    for number in range(-14, rounds * chunks):  # first until the history is full
        audio = 0.05 * random.standard_normal(PIECE).astype(np.float32)
        for name, compute in run.items():
            started = time.process_time()
            compute(audio)
            if number >= 0:
                times[name].flat[number] = 1000 * (time.process_time() - started)
    # sherpa-onnx gets blocks of 150 ms: some pieces complete a chunk and some none, so its figure is a mean.
    return {name: t.mean(1) if name.startswith("sherpa") else np.median(t, 1) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["f", "s5"], help="names in conf/students (default: f s5)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--chunks", type=int, default=15, help="of a round (default: 15)")
    parser.add_argument("--output", type=Path, help="write the figures here as well, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = []
    print(f"one thread, chunks of {CHUNK_MS} ms, history of 6 s; onnxruntime {onnxruntime.__version__}, "
          f"sherpa-onnx {sherpa_onnx.__version__}, torch {torch.__version__}")  # fmt: skip
    for name in args.students:
        with tempfile.TemporaryDirectory() as folder:
            run, size = runtimes(build(name), Path(folder))
            times = measure(run, args.rounds, args.chunks)
        reference = times["torch"]
        for kind, t in times.items():
            ratios = reference / t
            row = {
                "student": name,
                "runtime": kind,
                "mb": size[kind],
                "ms_per_chunk": float(np.median(t)),
                "ms_range": [float(t.min()), float(t.max())],
                "times_as_fast_as_torch": float(np.median(ratios)),
                "ratio_range": [float(ratios.min()), float(ratios.max())],
                "size_ratio": size[kind] / size["torch"],
            }
            report.append(row)
            print(
                f"{name:3} {kind:15} {size[kind]:6.1f} MB ({row['size_ratio']:.2f}); {np.median(t):6.2f} ms a chunk "
                f"({t.min():.2f} to {t.max():.2f}), {np.median(ratios):.2f} times as fast as torch "
                f"({ratios.min():.2f} to {ratios.max():.2f})",
                flush=True,
            )
    if args.output is not None:
        with atomic_write(args.output) as stream:
            json.dump({"cores": os.cpu_count(), "rows": report}, stream, indent=1)


if __name__ == "__main__":
    main()
