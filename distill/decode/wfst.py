"""Search through a decoding graph (:mod:`distill.decode.tlg_graph`) with Kaldi's decoders."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import kaldi_decoder
import kaldifst
import numpy as np
from torch import Tensor

from distill.decode.hypothesis import Hypothesis, Token, Word, join_word
from distill.decode.tlg_graph import Graph
from distill.errors import UserError


class WfstSearch:
    """Viterbi search of one stream through a graph; a :class:`distill.decode.hypothesis.Search`.

    The best path is that of Kaldi's FasterDecoder. Further hypotheses come from Kaldi's lattice decoder at the end of
    an utterance. The utterance's log-probabilities are kept until then, for it and for the posteriors of a path.

    Args:
        beam: paths whose cost exceeds the frame's lowest by more than this are pruned.
        max_active: largest number of active states.
        nbest: largest number of hypotheses, all with different words, that ``finish`` returns.
    """

    settled = 0  # more frames can change any token

    def __init__(self, graph: Graph, beam: float = 16.0, max_active: int = 7000, nbest: int = 1) -> None:
        if beam <= 0:
            raise UserError(f"beam: {beam} must be positive")
        self._graph, self._beam, self._nbest = graph, beam, nbest
        options = kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=max_active)
        self._decoder = kaldi_decoder.FasterDecoder(graph.fst, options)
        self.frames = 0
        self._start_utterance()

    def _start_utterance(self) -> None:
        self._first_frame = self.frames
        self._kept: list[np.ndarray] = []
        self._decoder.init_decoding()

    def accept(self, logits: Tensor) -> None:
        """Decode the next (t, V) logits or log-probabilities; t may be 0."""
        if not len(logits):
            return
        log_p = logits.detach().float().log_softmax(-1).cpu().numpy()
        self._kept.append(log_p)
        self._decoder.advance_decoding(kaldi_decoder.DecodableCtc(log_p, self.frames - self._first_frame))
        self.frames += len(log_p)

    @property
    def best(self) -> Hypothesis:
        """The best path of the frames so far; it may end within a word."""
        return self._best(ended=False)

    def finish(self) -> list[Hypothesis]:
        """End the utterance and return its hypotheses, best first.

        They end at a sentence end of the n-gram, if the beam contains one. The next frame begins a new utterance.
        """
        hypotheses = [self._best(ended=True)]
        if self._nbest > 1 and self._kept:
            first = _text_of(hypotheses[0])
            others = [hypothesis for hypothesis in self._from_lattice() if _text_of(hypothesis) != first]
            hypotheses += others[: self._nbest - 1]
        self._start_utterance()
        return hypotheses

    def _best(self, ended: bool) -> Hypothesis:
        success, path = self._decoder.get_best_path(use_final_probs=ended)
        if not success or path.start < 0 or not self._kept:
            return Hypothesis([], None if self._graph.words_are_tokens else [], -math.inf if self._kept else 0.0)
        _, labels, words, weight = kaldifst.get_linear_symbol_sequence(path)
        return self._hypothesis(labels, words, weight.value1 + weight.value2)

    def _hypothesis(self, labels: Sequence[int], words: Sequence[int], cost: float) -> Hypothesis:
        """The hypothesis of a path: an input label per frame, the output labels, and the cost."""
        ids = np.array(labels, int) - 1  # token of each frame
        log_p = np.concatenate([rows[np.arange(len(rows)), part] for rows, part in self._along(ids)])
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        ends = np.append(starts[1:], len(ids))
        tokens = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if ids[start]:
                confidence = float(np.exp(log_p[start:end]).mean())
                tokens.append(Token(int(ids[start]), self._first_frame + start, self._first_frame + end, confidence))
        if self._graph.words_are_tokens:
            return Hypothesis(tokens, None, -cost)
        return Hypothesis(tokens, self._place([self._graph.words[label] for label in words], tokens), -cost)

    def _along(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each kept (t, V) piece of log-probabilities with the (t,) token ids of a path through it."""
        start = 0
        for rows in self._kept:
            yield rows, ids[start : start + len(rows)]
            start += len(rows)

    def _place(self, words: list[str], tokens: list[Token]) -> list[Word]:
        """Words with the frames of the tokens that spell them. The last word may be incomplete."""
        lexicon = self._graph.lexicon
        ids = [token.id for token in tokens]
        # ends[n]: positions where the first n words can end, each with the position where the n-th word begins
        ends: list[dict[int, int]] = [{0: 0}]
        for word in words:
            after: dict[int, int] = {}
            for end in ends[-1]:
                start = end
                while start < len(ids) and ids[start] == self._graph.separator:
                    start += 1
                for spelling in lexicon[word]:
                    if tuple(ids[start : start + len(spelling)]) == spelling:
                        after[start + len(spelling)] = end
            ends.append(after)
        placed: list[Word] = []
        count = len(words)
        while count and not ends[count]:
            count -= 1
        if count < len(words):
            remaining = tokens[max(ends[count]) :] or tokens[-1:]
            placed = [join_word(remaining, word) for word in words[count:] if remaining]
        stop = max(ends[count])
        while count:
            start = ends[count][stop]
            inside = [token for token in tokens[start:stop] if token.id != self._graph.separator]
            placed.insert(0, join_word(inside, words[count - 1]))
            stop, count = start, count - 1
        return placed

    def _from_lattice(self) -> list[Hypothesis]:
        """The n best paths with different words in the utterance's lattice, best first."""
        log_p = np.concatenate(self._kept)
        options = kaldi_decoder.LatticeSimpleDecoderConfig(beam=self._beam, lattice_beam=self._beam)
        decoder = kaldi_decoder.LatticeSimpleDecoder(self._graph.fst, options)
        decoder.decode(kaldi_decoder.DecodableCtc(log_p))
        success, lattice = decoder.get_raw_lattice(use_final_probs=True)
        if not success or lattice.start < 0:
            return []
        # The n cheapest word sequences that lead to each state: cost and path, as (path before, input label)
        prefixes: dict[int, dict[tuple[int, ...], tuple[float, tuple | None]]] = {lattice.start: {(): (0.0, None)}}
        complete: dict[tuple[int, ...], tuple[float, tuple | None]] = {}
        for state, arcs, end_cost in _sorted_states(lattice):
            best = sorted(prefixes.pop(state, {}).items(), key=lambda item: item[1][0])[: self._nbest]
            for words, (cost, path) in best:
                if cost + end_cost < complete.get(words, (math.inf,))[0]:
                    complete[words] = (cost + end_cost, path)
                for to, label, word, arc_cost in arcs:
                    longer = (*words, word) if word else words
                    known = prefixes.setdefault(to, {})
                    if cost + arc_cost < known.get(longer, (math.inf,))[0]:
                        known[longer] = (cost + arc_cost, (path, label) if label else path)
        hypotheses = []
        for words, (cost, path) in sorted(complete.items(), key=lambda item: item[1][0])[: self._nbest]:
            labels: list[int] = []
            while path is not None:
                path, label = path
                labels.append(label)
            hypotheses.append(self._hypothesis(labels[::-1], words, cost))
        return hypotheses


