"""Latency of a streaming student: computation per chunk, and when each token is emitted.

``distill/bin/latency.py`` explains each figure.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.audio import SAMPLE_RATE
from distill.bench.parts import first_utterances, warn_if_busy, write_json
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.decode.stream_results import Result, TokenResult
    from distill.decode.streams import BaseRecognizer

PIECE = 160  # samples that arrive at a time, 10 ms


def recognise(recognizer: BaseRecognizer, audio: np.ndarray) -> list[Result]:
    """Recognise one utterance as it arrives in pieces; all results, the final one last."""
    stream = recognizer.create_stream()
    results: list[Result] = []
    for start in range(0, len(audio), PIECE):
        stream.accept(audio[start : start + PIECE])
        results += stream.decode()
    stream.finish()
    return results + stream.decode()


def paired(student: list[TokenResult], teacher: list[TokenResult]) -> list[tuple[int, int]]:
    """Pairs of indices (student's, teacher's) of the tokens in which both texts agree, in order."""
    hyp, ref = ([token["token"] for token in tokens] for tokens in (student, teacher))
    blocks = SequenceMatcher(None, hyp, ref, autojunk=False).get_matching_blocks()
    return [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]


def emitted_at(results: list[Result]) -> list[float]:
    """Seconds of audio that had arrived when each token of the final result was first emitted."""
    times: list[float] = []
    for result in results:
        times += [result["audio_s"]] * (len(result["tokens"]) - len(times))
    return times


def measure(
    recognizer: BaseRecognizer, teacher: BaseRecognizer, utterances: list[np.ndarray], progress: Any
) -> dict[str, Any]:
    """Latencies in ms at one chunk length, over all utterances; ``progress`` has a method update."""
    compute, delays, shifts, first = [], [], [], []
    for audio in utterances:
        aligned = teacher.recognize(audio)["tokens"]
        results = recognise(recognizer, audio)
        compute += [1000 * result["emitted_after_s"] for result in results[:-1]]
        tokens, emitted = results[-1]["tokens"], emitted_at(results)
        pairs = paired(tokens, aligned)
        delays += [1000 * (emitted[i] - aligned[j]["end_s"]) for i, j in pairs]
        shifts += [1000 * (tokens[i]["start_s"] - aligned[j]["start_s"]) for i, j in pairs]
        if pairs and pairs[0] == (0, 0):
            first.append(1000 * (emitted[0] - aligned[0]["start_s"]))
        progress.update()
    if not compute:
        raise UserError("--data_dir: no utterance is longer than a chunk; give longer ones")

    def median(values: list[float]) -> float | None:
        return float(np.median(values)) if values else None

    worst, mean = recognizer.wait_ms
    return {
        "chunk_ms": recognizer.chunk_ms,
        "wait_worst_ms": worst,
        "wait_mean_ms": mean,
        "compute_median_ms": float(np.median(compute)),
        "compute_p99_ms": float(np.percentile(compute, 99)),
        "compute_share": float(np.median(compute)) / recognizer.step_ms,
        "delay_median_ms": median(delays),
        "delay_p90_ms": float(np.percentile(delays, 90)) if delays else None,
        "shift_median_ms": median(shifts),
        "first_median_ms": median(first),
        "chunks": len(compute),
        "tokens": len(delays),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows for a terminal."""
    lines = [
        f"{'chunk':>6} | {'wait worst':>10} {'mean':>6} | {'compute':>7} {'p99':>6} {'share':>6} | "
        f"{'delay':>6} {'p90':>6} {'shift':>6} {'first':>6}   (ms)"
    ]

    def rounded(value: float | None) -> str:
        return f"{'-' if value is None else format(value, '.0f'):>6}"

    for row in rows:
        names = ("delay_median_ms", "delay_p90_ms", "shift_median_ms", "first_median_ms")
        lines.append(
            f"{row['chunk_ms']:6} | {row['wait_worst_ms']:10.0f} {row['wait_mean_ms']:6.0f} | "
            f"{row['compute_median_ms']:7.1f} {row['compute_p99_ms']:6.1f} {100 * row['compute_share']:5.1f}% | "
            f"{' '.join(rounded(row[name]) for name in names)}"
        )
    return "\n".join(lines)


def measure_latency(
    model: Path,
    teacher: Path,
    data_dir: Path,
    chunk_ms: list[int],
    num_utts: int,
    threads: int,
    output: Path | None,
) -> None:
    """Measure a streaming student at each chunk length, print a table, and write the figures to ``output`` as JSON.

    Args:
        model: directory of the streaming student's training.
        teacher: directory of the teacher's, whose full-context alignment tells when tokens were spoken.
        data_dir: with wav.scp, of which the first ``num_utts`` utterances are recognised.
        chunk_ms: chunk lengths.
        num_utts: number of utterances.
        threads: CPU threads.
        output: JSON file; or None.
    """
    import torch
    from tqdm import tqdm

    warn_if_busy()
    from distill.streaming import Recognizer

    torch.set_num_threads(threads)
    utterances = first_utterances(data_dir, num_utts)
    aligner = Recognizer.from_pretrained(teacher, chunk_ms=None)
    rows = []
    with tqdm(total=len(chunk_ms) * len(utterances), desc="latency", unit="utt", mininterval=1) as progress:
        for length in chunk_ms:
            recognizer = Recognizer.from_pretrained(model, chunk_ms=length)
            if not recognizer.streaming:
                raise UserError(f"{model}: not a streaming student (chunk_conf); give the directory of one")
            recognise(
                recognizer, np.zeros(3 * SAMPLE_RATE, np.float32)
            )  # the first pass allocates memory: not measured
            rows.append(measure(recognizer, aligner, utterances, progress))
    print(table(rows))
    write_json(output, {"data": data_dir.name, "threads": threads, "latency": rows})
