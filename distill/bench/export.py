"""Size and speed of exported students of full size (random weights) beside torch, on one thread.

    make bench

The runtimes take turns on the same chunks of 480 ms, so that ratios are fair whatever else the machine does. Times are
processor times: the median over a round's chunks, then over the rounds, with their range.
"""

from __future__ import annotations

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

from distill.audio import SAMPLE_RATE
from distill.bench.parts import CONFIG, TOKENS, benchmark_parser, random_student, write_json
from distill.export.model import metadata, quantized, save, shapes_for, sherpa_models, step_model
from distill.export.parity import sherpa_recognizer
from distill.export.recognizer import LogProbStream, OnnxModel
from distill.export.sherpa import sherpa_tokens
from distill.models.fbank import FbankFrontEnd
from distill.models.student import Student

CHUNK_MS = 480
PIECE = CHUNK_MS * SAMPLE_RATE // 1000
WARM_UP = 14  # chunks, after which the history of 6 s is full


def through_sherpa(
    recognizer: sherpa_onnx.OnlineRecognizer, stream: sherpa_onnx.OnlineStream, rate: int, audio: np.ndarray
) -> None:
    """Feed the next samples to a stream of sherpa-onnx, declared to have this rate."""
    stream.accept_waveform(rate, audio)
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)


def runtimes(network: Student, folder: Path) -> tuple[dict[str, Callable[[np.ndarray], Any]], dict[str, float]]:
    """A function by runtime that recognises the next 480 ms of a stream, and megabytes by runtime."""
    shapes = shapes_for(network, CONFIG, CHUNK_MS, "conf/students")
    state = network.initial_state(1, shapes.chunk, shapes.left, shapes.lookahead)
    run: dict[str, Callable[[np.ndarray], Any]] = {
        "torch": lambda audio: network.stream(torch.from_numpy(audio)[None], state)
    }
    size = {"torch": sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6}
    (folder / "tokens.txt").write_text(sherpa_tokens(TOKENS, "word"), encoding="utf-8")
    step = step_model(network, shapes)
    models = {"float32": step, "int8": quantized(step)}
    log_mel = isinstance(network.front_end, FbankFrontEnd)
    for kind, (wrapped, about) in sherpa_models(network, shapes, models).items():
        paths = folder / f"{kind}.onnx", folder / f"sherpa_{kind}.onnx"
        save(wrapped, paths[1], about)
        save(models[kind], paths[0], metadata(network, shapes, TOKENS, "word", CHUNK_MS))
        run[kind] = LogProbStream(OnnxModel(paths[0])).accept
        recognizer, rate = sherpa_recognizer(paths[1], folder / "tokens.txt", log_mel)
        run[f"sherpa_{kind}"] = partial(through_sherpa, recognizer, recognizer.create_stream(), rate)
        size |= {name: path.stat().st_size / 1e6 for name, path in zip((kind, f"sherpa_{kind}"), paths, strict=True)}
    return run, size


def measure(run: dict[str, Callable[[np.ndarray], Any]], rounds: int, chunks: int) -> dict[str, np.ndarray]:
    """Milliseconds of processor time per chunk: (rounds,) by runtime, the median over the chunks of a round."""
    random = np.random.default_rng(0)
    times = {name: np.zeros((rounds, chunks)) for name in run}
    for number in range(-WARM_UP, rounds * chunks):
        audio = 0.05 * random.standard_normal(PIECE).astype(np.float32)
        for name, compute in run.items():
            started = time.process_time()
            compute(audio)
            if number >= 0:
                times[name].flat[number] = 1000 * (time.process_time() - started)
    # sherpa-onnx feeds raw-audio models blocks of 150 ms, so that pieces cost differently: their mean counts.
    return {name: t.mean(1) if name.startswith("sherpa") else np.median(t, 1) for name, t in times.items()}


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--students", nargs="+", default=["f", "s5"], help="names in conf/students (default: f s5)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--chunks", type=int, default=15, help="of a round (default: 15)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = []
    print(
        f"one thread, chunks of {CHUNK_MS} ms, history of 6 s; onnxruntime {onnxruntime.__version__}, "
        f"sherpa-onnx {sherpa_onnx.__version__}, torch {torch.__version__}"
    )
    for name in args.students:
        with tempfile.TemporaryDirectory() as folder:
            run, size = runtimes(random_student(name), Path(folder))
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
    write_json(args.output, {"cores": os.cpu_count(), "rows": report})


if __name__ == "__main__":
    main()
