"""Decoding through a graph of CTC topology ∘ lexicon ∘ n-gram (T ∘ L ∘ G; Miao et al., 2015), by Kaldi's decoders.

A label of the graph's input is a token's id + 1, as 0 means epsilon there. Costs are negated natural logarithms.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import kaldi_decoder
import kaldifst
import kaldilm
import numpy as np
from torch import Tensor

from distill.data.lexicon import read_pronunciations
from distill.decode.hypothesis import Hypothesis, Token, Word, join_word
from distill.errors import UserError

Lexicon = dict[str, list[tuple[int, ...]]]  # word to its spellings in token ids


class Graph(NamedTuple):
    """T ∘ L ∘ G, the words of its output labels, their spellings, and the token between words, if there is one.

    ``words_are_tokens``: G is an n-gram of tokens.
    """

    fst: kaldifst.StdVectorFst
    words: list[str]
    lexicon: Lexicon
    separator: int | None
    words_are_tokens: bool


def spell(words: Iterable[str], token_list: Sequence[str], token_type: str, bpemodel: str | None = None) -> Lexicon:
    """Spellings of words by the model's own tokens; a word that they cannot spell is left out."""
    id_of = {token: index for index, token in enumerate(token_list)}
    if token_type == "bpe":
        from sentencepiece import SentencePieceProcessor

        if not bpemodel or not Path(bpemodel).is_file():
            raise UserError(f"bpemodel: {bpemodel} not found; a lexicon of bpe tokens needs it")
        split = SentencePieceProcessor(model_file=bpemodel).encode_as_pieces
    elif token_type == "char":
        split = list
    else:
        split = lambda word: [word]  # noqa: E731
    lexicon: Lexicon = {}
    for word in words:
        ids = [id_of.get(piece) for piece in split(word)]
        if ids and None not in ids and word not in ("<s>", "</s>", "<eps>", "#0"):
            lexicon[word] = [tuple(ids)]  # type: ignore[arg-type]
    return lexicon


def read_lexicon(path: Path, token_list: Sequence[str]) -> Lexicon:
    """A lexicon file: on each line a word and its tokens; a word may be there with several spellings."""
    id_of = {token: index for index, token in enumerate(token_list)}
    lexicon: Lexicon = {}
    for number, word, tokens in read_pronunciations(path):
        unknown = [token for token in tokens if token not in id_of or token == token_list[0]]
        if unknown:
            raise UserError(
                f"{path}:{number}: token {unknown[0]!r} is not in the model's token list; spell the word in its tokens"
            )
        spelling = tuple(id_of[token] for token in tokens)
        if spelling not in lexicon.setdefault(word, []):
            lexicon[word].append(spelling)
    return lexicon


