"""How many streams in real time one core holds, by runtime, with random weights of full size.

    make bench

Streams begin at random times, and each gives a chunk of 480 ms every 480 ms. A runtime computes what is there, in one
batch if it can, and then what came meanwhile. Computation is real, and counted in processor time; the clock is a count,
which moves on by it. So nothing else that the machine does makes results late. A runtime holds N streams if 99 of 100
results are at most 200 ms late; the largest such N of a grid is printed, with the delays there.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distill.audio import SAMPLE_RATE
from distill.bench.parts import CONFIG, TOKENS, benchmark_parser, random_student, write_json
from distill.decode.streams import BaseRecognizer
from distill.export import model as onnx_model
from distill.export.parity import sherpa_recognizer
from distill.export.recognizer import OnnxModel, Recognizer
from distill.export.sherpa import sherpa_tokens
from distill.export.slots import SlotModel
from distill.models.fbank import FbankFrontEnd
from distill.streaming import Recognizer as TorchRecognizer

CHUNK_MS = 480
CHUNK_S = CHUNK_MS / 1000
PIECE = CHUNK_MS * SAMPLE_RATE // 1000
WARM_UP = 14  # chunks, after which the history of 6 s is full
LATE_S = 0.2
GRID = (5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 120, 140, 160, 180, 200, 240)


class Runtime(NamedTuple):
    """A way to compute streams: one that makes a stream, and one that recognises the next piece of some of them.

    ``at_once``: streams of a batch; None: all that have a chunk.
    """

    new_stream: Callable[[], Any]
    recognise: Callable[[Sequence[Any], np.ndarray], None]
    at_once: int | None


def of_recognizer(recognizer: BaseRecognizer, at_once: int | None = None) -> Runtime:
    """A recogniser of this toolkit."""

    def recognise(streams: Sequence[Any], audio: np.ndarray) -> None:
        for stream in streams:
            stream.accept(audio)
        recognizer.decode(streams)

    return Runtime(recognizer.create_stream, recognise, at_once)


def of_sherpa(model: Path, tokens: Path, log_mel: bool) -> Runtime:
    """sherpa-onnx, which computes raw-audio students one stream at a time."""
    recognizer, rate = sherpa_recognizer(model, tokens, log_mel)

    def recognise(streams: Sequence[Any], audio: np.ndarray) -> None:
        for stream in streams:
            stream.accept_waveform(rate, audio)
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
        for stream in streams:
            recognizer.get_result(stream)

    return Runtime(recognizer.create_stream, recognise, None if log_mel else 1)


def runtimes(name: str, folder: Path) -> dict[str, Runtime]:
    """Every runtime of a student, by name."""
    network = random_student(name)
    shapes = onnx_model.shapes_for(network, CONFIG, CHUNK_MS, name)
    about = onnx_model.metadata(network, shapes, TOKENS, "word", CHUNK_MS)
    (folder / "tokens.txt").write_text(sherpa_tokens(TOKENS, "word"), encoding="utf-8")
    found = {"torch": of_recognizer(TorchRecognizer(network, TOKENS, CONFIG, CHUNK_MS))}
    steps = {"student": onnx_model.step_model(network, shapes), "streams": onnx_model.slot_model(network, shapes)}
    models = {kind: {"float32": step, "int8": onnx_model.quantized(step)} for kind, step in steps.items()}
    log_mel = isinstance(network.front_end, FbankFrontEnd)
    for weights, (wrapped, values) in onnx_model.sherpa_models(network, shapes, models["student"]).items():
        for kind, model in (("student", models["student"][weights]), ("streams", models["streams"][weights])):
            onnx_model.save(model, folder / f"{kind}.{weights}.onnx", about)
        onnx_model.save(wrapped, folder / f"sherpa.{weights}.onnx", values)
        one, many = OnnxModel(folder / f"student.{weights}.onnx"), SlotModel(folder / f"streams.{weights}.onnx")
        found[f"onnxruntime one by one, {weights}"] = of_recognizer(Recognizer(one), 1)
        found[f"onnxruntime in batches, {weights}"] = of_recognizer(Recognizer(many))
        found[f"sherpa-onnx, {weights}"] = of_sherpa(folder / f"sherpa.{weights}.onnx", folder / "tokens.txt", log_mel)
    return found


def delays(runtime: Runtime, streams: Sequence[Any], seconds: float) -> tuple[np.ndarray, float]:
    """Delays in seconds of all results of streams whose history is full, and processor time by time."""
    random = np.random.default_rng(0)
    audio = 0.05 * random.standard_normal(PIECE).astype(np.float32)
    due = random.uniform(0, CHUNK_S, len(streams))  # when the next chunk of each stream is complete
    now, busy, late = 0.0, 0.0, []
    while now < seconds:
        now = max(now, due.min())
        ready = [int(number) for number in np.argsort(due) if due[number] <= now][: runtime.at_once]
        began = time.process_time()
        runtime.recognise([streams[number] for number in ready], audio)
        took = time.process_time() - began
        now, busy = now + took, busy + took
        late += (now - due[ready]).tolist()
        due[ready] += CHUNK_S
    return np.array(late), busy / now


def held(runtime: Runtime, seconds: float) -> dict[str, float]:
    """The largest number of the grid that a runtime holds, and the delays there in milliseconds; 0 if none."""
    found = {"streams": 0, "median_ms": float("nan"), "p99_ms": float("nan"), "busy": float("nan")}
    streams: list[Any] = []
    audio = 0.05 * np.random.default_rng(1).standard_normal(PIECE).astype(np.float32)
    low, high = 0, len(GRID)
    while low < high:
        middle = (low + high) // 2
        fresh = [runtime.new_stream() for _ in range(GRID[middle] - len(streams))]
        for _ in range(WARM_UP if fresh else 0):
            for first in range(0, len(fresh), runtime.at_once or len(fresh)):
                runtime.recognise(fresh[first : first + (runtime.at_once or len(fresh))], audio)
        streams += fresh
        late, busy = delays(runtime, streams[: GRID[middle]], seconds)
        p99 = float(np.percentile(late, 99))
        if p99 <= LATE_S:
            median = float(np.median(late))
            found = {"streams": GRID[middle], "median_ms": 1000 * median, "p99_ms": 1000 * p99, "busy": busy}
            low = middle + 1
        else:
            high = middle
    return found


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--students", nargs="+", default=["f"], help="names in conf/students (default: f)")
    parser.add_argument("--seconds", type=float, default=6, help="of every stream, by the clock (default: 6)")
    parser.add_argument("--runtimes", default="", help="only those whose names contain this (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"one core, chunks of {CHUNK_MS} ms, history of 6 s; at most {1000 * LATE_S:.0f} ms late (99 %)")
    for name in args.students:
        with tempfile.TemporaryDirectory() as folder:
            for kind, runtime in runtimes(name, Path(folder)).items():
                if args.runtimes not in kind:
                    continue
                row = {"student": name, "runtime": kind, **held(runtime, args.seconds)}
                rows.append(row)
                print(
                    f"{name:3} {kind:32} {row['streams']:4} streams, results {row['median_ms']:.0f} ms late "
                    f"(99th percentile {row['p99_ms']:.0f}), {100 * row['busy']:.0f}% of the core",
                    flush=True,
                )
    date = f"{datetime.date.today():%d %B %Y}"
    write_json(args.output, {"late_ms": 1000 * LATE_S, "date": date, "rows": rows})


if __name__ == "__main__":
    main()