def _text_of(hypothesis: Hypothesis) -> list[str] | list[int]:
    """Words of a hypothesis, or ids of its tokens if it has no words."""
    if hypothesis.words is not None:
        return [word.text for word in hypothesis.words]
    return [token.id for token in hypothesis.tokens]


def _sorted_states(lattice: kaldifst.Lattice) -> list[tuple[int, list[tuple[int, int, int, float]], float]]:
    """States of an acyclic lattice in topological order.

    Returns:
        for each state its number, its arcs (next state, input label, output label, cost) and its final cost.
    """
    arcs: dict[int, list[tuple[int, int, int, float]]] = {state: [] for state in range(lattice.num_states)}
    end_costs = dict.fromkeys(arcs, math.inf)
    incoming = dict.fromkeys(arcs, 0)
    for line in lattice.to_str().splitlines():  # kaldifst has no iterator over a lattice's arcs
        fields = line.split()
        state, costly = int(fields[0]), len(fields) in (2, 5)
        cost = sum(map(float, fields[-1].split(","))) if costly else 0.0
        if len(fields) < 4:
            end_costs[state] = cost
        else:
            to, label, word = map(int, fields[1:4])
            arcs[state].append((to, label, word, cost))
            incoming[to] += 1
    ready = [state for state, count in incoming.items() if count == 0]
    ordered = []
    while ready:
        state = ready.pop()
        ordered.append((state, arcs[state], end_costs[state]))
        for to, *_ in arcs[state]:
            incoming[to] -= 1
            if not incoming[to]:
                ready.append(to)
    return ordered
