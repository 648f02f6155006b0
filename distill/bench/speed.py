"""Measure size and real-time factor of a teacher and its students, by turns.

    python -m distill.bin.speed --models exp/teacher exp/student_full exp/student_stream --export exp/export \\
        --data_dir dump/raw/test --chunk_ms 160 320 480 960 --output exp/bench.json

A streaming student is fed chunk by chunk, at each of the chunk lengths, and so is what --export holds of the last
model, in onnxruntime; any other network gets whole utterances. A real-time factor is the time that all utterances take
over their length, on one thread: the median of the rounds, with the least and the largest. --output keeps what else is
in it and gets the figures as ``speed``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import UserError, cli
from distill.files import atomic_write

if TYPE_CHECKING:
    from distill.export.recognizer import OnnxRecognizer
    from distill.streaming.recognizer import StreamingRecognizer

    Session = StreamingRecognizer | OnnxRecognizer


def recognise(session: Session, audio: np.ndarray) -> None:
    """One stream from beginning to end, in pieces of the time between two chunks; whole where there are none."""
    session.reset()
    piece = session.step_ms * 16 if session.streaming else max(1, len(audio))
    for start in range(0, len(audio), piece):
        session.accept_waveform(audio[start : start + piece])
    session.finish()


def seconds(session: Session, utterances: list[np.ndarray]) -> float:
    """Time that all utterances take."""
    started = time.perf_counter()
    for audio in utterances:
        recognise(session, audio)
    return time.perf_counter() - started


def sessions_of(directory: Path, chunks: list[int]) -> list[tuple[dict[str, Any], Session]]:
    """A row and a session for each way in which a trained network recognises."""
    from distill.checkpoints.load import load_network
    from distill.streaming.recognizer import StreamingRecognizer

    network, token_list, config = load_network(directory)
    weights = list(network.parameters())
    row = {"system": directory.name, "runtime": "torch", "params": sum(p.numel() for p in weights),
           "model_bytes": sum(p.numel() * p.element_size() for p in weights)}  # fmt: skip
    found: list[tuple[dict[str, Any], Session]] = []
    for chunk_ms in chunks:
        session = StreamingRecognizer(network, token_list, config, chunk_ms)
        if session.streaming:
            found.append(({**row, "latency_ms": chunk_ms}, session))
    return found or [({**row, "latency_ms": None}, StreamingRecognizer(network, token_list, config, None))]


def exported_sessions(export: Path, row: dict[str, Any], chunks: list[int]) -> list[tuple[dict[str, Any], Session]]:
    """The same for the exported forms of the network that ``row`` describes."""
    from distill.export import exported
    from distill.export.recognizer import OnnxModel, OnnxRecognizer

    if not exported(export):
        raise UserError(f"{export}: holds no exported model; make one with stage 15 or python -m distill.bin.export")
    found: list[tuple[dict[str, Any], Session]] = []
    for chunk_ms in chunks:
        for kind, end in (("float32", ".onnx"), ("int8", ".int8.onnx")):
            path = export / f"student_{chunk_ms}ms{end}"
            if path.is_file():
                own = {**row, "runtime": f"onnxruntime {kind}", "model_bytes": path.stat().st_size}
                found.append(({**own, "latency_ms": chunk_ms}, OnnxRecognizer(OnnxModel(path))))
    return found


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="directories of trainings")
    parser.add_argument("--export", type=Path, help="what distill.export.export made of the last of them")
    parser.add_argument("--data_dir", type=Path, required=True, help="with wav.scp, such as dump/raw/test")
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[480], help="(default: 480)")
    parser.add_argument("--num_utts", type=int, default=20, help="the first so many utterances (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--output", type=Path, help="JSON to put the figures in")
    args = parser.parse_args(argv)

    import torch
    from tqdm import tqdm

    from distill.audio import read_audio, read_wav_scp

    torch.set_num_threads(1)
    paths = list(read_wav_scp(args.data_dir / "wav.scp").values())[: args.num_utts]
    utterances = [read_audio(path) for path in paths]
    audio_s = sum(map(len, utterances)) / 16000
    measured = [found for model in args.models for found in sessions_of(model, args.chunk_ms)]
    if args.export is not None:
        measured += exported_sessions(args.export, measured[-1][0], args.chunk_ms)
    rounds: list[list[float]] = [[] for _ in measured]
    with tqdm(total=(args.rounds + 1) * len(measured), desc="speed", unit="run", mininterval=1) as progress:
        for number in range(args.rounds + 1):
            for (_, session), times in zip(measured, rounds, strict=True):
                # The first pass allocates; keep it out of times.
                took = seconds(session, utterances if number else utterances[:2])
                if number:
                    times.append(took / audio_s)
                progress.update()
    rows = [
        {**row, "threads": 1, "rtf": statistics.median(times), "rtf_least": min(times), "rtf_largest": max(times)}
        for (row, _), times in zip(measured, rounds, strict=True)
    ]
    print(f"{'system':20} {'latency':>8} {'runtime':20} {'MB':>8} {'RTF':>8}   of {audio_s:.0f} s, 1 thread")
    for row in rows:
        latency = "full" if row["latency_ms"] is None else f"{row['latency_ms']} ms"
        print(
            f"{row['system']:20} {latency:>8} {row['runtime']:20} {row['model_bytes'] / 1e6:8.1f} {row['rtf']:8.4f}"
            f" ({row['rtf_least']:.4f} to {row['rtf_largest']:.4f})"
        )
    if args.output is not None:
        known = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
        with atomic_write(args.output) as file:
            json.dump({**known, "speed": rows}, file, indent=1)


if __name__ == "__main__":
    main()