class GraphBuilder:
    """Graphs of one n-gram and lexicon with any weights; reads the ARPA file once.

    Args:
        lm: ARPA file of words, or of tokens. Its words that the lexicon lacks are left out.
        lexicon: spellings; for an n-gram of tokens each token's own id.
        token_list: tokens by id, blank first. Where one is <space>, spellings are separated by it.
        words_are_tokens: whether the n-gram is one of tokens.
    """

    def __init__(self, lm: Path, lexicon: Lexicon, token_list: Sequence[str], words_are_tokens: bool = False) -> None:
        if not lexicon:
            raise UserError(f"{lm}: none of its words can be spelt in the model's tokens; take another n-gram")
        if not lm.is_file():
            raise UserError(f"{lm}: not found")
        self._lexicon, self._words_are_tokens = lexicon, words_are_tokens
        self._words = ["<eps>", *sorted(lexicon), "#0"]
        with tempfile.TemporaryDirectory() as folder:
            symbols = Path(folder, "words.txt")
            named = [*self._words, "<s>", "</s>"]
            symbols.write_text("".join(f"{word} {label}\n" for label, word in enumerate(named)), encoding="utf-8")
            self._g = kaldilm.arpa2fst(
                str(lm), "", disambig_symbol="#0", read_symbol_table=str(symbols), max_arpa_warnings=0
            )
        self._separator = token_list.index("<space>") if "<space>" in token_list and not words_are_tokens else None
        self._tokens = sorted({token for spellings in lexicon.values() for s in spellings for token in s})
        if self._separator is not None and self._separator not in self._tokens:
            self._tokens.append(self._separator)
        self._first_mark = len(token_list) + 1
        self._l = self._lexicon_fst(self._separator)
        self._t = self._topology()

    def build(self, lm_weight: float, word_bonus: float = 0.0) -> Graph:
        """The graph whose path costs are -``lm_weight`` · ln P - ``word_bonus`` per word."""
        g = kaldifst.compile("\n".join(self._scaled(line, lm_weight, word_bonus) for line in self._g.splitlines()))
        kaldifst.arcsort(g, "ilabel")
        lg = kaldifst.compose(self._l, g)
        if lg.num_states == 0:
            raise UserError("the n-gram and the lexicon share no sentence; take those of one language")
        kaldifst.determinize_star(lg)
        kaldifst.minimize_encoded(lg)
        lg = kaldifst.compile("\n".join(self._unmarked(line) for line in lg.to_str().splitlines()))
        kaldifst.arcsort(lg, "ilabel")
        tlg = kaldifst.compose(self._t, lg)
        return Graph(tlg, self._words, self._lexicon, self._separator, self._words_are_tokens)

    @staticmethod
    def _scaled(line: str, lm_weight: float, word_bonus: float) -> str:
        fields = line.split()
        if not fields:
            return ""
        cost = float(fields[-1]) if len(fields) in (2, 5) else 0.0
        cost *= lm_weight
        if len(fields) >= 4:
            cost -= word_bonus if fields[3] != "0" else 0.0
            return " ".join((*fields[:4], repr(cost)))
        return f"{fields[0]} {cost!r}"

    def _unmarked(self, line: str) -> str:
        fields = line.split()
        if len(fields) >= 4 and int(fields[2]) >= self._first_mark:
            fields[2] = "0"
        return " ".join(fields)

    def _lexicon_fst(self, separator: int | None) -> kaldifst.StdVectorFst:
        """L, closed. A spelling that begins another, or is it, ends in a mark, so that L ∘ G can be determinized."""
        taken: dict[tuple[int, ...], int] = {}
        beginnings = {s[:n] for spellings in self._lexicon.values() for s in spellings for n in range(1, len(s))}
        backoff = f"{self._first_mark} {len(self._words) - 1}"
        # State 0: nothing said. With a separator: 1 before a word, 2 after one. Without: 0 is all of these.
        before, after = (0, 0) if separator is None else (1, 2)
        lines = ["0", f"0 0 {backoff}"]
        if separator is not None:
            lines = ["0 1 0 0", "0", "2", f"0 0 {backoff}", f"2 2 {backoff}", f"2 1 {separator + 1} 0"]
        free = 3
        for label, word in enumerate(self._words[1:-1], 1):
            for spelling in self._lexicon[word]:
                labels = [token + 1 for token in spelling]
                count = taken[spelling] = taken.get(spelling, 0) + 1
                if count > 1 or spelling in beginnings:
                    labels.append(self._first_mark + count)
                state = before
                for position, symbol in enumerate(labels):
                    if position == len(labels) - 1:
                        target = after
                    else:
                        target, free = free, free + 1
                    lines.append(f"{state} {target} {symbol} {label if position == 0 else 0}")
                    state = target
        l_fst = kaldifst.compile("\n".join(lines))
        kaldifst.arcsort(l_fst, "olabel")
        return l_fst

    def _topology(self) -> kaldifst.StdVectorFst:
        """T: a token lasts one frame or more; between two of the same there is a blank. State 0 follows a blank."""
        lines = ["0 0 1 0", "0"]
        for state, token in enumerate(self._tokens, 1):
            lines += [f"0 {state} {token + 1} {token + 1}", f"{state} {state} {token + 1} 0", f"{state} 0 1 0"]
            lines += [
                f"{state} {to} {other + 1} {other + 1}" for to, other in enumerate(self._tokens, 1) if to != state
            ]
            lines.append(str(state))
        t_fst = kaldifst.compile("\n".join(lines))
        kaldifst.arcsort(t_fst, "olabel")
        return t_fst


