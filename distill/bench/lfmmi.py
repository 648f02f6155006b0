#!/usr/bin/env python
"""Speed of the LF-MMI denominator's score and gradient on n-grams of real text, beside k2's and torch's ctc_loss.

    make bench TEXT=transcripts.txt

The text is cut into pieces by sentencepiece at each vocabulary size, and the n-grams are estimated on it. k2 runs in
the environment that holds it, with the graph that icefall would give it (back-off arcs turned to epsilons and removed)
and with icefall's beams; its error is the difference of its score from the exact one of that same graph.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from distill.errors import UserError, cli
from distill.files import atomic_write
from distill.lfmmi import DenominatorGraph
from distill.lfmmi.ngram_automaton import Automaton

BEAMS = (8.0, 15.0)
BUDGET_S = 4.0  # of timing a case, after one run to warm up
K2_LIMIT_S = 600  # for building a graph and timing all beams


class Case(NamedTuple):
    """A batch: utterances, frames, pieces of the vocabulary, order, and how peaky its emissions are."""

    batch: int
    frames: int
    pieces: int
    order: int
    kind: str


CASES = [
    *(Case(8, 750, pieces, 2, kind) for pieces in (100, 500) for kind in ("peaky", "flat")),
    Case(8, 750, 2000, 2, "peaky"),
    Case(4, 750, 5000, 2, "peaky"),
    Case(8, 750, 500, 3, "peaky"),
    Case(4, 750, 5000, 3, "peaky"),
]
K2_PIECES = 2000  # more have tens of millions of arcs once the back-off is removed


def token_lines(text: Path, pieces: int) -> list[list[int]]:
    """Token ids (from 1; 0 is blank) of every line by a unigram model of so many pieces, trained on the text itself."""
    import sentencepiece

    lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=pieces,
            character_coverage=1.0,
            minloglevel=2,
            num_threads=1,
        )
    except RuntimeError as error:
        raise UserError(f"{text}: no {pieces} pieces can be had from it ({error}); give a longer text") from None
    encoder = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [[token + 1 for token in encoder.encode(line)] for line in lines]


def inputs(case: Case, lines: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (B, T, V) and lengths (B,); peaky: as a trained model's on the text, a token in five frames."""
    rng = np.random.default_rng(case.pieces)
    vocab = case.pieces + 1
    logits = rng.standard_normal((case.batch, case.frames, vocab), dtype=np.float32)
    if case.kind == "peaky":
        best = np.zeros((case.batch, case.frames), dtype=int)
        stream = [token for index in rng.permutation(len(lines)) for token in lines[index]]
        places = np.arange(0, best.size, 5) + rng.integers(0, 4, -(-best.size // 5))
        best.reshape(-1)[np.minimum(places, best.size - 1)] = np.resize(stream, len(places))
        np.put_along_axis(logits, best[:, :, None], np.take_along_axis(logits, best[:, :, None], 2) + 12, 2)
    return torch.from_numpy(logits).log_softmax(2), torch.full((case.batch,), case.frames)


def times(run: Callable[[], object]) -> dict[str, float]:
    """Median and least seconds of several runs after a first one; of the first alone where that takes long."""
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    taken = [first] if first > BUDGET_S else []
    while not taken or (len(taken) < 50 and first <= BUDGET_S and (sum(taken) < BUDGET_S or len(taken) < 5)):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return {"median": statistics.median(taken), "least": min(taken)}


def native(graph: DenominatorGraph, log_probs: torch.Tensor, lengths: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Computes the gradient of the scores."""

    def run() -> torch.Tensor:
        x = log_probs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(graph.score(x, lengths).sum(), x)
        return gradient

    return run


def ctc(log_probs: torch.Tensor, lengths: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Computes the gradient of torch's ctc_loss with 20 tokens an utterance."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1, log_probs.shape[2], (len(lengths), 20)))
    token_lengths = torch.full((len(lengths),), 20)

    def run() -> torch.Tensor:
        x = log_probs.detach().requires_grad_()
        loss = torch.nn.functional.ctc_loss(x.transpose(0, 1), tokens, lengths, token_lengths, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        return gradient

    return run


def both_ways(automaton: Automaton) -> DenominatorGraph:
    """A bigram in which a listed token counts by its own arc and by back-off too, as in icefall's graph."""
    a = automaton
    below, _ = a.resolve(a.backoff[a.arc_node], a.arc_token)
    log_p = np.logaddexp(a.arc_log_p, below + a.log_weight[a.arc_node])
    arcs = (a.arc_node, a.arc_token, a.arc_target, log_p)
    return DenominatorGraph(Automaton.make(a.vocab_size, a.last, a.final, arcs, a.backoff, a.log_weight, a.order))


def k2_times(folder: Path) -> None:
    """In k2's environment: times and scores with every beam, of the inputs and the n-gram in a folder."""
    from distill.lfmmi.k2_backend import K2Denominator, icefall_graph

    log_probs = torch.from_numpy(np.load(folder / "log_probs.npy"))
    lengths = torch.full((len(log_probs),), log_probs.shape[1])
    graph = icefall_graph((folder / "P.fst.txt").read_text(), log_probs.shape[2])
    results = []
    for beam in BEAMS:
        denominator = K2Denominator(graph, beam)
        seconds = times(lambda: denominator(log_probs, lengths))  # noqa: B023
        scores, _ = denominator(log_probs, lengths, gradient=False)
        results.append({"beam": beam, "seconds": seconds, "scores": scores.tolist(), "arcs": graph.num_arcs})
        (folder / "k2.json").write_text(json.dumps(results))


def k2_beside(
    python: str, threads: int, graph: DenominatorGraph, log_probs: torch.Tensor, lengths: torch.Tensor
) -> list[dict[str, Any]]:
    """k2's times and errors, as many beams as end in time and in memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "log_probs.npy", log_probs.numpy())
        graph.to_openfst(folder / "P.fst.txt")
        command = [python, "-m", "distill.bench.lfmmi", "--k2_case", name, "--threads", str(threads)]
        try:
            subprocess.run(command, timeout=K2_LIMIT_S, check=False, stdout=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            pass
        if not (folder / "k2.json").exists():
            return []
        results: list[dict[str, Any]] = json.loads((folder / "k2.json").read_text())
    exact = both_ways(graph.automaton).score(log_probs.double(), lengths)
    for result in results:
        scores = torch.tensor(result.pop("scores"), dtype=torch.double)
        result["error"] = float((scores - exact).abs().max())
    return results


def memory_mb(folder: Path) -> float:
    """What a score and its gradient add at most to a process that holds the inputs and has run two frames."""
    code = (
        "import sys, numpy, torch, distill.bench.lfmmi as b, distill.bench.parts as p\n"
        "from distill.lfmmi import DenominatorGraph\n"
        "torch.set_num_threads(2); graph = DenominatorGraph.load(sys.argv[1] + '/den.npz')\n"
        "x = torch.from_numpy(numpy.load(sys.argv[1] + '/x.npy')); n = torch.full((len(x),), x.shape[1])\n"
        "b.native(graph, x[:, :2], n.clamp(max=2))()\n"
        "p.reset_peak(); before = p.peak_mb(); b.native(graph, x, n)(); print(p.peak_mb() - before)"
    )
    return float(subprocess.check_output([sys.executable, "-c", code, str(folder)], text=True))


def measure(case: Case, lines: list[list[int]], threads: int, k2_python: str | None) -> dict[str, Any]:
    """All figures of one case."""
    graph = DenominatorGraph.from_text(lines, case.order, case.pieces + 1)
    log_probs, lengths = inputs(case, lines)
    run = native(graph, log_probs, lengths)
    row: dict[str, Any] = case._asdict() | {"states": graph.states, "listed": len(graph.automaton.arc_node)}
    row["seconds"] = times(run)
    row["ctc_seconds"] = times(ctc(log_probs, lengths))
    double = log_probs.double()
    row["error"] = float((graph.score(log_probs, lengths) - graph.score(double, lengths)).abs().max())
    row["gradient_error"] = float((run() - native(graph, double, lengths)()).abs().max())
    with tempfile.TemporaryDirectory() as name:
        graph.save(Path(name) / "den.npz")
        np.save(Path(name) / "x.npy", log_probs.numpy())
        row["added_mb"] = memory_mb(Path(name))
    row["k2"] = []
    if k2_python is not None and case.order == 2 and case.pieces <= K2_PIECES:
        row["k2"] = k2_beside(k2_python, threads, graph, log_probs, lengths)
    return row


def show(row: dict[str, Any]) -> str:
    """A line for a person."""
    k2 = "; ".join(
        f"k2 beam {r['beam']:g}: {1e3 * r['seconds']['median']:.0f} ms, error {r['error']:.2g}" for r in row["k2"]
    )
    return (
        f"B={row['batch']} T={row['frames']} V={row['pieces'] + 1} order {row['order']} {row['kind']}: "
        f"{1e3 * row['seconds']['median']:.1f} ms (least {1e3 * row['seconds']['least']:.1f}), "
        f"error {row['error']:.2g}, gradient {row['gradient_error']:.1g}, +{row['added_mb']:.0f} MB; "
        f"ctc_loss {1e3 * row['ctc_seconds']['median']:.1f} ms; {k2 or 'k2 -'}"
    )


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="real text, a sentence a line, to estimate the n-grams on")
    parser.add_argument("--k2_python", help="interpreter that has k2 (make -s python-k2); without it k2 is left out")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--output", type=Path, help="write the figures here as well, as JSON")
    parser.add_argument("--k2_case", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.k2_case is not None:
        k2_times(args.k2_case)
        return
    if args.text is None or not args.text.is_file():
        raise UserError(f"--text {args.text}: not a file; give real text, a sentence a line")
    lines = {pieces: token_lines(args.text, pieces) for pieces in sorted({case.pieces for case in CASES})}
    rows = []
    for case in CASES:
        rows.append(measure(case, lines[case.pieces], args.threads, args.k2_python))
        print(show(rows[-1]), flush=True)
    sizes = {"sentences": len(lines[CASES[0].pieces]), "tokens": {v: sum(map(len, ls)) for v, ls in lines.items()}}
    if args.output is not None:
        with atomic_write(args.output) as stream:
            report = {"date": f"{datetime.date.today():%d %B %Y}", "threads": args.threads, "text": sizes, "rows": rows}
            json.dump(report, stream, indent=1)


if __name__ == "__main__":
    main()
