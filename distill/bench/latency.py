"""Measure how late a streaming student is: computation per chunk, and when it emits each token.

    python -m distill.bin.latency --model exp/student_stream --teacher exp/teacher --data_dir dump/raw/test \\
        --chunk_ms 160 320 480 960 --output exp/bench.json

Audio arrives in pieces of 10 ms, as in a live session. For every chunk length:

wait        what a frame waits for by design, worst and average: its chunk with look-ahead, and the front end
compute     computation per chunk, median and 99th percentile, and as a share of the time between two chunks
delay       from the end of a token in the teacher's alignment to its emission, median and 90th percentile. This holds
            everything but computation: the wait, and how much later than its teacher the student says a token
shift       by how much later than in the teacher's alignment the student's token begins, median
first       from the beginning of the first token in the teacher's alignment to the first partial text, median

Tokens of student and teacher are paired where their texts agree; - where they never do.
"""

from __future__ import annotations

import argparse
import json
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import UserError, cli
from distill.files import atomic_write

if TYPE_CHECKING:
    from distill.streaming.recognizer import Result, StreamingRecognizer, TokenResult

PIECE = 160  # samples


def stream(session: StreamingRecognizer, audio: np.ndarray) -> list[Result]:
    """All results of one stream, the final one last."""
    session.reset()
    results: list[Result] = []
    for start in range(0, len(audio), PIECE):
        results += session.accept_waveform(audio[start : start + PIECE])
    return [*results, session.finish()]


def paired(student: list[TokenResult], teacher: list[TokenResult]) -> list[tuple[int, int]]:
    """Indices of tokens that are the same in both texts, in order."""
    mine, theirs = ([token["token"] for token in tokens] for tokens in (student, teacher))
    blocks = SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks()
    return [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]


def emitted_at(results: list[Result]) -> list[float]:
    """Seconds of audio that had arrived when each token of the final result was first shown."""
    times: list[float] = []
    for result in results:
        times += [result["audio_s"]] * (len(result["tokens"]) - len(times))
    return times


def measure(
    session: StreamingRecognizer, teacher: StreamingRecognizer, utterances: list[np.ndarray], progress: Any
) -> dict[str, Any]:
    """Latencies of one chunk length, in ms, over all utterances."""
    compute, delays, shifts, first = [], [], [], []
    for audio in utterances:
        teacher.reset()
        teacher.accept_waveform(audio)
        aligned = teacher.finish()["tokens"]
        results = stream(session, audio)
        compute += [1000 * result["emitted_after_s"] for result in results[:-1]]
        tokens, shown = results[-1]["tokens"], emitted_at(results)
        pairs = paired(tokens, aligned)
        delays += [1000 * (shown[i] - aligned[j]["end_s"]) for i, j in pairs]
        shifts += [1000 * (tokens[i]["start_s"] - aligned[j]["start_s"]) for i, j in pairs]
        if pairs and pairs[0] == (0, 0):
            first.append(1000 * (shown[0] - aligned[0]["start_s"]))
        progress.update()
    if not compute:
        raise UserError("--data_dir: no utterance is longer than a chunk; give longer ones")

    def middle(values: list[float]) -> float | None:
        return float(np.median(values)) if values else None

    worst, mean = session.wait_ms
    return {
        "chunk_ms": session.chunk_ms,
        "wait_worst_ms": worst,
        "wait_mean_ms": mean,
        "compute_median_ms": float(np.median(compute)),
        "compute_p99_ms": float(np.percentile(compute, 99)),
        "compute_share": float(np.median(compute)) / session.step_ms,
        "delay_median_ms": middle(delays),
        "delay_p90_ms": float(np.percentile(delays, 90)) if delays else None,
        "shift_median_ms": middle(shifts),
        "first_median_ms": middle(first),
        "chunks": len(compute),
        "tokens": len(delays),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal."""
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


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a streaming student's training")
    parser.add_argument("--teacher", type=Path, required=True, help="directory of the teacher's training")
    parser.add_argument("--data_dir", type=Path, required=True, help="with wav.scp, such as dump/raw/test")
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[480], help="(default: 480)")
    parser.add_argument("--num_utts", type=int, default=50, help="the first so many utterances (default: 50)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)

    import torch
    from tqdm import tqdm

    from distill.audio import read_audio, read_wav_scp
    from distill.streaming.recognizer import StreamingRecognizer

    torch.set_num_threads(args.threads)
    paths = list(read_wav_scp(args.data_dir / "wav.scp").values())[: args.num_utts]
    utterances = [read_audio(path) for path in paths]
    teacher = StreamingRecognizer.from_pretrained(args.teacher, chunk_ms=None)
    rows = []
    with tqdm(total=len(args.chunk_ms) * len(utterances), desc="latency", unit="utt", mininterval=1) as progress:
        for chunk_ms in args.chunk_ms:
            session = StreamingRecognizer.from_pretrained(args.model, chunk_ms=chunk_ms)
            if not session.streaming:
                raise UserError(f"{args.model}: not a streaming student (chunk_conf); it has no latency to measure")
            stream(session, np.zeros(48000, np.float32))  # the first pass allocates; keep it out of times
            rows.append(measure(session, teacher, utterances, progress))
    print(table(rows))
    if args.output is not None:
        with atomic_write(args.output) as file:
            json.dump({"data": args.data_dir.name, "threads": args.threads, "latency": rows}, file, indent=1)


if __name__ == "__main__":
    main()