class WfstSearch:
    """Viterbi search through a graph, for streams; see :class:`distill.decode.hypothesis.Search`.

    The best path is that of Kaldi's faster decoder, further hypotheses come from Kaldi's lattice decoder at the end of
    an utterance. Its log-probabilities are kept till then, as the posteriors of a path are looked up in them.

    Args:
        beam: costs above the frame's best that are followed.
        max_active: states that are followed at most.
        nbest: hypotheses with different words that ``finish`` returns at most.
    """

    settled = 0  # any token may change

    def __init__(self, graph: Graph, beam: float = 16.0, max_active: int = 7000, nbest: int = 1) -> None:
        if beam <= 0:
            raise UserError(f"beam: {beam} must be positive")
        self._graph, self._beam, self._nbest = graph, beam, nbest
        options = kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=max_active)
        self._decoder = kaldi_decoder.FasterDecoder(graph.fst, options)
        self.frames = 0
        self._begin()

    def _begin(self) -> None:
        self._first_frame = self.frames
        self._kept: list[np.ndarray] = []
        self._decoder.init_decoding()

    def accept(self, logits: Tensor) -> None:
        """Take in (t, V) logits or log-probabilities; t may be 0."""
        if not len(logits):
            return
        log_p = logits.detach().float().log_softmax(-1).cpu().numpy()
        self._kept.append(log_p)
        self._decoder.advance_decoding(kaldi_decoder.DecodableCtc(log_p, self.frames - self._first_frame))
        self.frames += len(log_p)

    @property
    def best(self) -> Hypothesis:
        """The best path of the frames so far, be it in the middle of a word."""
        return self._best(ended=False)

    def finish(self) -> list[Hypothesis]:
        """End an utterance: its hypotheses, best first, at a sentence end if one is within reach."""
        hypotheses = [self._best(ended=True)]
        if self._nbest > 1 and self._kept:
            first = _said(hypotheses[0])
            hypotheses += [other for other in self._others() if _said(other) != first][: self._nbest - 1]
        self._begin()
        return hypotheses

    def _best(self, ended: bool) -> Hypothesis:
        found, path = self._decoder.get_best_path(use_final_probs=ended)
        if not found or path.start < 0 or not self._kept:
            return Hypothesis([], None if self._graph.words_are_tokens else [], -math.inf if self._kept else 0.0)
        _, labels, words, weight = kaldifst.get_linear_symbol_sequence(path)
        return self._hypothesis(labels, words, weight.value1 + weight.value2)

    def _hypothesis(self, labels: Sequence[int], words: Sequence[int], cost: float) -> Hypothesis:
        ids = np.array(labels, int) - 1
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
        """The kept (t, V) pieces, each with its part of a path."""
        start = 0
        for rows in self._kept:
            yield rows, ids[start : start + len(rows)]
            start += len(rows)

    def _place(self, words: list[str], tokens: list[Token]) -> list[Word]:
        """Words with the frames of the tokens that spell them; the last one may still lack some."""
        lexicon = self._graph.lexicon
        ids = [token.id for token in tokens]
        # ends[n]: where the first n words may end, with where the n-th then began
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
            rest = tokens[max(ends[count]) :] or tokens[-1:]
            placed = [join_word(rest, word) for word in words[count:] if rest]
        stop = max(ends[count])
        while count:
            start = ends[count][stop]
            inside = [token for token in tokens[start:stop] if token.id != self._graph.separator]
            placed.insert(0, join_word(inside, words[count - 1]))
            stop, count = start, count - 1
        return placed

    def _others(self) -> list[Hypothesis]:
        """Paths of the lattice with different words, best first."""
        log_p = np.concatenate(self._kept)
        options = kaldi_decoder.LatticeSimpleDecoderConfig(beam=self._beam, lattice_beam=self._beam)
        decoder = kaldi_decoder.LatticeSimpleDecoder(self._graph.fst, options)
        decoder.decode(kaldi_decoder.DecodableCtc(log_p))
        found, lattice = decoder.get_raw_lattice(use_final_probs=True)
        if not found or lattice.start < 0:
            return []
        # Of each state the n cheapest different word sequences: cost and path, as (path before, input label)
        heads: dict[int, dict[tuple[int, ...], tuple[float, tuple | None]]] = {lattice.start: {(): (0.0, None)}}
        complete: dict[tuple[int, ...], tuple[float, tuple | None]] = {}
        for state, arcs, end_cost in _sorted_states(lattice):
            mine = sorted(heads.pop(state, {}).items(), key=lambda item: item[1][0])[: self._nbest]
            for words, (cost, path) in mine:
                if cost + end_cost < complete.get(words, (math.inf,))[0]:
                    complete[words] = (cost + end_cost, path)
                for to, label, word, arc_cost in arcs:
                    longer = (*words, word) if word else words
                    there = heads.setdefault(to, {})
                    if cost + arc_cost < there.get(longer, (math.inf,))[0]:
                        there[longer] = (cost + arc_cost, (path, label) if label else path)
        hypotheses = []
        for words, (cost, path) in sorted(complete.items(), key=lambda item: item[1][0])[: self._nbest]:
            labels: list[int] = []
            while path is not None:
                path, label = path
                labels.append(label)
            hypotheses.append(self._hypothesis(labels[::-1], words, cost))
        return hypotheses


def _said(hypothesis: Hypothesis) -> list[str] | list[int]:
    if hypothesis.words is not None:
        return [word.text for word in hypothesis.words]
    return [token.id for token in hypothesis.tokens]


def _sorted_states(lattice: kaldifst.Lattice) -> list[tuple[int, list[tuple[int, int, int, float]], float]]:
    """States of an acyclic lattice, each before those its arcs lead to: arcs (state, labels, cost) and end cost."""
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
