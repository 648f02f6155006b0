"""Speed of streaming recognition with students of full size (random weights).

    make bench

For each student, on one thread: computation per 480 ms chunk, as a share of the chunk; 50 sessions computed in one
batch against one after another. For the first student: computation and memory in the second and the last minute of a
session.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from distill.audio import SAMPLE_RATE
from distill.bench.parts import CONFIG, TOKENS, benchmark_parser, noise, peak_mb, random_student, write_json
from distill.models.student import Student
from distill.streaming import Recognizer

CHUNK_MS = 480
PIECE = CHUNK_MS * SAMPLE_RATE // 1000
WARM_UP = 13  # chunks, after which the history of 6 s is full


def chunk_times(network: Student, seconds: float) -> np.ndarray:
    """Milliseconds of computation of each chunk of a stream, once its history is full."""
    stream = Recognizer(network, TOKENS, CONFIG, CHUNK_MS).create_stream()
    audio, times = noise(seconds), []
    for start in range(0, len(audio), PIECE):
        stream.accept(audio[start : start + PIECE])
        times += [result["emitted_after_s"] for result in stream.decode()]
    return 1000 * np.array(times[WARM_UP:])


def batched(network: Student, count: int, seconds: float) -> tuple[float, float]:
    """Seconds of computation for ``count`` streams: one after another, and in one batch."""
    audio = [noise(seconds, seed) for seed in range(count)]
    recognizer = Recognizer(network, TOKENS, CONFIG, CHUNK_MS)
    texts: list[list[str]] = []
    times = []
    for one_batch in (False, True):
        streams = [recognizer.create_stream() for _ in audio]
        batches = [streams] if one_batch else [[stream] for stream in streams]
        started = time.perf_counter()
        for start in range(0, len(audio[0]), PIECE):
            for stream, samples in zip(streams, audio, strict=True):
                stream.accept(samples[start : start + PIECE])
            for batch in batches:
                recognizer.decode(batch)
        for stream in streams:
            stream.finish()
        texts.append([results[-1]["text"] for batch in batches for results in recognizer.decode(batch)])
        times.append(time.perf_counter() - started)
    if texts[0] != texts[1]:
        sys.exit("error: streams in one batch gave another text than alone")
    return times[0], times[1]


def long_session(network: Student, minutes: int) -> list[tuple[float, float]]:
    """(real-time factor, peak memory in MB) of every minute of one session."""
    stream = Recognizer(network, TOKENS, CONFIG, CHUNK_MS).create_stream()
    figures = []
    for minute in range(minutes):
        audio = noise(60, minute)
        started = time.perf_counter()
        for start in range(0, len(audio), PIECE):
            stream.accept(audio[start : start + PIECE])
            stream.decode()
        seconds = time.perf_counter() - started
        figures.append((seconds / 60, peak_mb()))
    return figures


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--students", nargs="+", default=["f", "s5"], help="names in conf/students (default: f s5)")
    parser.add_argument("--sessions", type=int, default=50, help="(default: 50)")
    parser.add_argument(
        "--minutes", type=int, default=5, help="of the long session with the first student (default: 5)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    students = []
    print(f"one thread, chunks of {CHUNK_MS} ms, history of 6 s")
    for name in args.students:
        network = random_student(name)
        times = chunk_times(network, 40)
        median, p99 = float(np.median(times)), float(np.percentile(times, 99))
        one_by_one, batch = batched(network, args.sessions, 4.8)
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        print(
            f"{name}: {millions:.1f} M parameters; a chunk takes {median:.1f} ms (99th percentile {p99:.1f}), "
            f"{100 * median / CHUNK_MS:.1f}% of real time; {args.sessions} sessions in one batch are "
            f"{one_by_one / batch:.2f} times as fast as one after another",
            flush=True,
        )
        students.append(
            {"name": name, "chunk_median_ms": median, "chunk_p99_ms": p99, "together_gain": one_by_one / batch}
        )
    figures = long_session(random_student(args.students[0]), args.minutes)
    print(
        f"{args.students[0]}, a session of {args.minutes} min: real-time factor {figures[1][0]:.4f} in the second and "
        f"{figures[-1][0]:.4f} in the last minute; memory grew by {figures[-1][1] - figures[1][1]:.1f} MB between them"
    )
    minutes = [{"rtf": rtf, "peak_mb": peak} for rtf, peak in figures]
    write_json(args.output, {"students": students, "sessions": args.sessions, "long_session": minutes})


if __name__ == "__main__":
    main()
