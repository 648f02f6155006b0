"""Decoding graphs: CTC topology ∘ lexicon ∘ n-gram (T ∘ L ∘ G; Miao et al., 2015).

An input label is a token's id + 1, because label 0 is epsilon. Costs are negative natural logarithms.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import kaldifst
import numpy as np

from distill.data.lexicon import read_pronunciations
from distill.decode import graph_file
from distill.decode import graph_loops as loops
from distill.decode.lm import NgramLM
from distill.errors import UserError
from distill.files import atomic_write, name_beside, sha256

FORMAT = 1  # of the graphs; another number makes them anew
KEPT = 4  # graphs with weights that are kept, of each n-gram and lexicon
MAX_ORDER = 10

Lexicon = dict[str, list[tuple[int, ...]]]  # word to its spellings, each a sequence of token ids


class Graph(NamedTuple):
    """A decoding graph.

    Attributes:
        fst: T ∘ L ∘ G.
        words: word of each output label.
        lexicon: spellings of the words.
        separator: id of the token between two words; None if the model has none.
        words_are_tokens: whether G is an n-gram of tokens.
    """

    fst: kaldifst.StdConstFst
    words: list[str]
    lexicon: Lexicon
    separator: int | None
    words_are_tokens: bool


def spell(words: Iterable[str], token_list: Sequence[str], token_type: str, bpemodel: str | None = None) -> Lexicon:
    """Spell words in the model's tokens; a word that they cannot spell is left out.

    Args:
        token_list: tokens by id, blank first.
        token_type: char, bpe, or word for words that are tokens themselves.
        bpemodel: sentencepiece model, for bpe.
    """
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
    """Read a lexicon file: on each line a word and its tokens. A word may have several lines.

    Raises:
        UserError: a token is not in the model's list.
    """
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
    """Builds the graph of one n-gram and lexicon. It is made once and kept; each pair of weights is applied to it.

    Behind every history of the n-gram is a tree of the words that it lists, in which costs are paid as early as the
    tokens tell the words apart; what it does not list follows by backing off, which takes no token. This is what
    composition and determinisation of L ∘ G give, made directly.

    Args:
        lm: n-gram of words or tokens, in ARPA format. Its words that the lexicon lacks are left out.
        lexicon: spellings of words; for an n-gram of tokens, the id of each token.
        token_list: tokens by id, blank first. If <space> is one of them, it separates words.
        words_are_tokens: whether the n-gram is of tokens.
        folder: where graphs are kept; None: beside the n-gram if that can be written, else nowhere.

    Raises:
        UserError: the n-gram is missing, or none of its words can be spelt.
    """

    def __init__(
        self,
        lm: Path,
        lexicon: Lexicon,
        token_list: Sequence[str],
        words_are_tokens: bool = False,
        folder: Path | None = None,
    ) -> None:
        if not lexicon:
            raise UserError(f"{lm}: none of its words can be spelt in the model's tokens; take another n-gram")
        if not lm.is_file():
            raise UserError(f"{lm}: not found")
        self._lm, self._lexicon, self._words_are_tokens = lm, lexicon, words_are_tokens
        self._words = ["<eps>", *sorted(lexicon)]
        self._separator = token_list.index("<space>") if "<space>" in token_list and not words_are_tokens else None
        self._tokens = len(token_list) + 1  # input labels
        self._kept = folder or lm.with_name(f"{lm.name}.graphs")
        self._unkept: tempfile.TemporaryDirectory[str] | None = None
        if not _writable(self._kept):
            self._unkept = tempfile.TemporaryDirectory()
            self._kept = Path(self._unkept.name)

    @cached_property
    def _name(self) -> str:
        """Name of the graph's files: a checksum of all that it is made from."""
        digest = hashlib.sha256(sha256(self._lm).encode())
        for word in self._words[1:]:
            digest.update(f"{word} {self._lexicon[word]}\n".encode())
        digest.update(f"{FORMAT} {self._separator} {self._tokens}".encode())
        return digest.hexdigest()[:16]

    def build(self, lm_weight: float, word_bonus: float = 0.0) -> Graph:
        """A graph in which a sentence W of n words costs -``lm_weight`` · ln P(W) - ``word_bonus`` · n."""
        plain = self._kept / f"{self._name}.fst"
        weighted = self._kept / f"{self._name}_{lm_weight:g}_{word_bonus:g}.fst"
        with locked(self._kept / f"{self._name}.lock"):
            if not weighted.exists():
                if not plain.exists():
                    self._write(plain)
                with _beside(weighted) as path:
                    begins = np.load(plain.with_suffix(".npy"), mmap_mode="r")
                    graph_file.write_weighted(plain, begins, lm_weight, word_bonus, path)
                for old in sorted(self._kept.glob(f"{self._name}_*.fst"), key=lambda file: file.stat().st_mtime)[
                    :-KEPT
                ]:
                    old.unlink(missing_ok=True)  # who has it mapped keeps it
            fst = graph_file.read(weighted)
        return Graph(fst, self._words, self._lexicon, self._separator, self._words_are_tokens)

    def _write(self, path: Path) -> None:
        """Write the graph for a weight of 1, and the bits of the arcs that begin words."""
        lg, final, words_from = self._lexicon_and_lm()
        begin, il, _, _, to = lg
        pairs = np.unique(to[il > 0] * np.int64(self._tokens) + il[il > 0])
        new = pairs
        while len(new):
            again = loops.repeats(new, self._tokens, begin, il, to)
            new = np.unique(loops.backed_off(new, again, self._tokens, begin, il, to))
            new = new[pairs[np.minimum(pairs.searchsorted(new), len(pairs) - 1)] != new]
            pairs = np.union1d(pairs, new)
        again = loops.repeats(pairs, self._tokens, begin, il, to)
        arguments = (pairs, again, self._tokens, lg, final, words_from)
        nothing = np.recarray(0, graph_file.STATE), np.recarray(0, graph_file.ARC), np.zeros(0, np.uint8)
        count = loops.topology(*arguments, *nothing, False)
        with _beside(path) as beside:
            states, arcs = graph_file.create(beside, len(final) + len(pairs), count)
            bits = np.zeros(-(-count // 8), np.uint8)
            loops.topology(*arguments, states.view(np.recarray), arcs.view(np.recarray), bits, True)
            states.flush()
            arcs.flush()
            with atomic_write(path.with_suffix(".npy"), "wb") as stream:
                np.save(stream, bits)

    def _lexicon_and_lm(self) -> tuple[loops.Arcs, np.ndarray, tuple[int, int]]:
        """L ∘ G: begin, input label, output label, cost and target of arcs; final costs; states where words begin.

        State 0 is the start, then come the histories where a word begins and, if a token separates words, the histories
        behind a word.
        """
        lm = NgramLM(self._lm)
        label_of = np.zeros(len(lm.word_ids), np.int32)
        for label, word in enumerate(self._words[1:], 1):
            if word in lm.word_ids:
                label_of[lm.word_ids[word]] = label
        states, state_of, extra, final = _histories(lm, label_of)
        count = len(states)
        nodes = np.flatnonzero((label_of[lm.word] > 0) & (lm.word >= 0))
        nodes = nodes[(state_of[lm.parent[nodes]] >= 0) & (states[state_of[lm.parent[nodes]]] == lm.parent[nodes])]
        if not len(nodes) or not np.isfinite(final).any():
            raise UserError("the n-gram and the lexicon share no sentence; take those of one language")
        before, behind = 1, 1 if self._separator is None else 1 + count
        table = _Spellings(self._lexicon, self._words)
        src = before + state_of[lm.parent[nodes]]
        cost = (extra[nodes] - lm.log_p[nodes]).astype(np.float32)
        dst = behind + state_of[nodes]
        each = table.number[label_of[lm.word[nodes]]]
        which = np.repeat(np.arange(len(nodes)), each)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(each) - each, each)
        rank = table.ranks[table.first[label_of[lm.word[nodes]]][which] + nth]
        order = np.argsort(src[which] * np.int64(len(table.labels)) + rank, kind="stable")
        rows = (src[which][order], rank[order], cost[which][order], dst[which][order].astype(np.int64))
        tree = (*rows, table.tokens, table.start, table.labels, table.suffix, table.suffixes, behind + count)
        kinds = (np.int32, np.int32, np.int32, np.float32, np.int32)  # of source, labels, cost and target
        nothing: Any = tuple(np.zeros(0, kind) for kind in kinds)
        arc_count, free = loops.lexicon_trees(*tree, nothing, np.zeros(0, np.int64), False)
        arcs: Any = tuple(np.empty(arc_count, kind) for kind in kinds)
        targets = np.empty(arc_count, np.int64)
        loops.lexicon_trees(*tree, arcs, targets, True)
        del rows, tree, order, which, rank, nth
        tails = table.tails(targets[targets >= loops.TAIL] - loops.TAIL)
        free_after = free + len(tails)

        def state_of_tail(keys: np.ndarray) -> np.ndarray:
            return free + tails.searchsorted(keys)

        arcs[4][:] = np.where(targets >= loops.TAIL, state_of_tail(targets - loops.TAIL), targets)
        more: list[tuple[np.ndarray, ...]] = []

        def add(src: np.ndarray, il: np.ndarray | int, cost: np.ndarray | float, to: np.ndarray) -> None:
            size = len(src)
            more.append(
                tuple(
                    np.broadcast_to(np.asarray(x, kind), size)
                    for x, kind in zip(
                        (src, il, 0, cost, to), (np.int32, np.int32, np.int32, np.float32, np.int32), strict=True
                    )
                )
            )

        token, shorter, ends = table.token_of(tails % table.suffixes)
        target = tails // table.suffixes
        add(
            free + np.arange(len(tails)),
            token + 1,
            0.0,
            np.where(ends, target, state_of_tail(target * table.suffixes + shorter)),
        )
        back = np.flatnonzero(states > 0)
        suffix = lm.suffix[states[back]]
        add(before + back, 0, extra[suffix] - lm.backoff[states[back]], before + state_of[suffix])
        start = np.array([lm.start])
        add(np.zeros(1), 0, extra[start], before + state_of[start])
        if self._separator is not None:
            add(behind + np.arange(count), self._separator + 1, 0.0, before + np.arange(count))
        src, il, ol, cost, to = (np.concatenate([a, *(part[i] for part in more)]) for i, a in enumerate(arcs))
        del arcs
        more.clear()
        begin, order = loops.places_by_source(src, free_after)
        del src
        ends_at = np.full(free_after, np.inf, np.float32)
        ends_at[0] = final[state_of[lm.start]] + extra[lm.start]
        ends_at[behind : behind + count] = final
        return (begin, il[order], ol[order], cost[order], to[order]), ends_at, (before, before + count)


class _Spellings:
    """The spellings of a lexicon in lexicographic order, as arrays.

    Attributes:
        tokens, start: all their tokens, and where each begins; labels: of its word.
        ranks, first, number: numbers of the spellings of word w are ``ranks[first[w] : first[w] + number[w]]``.
        suffix: for each position of ``tokens``, the number of the sequence from there to the spelling's end.
    """

    def __init__(self, lexicon: Lexicon, words: Sequence[str]) -> None:
        entries = sorted((spelling, label) for label, word in enumerate(words[1:], 1) for spelling in lexicon[word])
        self.labels = np.array([label for _, label in entries], np.int32)
        self.start = np.cumsum([0, *(len(spelling) for spelling, _ in entries)], dtype=np.int64)
        self.tokens = np.array([token for spelling, _ in entries for token in spelling], np.int32)
        self.ranks = np.argsort(self.labels, kind="stable")
        self.number = np.bincount(self.labels, minlength=len(words))
        self.first = np.cumsum(self.number) - self.number
        numbers: dict[tuple[int, ...], int] = {}
        self.suffix = np.zeros(len(self.tokens), np.int64)
        heads: list[tuple[int, int]] = []  # token and number of what remains, -1 for nothing
        for (spelling, _), begin in zip(entries, self.start.tolist(), strict=False):
            shorter = -1
            for position in range(len(spelling) - 1, -1, -1):
                rest = spelling[position:]
                if rest not in numbers:
                    numbers[rest] = len(heads)
                    heads.append((spelling[position], shorter))
                shorter = self.suffix[begin + position] = numbers[rest]
        self._heads = np.array(heads, np.int64)
        self.suffixes = len(heads)

    def token_of(self, suffix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First token of suffixes, the suffix behind it, and whether there is none."""
        token, shorter = self._heads[suffix].T
        return token, np.maximum(shorter, 0), shorter < 0

    def tails(self, keys: np.ndarray) -> np.ndarray:
        """Sorted keys (target * suffixes + suffix) of tails, and of all tails within them."""
        every = new = np.unique(keys)
        while len(new):
            _, shorter, ends = self.token_of(new % self.suffixes)
            new = np.unique((new // self.suffixes * self.suffixes + shorter)[~ends])
            new = np.setdiff1d(new, every, assume_unique=True)
            every = np.union1d(every, new)
        return every


def _histories(lm: NgramLM, label_of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The n-gram's states: histories that something follows, and the empty one.

    Returns:
        (S,) node of each state; for each node the state that it leads to and the cost of backing off to that; and (S,)
        cost of ending in each state.
    """
    size = len(lm.parent)
    end, start = lm.word_ids["</s>"], lm.word_ids.get("<s>", -1)
    spelt = (label_of[lm.word] > 0) | (lm.word == start)
    spelt[0] = True
    known = spelt.copy()  # every word of the history is in the lexicon
    for _ in range(MAX_ORDER):
        known = spelt & (known[np.maximum(lm.parent, 0)])
    has_children = np.zeros(size, bool)
    has_children[lm.parent[1:][spelt[1:] | (lm.word[1:] == end)]] = True
    is_state = has_children & known
    is_state[0] = True
    backoff = lm.backoff.copy()
    backoff[lm.leaves :] = 0.0
    leads, extra = np.arange(size), np.zeros(size)
    while len(through := np.flatnonzero(~is_state[leads])):
        extra[through] -= backoff[leads[through]]
        leads[through] = lm.suffix[leads[through]]
    states = np.flatnonzero(is_state)
    number = np.full(size, -1, np.int64)
    number[states] = np.arange(len(states))
    listed = np.full(size, np.inf)
    ends = np.flatnonzero(lm.word == end)
    listed[lm.parent[ends]] = -lm.log_p[ends]
    final = listed[states]
    behind = number[leads[lm.suffix[states]]]
    for _ in range(MAX_ORDER):  # by backing off, perhaps more than once
        off = extra[lm.suffix[states]] - backoff[states] + final[behind]
        off[0] = np.inf
        final = np.minimum(final, off)
    return states, number[leads], extra, final


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that one process of several has."""
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` if the block ends without an error."""
    beside = name_beside(path)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
