"""Size and real-time factor of a trained teacher and its students (``distill/bin/speed.py``)."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.audio import SAMPLE_RATE
from distill.bench.parts import first_utterances, warn_if_busy, write_json
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.decode.streams import BaseRecognizer

Row = dict[str, Any]  # system, runtime, latency_ms, params, model_bytes; then threads, rtf, rtf_least, rtf_largest


def recognise(recognizer: BaseRecognizer, audio: np.ndarray) -> None:
    """Recognise one utterance, in pieces as long as the time between two chunks; at once if there are no chunks."""
    if not recognizer.streaming:
        recognizer.recognize(audio)
        return
    stream, piece = recognizer.create_stream(), recognizer.step_ms * SAMPLE_RATE // 1000
    for start in range(0, len(audio), piece):
        stream.accept(audio[start : start + piece])
        stream.decode()
    stream.finish()
    stream.decode()


def seconds(recognizer: BaseRecognizer, utterances: list[np.ndarray]) -> float:
    """Computation time of all utterances."""
    started = time.perf_counter()
    for audio in utterances:
        recognise(recognizer, audio)
    return time.perf_counter() - started


def recognizers_of(directory: Path, chunks: list[int]) -> list[tuple[Row, BaseRecognizer]]:
    """A row and a recogniser for each chunk length of a trained streaming network; one for any other network."""
    from distill.checkpoints.load import load_network
    from distill.streaming import Recognizer

    network, token_list, config = load_network(directory)
    weights = list(network.parameters())
    row: Row = {
        "system": directory.name,
        "runtime": "torch",
        "params": sum(p.numel() for p in weights),
        "model_bytes": sum(p.numel() * p.element_size() for p in weights),
    }
    recognizers: list[tuple[Row, BaseRecognizer]] = []
    for chunk_ms in chunks:
        recognizer = Recognizer(network, token_list, config, chunk_ms)
        if recognizer.streaming:
            recognizers.append(({**row, "latency_ms": chunk_ms}, recognizer))
    return recognizers or [({**row, "latency_ms": None}, Recognizer(network, token_list, config, None))]


def exported_recognizers(export: Path, row: Row, chunks: list[int]) -> list[tuple[Row, BaseRecognizer]]:
    """Rows and recognisers of the exported models of a network whose row in torch is ``row``."""
    from distill.export import exported
    from distill.export.recognizer import OnnxModel, Recognizer

    if not exported(export):
        raise UserError(f"{export}: holds no exported model; make one with stage 15 or python -m distill.bin.export")
    recognizers: list[tuple[Row, BaseRecognizer]] = []
    for chunk_ms in chunks:
        for kind, end in (("float32", ".onnx"), ("int8", ".int8.onnx")):
            path = export / f"student_{chunk_ms}ms{end}"
            if path.is_file():
                about = {"runtime": f"onnxruntime {kind}", "latency_ms": chunk_ms, "model_bytes": path.stat().st_size}
                recognizers.append(({**row, **about}, Recognizer(OnnxModel(path))))
    return recognizers


def measure_speed(
    models: list[Path],
    export: Path | None,
    data_dir: Path,
    chunk_ms: list[int],
    num_utts: int,
    rounds: int,
    output: Path | None,
) -> None:
    """Measure real-time factors on one thread, print them, and put them into ``output`` as ``speed``.

    Args:
        models: directories of trainings.
        export: directory of the export of the last of them; or None.
        data_dir: with wav.scp, of which the first ``num_utts`` utterances are recognised.
        chunk_ms: chunk lengths of streaming networks and exported models.
        num_utts: number of utterances.
        rounds: repetitions; each system once per round.
        output: JSON file, whose other content stays; or None.
    """
    import torch

    warn_if_busy()
    torch.set_num_threads(1)
    utterances = first_utterances(data_dir, num_utts)
    audio_s = sum(map(len, utterances)) / SAMPLE_RATE
    measured = [pair for model in models for pair in recognizers_of(model, chunk_ms)]
    if export is not None:
        measured += exported_recognizers(export, measured[-1][0], chunk_ms)
    factors = real_time_factors([session for _, session in measured], utterances, audio_s, rounds)
    rows = [
        {**row, "threads": 1, "rtf": statistics.median(rtfs), "rtf_least": min(rtfs), "rtf_largest": max(rtfs)}
        for (row, _), rtfs in zip(measured, factors, strict=True)
    ]
    print(f"{'system':20} {'latency':>8} {'runtime':20} {'MB':>8} {'RTF':>8}   of {audio_s:.0f} s, 1 thread")
    for row in rows:
        latency = "full" if row["latency_ms"] is None else f"{row['latency_ms']} ms"
        print(
            f"{row['system']:20} {latency:>8} {row['runtime']:20} {row['model_bytes'] / 1e6:8.1f} {row['rtf']:8.4f}"
            f" ({row['rtf_least']:.4f} to {row['rtf_largest']:.4f})"
        )
    if output is not None:
        other_content = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
        write_json(output, {**other_content, "speed": rows})


def real_time_factors(
    recognizers: list[BaseRecognizer], utterances: list[np.ndarray], audio_s: float, rounds: int
) -> list[list[float]]:
    """Real-time factors of each recogniser by round; they take turns within a round."""
    from tqdm import tqdm

    factors: list[list[float]] = [[] for _ in recognizers]
    with tqdm(total=(rounds + 1) * len(recognizers), desc="speed", unit="run", mininterval=1) as progress:
        for number in range(rounds + 1):
            for session, rtfs in zip(recognizers, factors, strict=True):
                if number:
                    rtfs.append(seconds(session, utterances) / audio_s)
                else:  # the first pass allocates memory: not measured
                    seconds(session, utterances[:2])
                progress.update()
    return factors
