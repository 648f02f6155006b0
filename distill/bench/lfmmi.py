#!/usr/bin/env python
"""Speed of the LF-MMI denominator's score and gradient beside k2's and beside torch's ctc_loss, as ratios.

    make bench

Every case is timed in this process and, with the same inputs, in a second one of the environment that holds k2; the two
take turns. Times are medians. k2 runs as icefall trains with it: output_beam 8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distill.files import atomic_write
from distill.lfmmi import DenominatorGraph

OUTPUT_BEAM = 8.0
CASES = [(8, frames, vocab, kind) for vocab in (30, 100, 500) for frames in (200, 750) for kind in ("peaky", "flat")]
LARGE = [(4, 750, 5000, "peaky")]  # k2's graph would have 50 million arcs
ANSWER = "answer:"  # begins a line of the process that times k2
BUDGET_S = 4.0  # of timing a case, after one run to warm up


def inputs(batch: int, frames: int, vocab: int, kind: str) -> tuple[DenominatorGraph, torch.Tensor, torch.Tensor]:
    """Bigram, log-probabilities (B, T, V) and lengths (B,), the same in every process."""
    rng = np.random.default_rng(vocab)
    graph = DenominatorGraph.from_text([rng.integers(1, vocab, 20).tolist() for _ in range(500)], 2, vocab)
    logits = rng.standard_normal((batch, frames, vocab))
    if kind == "peaky":  # as a trained model's: blank or one token takes nearly all
        best = np.where(rng.random((batch, frames)) < 0.8, 0, rng.integers(1, vocab, (batch, frames)))
        logits += 12.0 * (best[:, :, None] == np.arange(vocab))
    return graph, torch.from_numpy(logits).float().log_softmax(2), torch.full((batch,), frames)


def median_time(run: Callable[[], object]) -> float:
    """Seconds of the median run."""
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if first > BUDGET_S:
        return first
    times: list[float] = []
    while len(times) < 5 or (sum(times) < BUDGET_S and len(times) < 50):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def native(graph: DenominatorGraph, log_probs: torch.Tensor, lengths: torch.Tensor) -> Callable[[], object]:
    def run() -> torch.Tensor:
        x = log_probs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(graph.score(x, lengths).sum(), x)
        return gradient

    return run


def ctc(log_probs: torch.Tensor, lengths: torch.Tensor) -> Callable[[], object]:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1, log_probs.shape[2], (len(lengths), 20)))
    token_lengths = torch.full((len(lengths),), 20)

    def run() -> torch.Tensor:
        x = log_probs.detach().requires_grad_()
        loss = torch.nn.functional.ctc_loss(x.transpose(0, 1), tokens, lengths, token_lengths, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        return gradient

    return run


def k2_times() -> None:
    """The peer's side: a case a line on stdin, its time and scores a line on stdout."""
    from distill.lfmmi.k2_backend import K2Denominator

    for line in sys.stdin:
        graph, log_probs, lengths = inputs(*json.loads(line))
        denominator = K2Denominator(graph.automaton, OUTPUT_BEAM)
        seconds = median_time(lambda: denominator(log_probs, lengths))  # noqa: B023
        print(ANSWER, json.dumps([seconds, denominator(log_probs, lengths, gradient=False)[0].tolist()]), flush=True)


def memory_mb(case: tuple[int, int, int, str]) -> tuple[float, float]:
    """(resident memory with the inputs, what a score and its gradient add at most), in a process of its own."""
    code = (
        "import distill.bench.lfmmi as b, distill.bench.parts as p\n"
        f"graph, x, n = b.inputs(*{case!r}); b.native(graph, x[:, :2], n.clamp(max=2))()\n"
        "p.reset_peak(); before = p.peak_mb(); b.native(graph, x, n)(); print(before, p.peak_mb() - before)"
    )
    before, added = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    return float(before), float(added)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k2_python", help="interpreter that has k2 (make -s python-k2); without it k2 is left out")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--output", type=Path, help="write the figures here as well, as JSON")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peer:
        k2_times()
        return
    peer = None
    if args.k2_python:
        command = [args.k2_python, __file__, "--peer", "--threads", str(args.threads)]
        peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rows = []
    print(
        f"{args.threads} threads; score and gradient of a batch, ms (medians); last two columns: times slower than ours"
    )
    print(f"{'B':>2} {'T':>4} {'V':>5} {'kind':6} {'ours':>9} {'k2':>9} {'ctc_loss':>9} {'k2/ours':>8} {'ctc/ours':>8}")
    for case in CASES + LARGE:
        graph, log_probs, lengths = inputs(*case)
        k2_seconds, answer = None, None
        if peer is not None and case not in LARGE:
            assert peer.stdin is not None and peer.stdout is not None
            peer.stdin.write(json.dumps(case) + "\n")
            peer.stdin.flush()
            # k2 prints messages of its own among the answers, and ends the process where it runs out of memory.
            answer = next((line for line in peer.stdout if line.startswith(ANSWER)), None)
            if answer is None:
                peer = None
                print("note: k2 ended in the next case, so it is left out from there on")
        if answer is not None:
            k2_seconds, scores = json.loads(answer.removeprefix(ANSWER))
            difference = (graph.score(log_probs, lengths) - torch.tensor(scores, dtype=torch.double)).abs().max()
            # The beam leaves out paths up to e^-8 below the best in a frame; where emissions are flat, many.
            if case[3] == "peaky" and float(difference) > 1e-2 * case[1]:
                sys.exit(f"error: case {case}: k2's scores differ by {float(difference):.3g}, so times mean nothing")
        seconds, floor = median_time(native(graph, log_probs, lengths)), median_time(ctc(log_probs, lengths))
        row = {"batch": case[0], "frames": case[1], "vocab": case[2], "kind": case[3], "native_s": seconds}
        rows.append({**row, "k2_s": k2_seconds, "ctc_loss_s": floor})
        k2_text = (
            (f"{1e3 * k2_seconds:9.1f}", f"{k2_seconds / seconds:8.1f}") if k2_seconds else (f"{'-':>9}", f"{'-':>8}")
        )
        print(
            f"{case[0]:2} {case[1]:4} {case[2]:5} {case[3]:6} {1e3 * seconds:9.1f} {k2_text[0]} {1e3 * floor:9.1f} "
            f"{k2_text[1]} {floor / seconds:8.2f}",
            flush=True,
        )
    memory = []
    for batch, frames, vocab in ((8, 750, 500), (4, 750, 5000)):
        before, added = memory_mb((batch, frames, vocab, "peaky"))
        memory.append({"batch": batch, "frames": frames, "vocab": vocab, "added_mb": added})
        print(f"memory, B={batch} T={frames} V={vocab}: {added:.0f} MB on top of the {before:.0f} MB with the inputs")
    if args.output is not None:
        with atomic_write(args.output) as stream:
            json.dump({"threads": args.threads, "speed": rows, "memory": memory}, stream, indent=1)


if __name__ == "__main__":
    main()
