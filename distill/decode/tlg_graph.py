"""Decoding graphs: CTC topology ∘ lexicon ∘ n-gram (T ∘ L ∘ G; Miao et al., 2015).

An input label is a token's id + 1, because label 0 is epsilon. Costs are negative natural logarithms.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import kaldifst
import kaldilm

from distill.data.lexicon import read_pronunciations
from distill.errors import UserError

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

    fst: kaldifst.StdVectorFst
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
    """Builds graphs of one n-gram and lexicon for different weights; reads the ARPA file once.

    Args:
        lm: n-gram of words or tokens, in ARPA format. Its words that the lexicon lacks are left out.
        lexicon: spellings of words; for an n-gram of tokens, the id of each token.
        token_list: tokens by id, blank first. If <space> is one of them, it separates words.
        words_are_tokens: whether the n-gram is of tokens.

    Raises:
        UserError: the n-gram is missing, or none of its words can be spelt.
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
        """A graph in which a sentence W of n words costs -``lm_weight`` · ln P(W) - ``word_bonus`` · n."""
        g = kaldifst.compile("\n".join(self._scaled(line, lm_weight, word_bonus) for line in self._g.splitlines()))
        kaldifst.arcsort(g, "ilabel")
        lg = kaldifst.compose(self._l, g)
        if lg.num_states == 0:
            raise UserError("the n-gram and the lexicon share no sentence; take those of one language")
        kaldifst.determinize_star(lg)
        kaldifst.minimize_encoded(lg)
        lg = kaldifst.compile("\n".join(self._without_marks(line) for line in lg.to_str().splitlines()))
        kaldifst.arcsort(lg, "ilabel")
        tlg = kaldifst.compose(self._t, lg)
        return Graph(tlg, self._words, self._lexicon, self._separator, self._words_are_tokens)

    @staticmethod
    def _scaled(line: str, lm_weight: float, word_bonus: float) -> str:
        """A line of G in OpenFst's text format with the costs of :meth:`build`."""
        fields = line.split()
        if not fields:
            return ""
        cost = float(fields[-1]) if len(fields) in (2, 5) else 0.0
        cost *= lm_weight
        if len(fields) >= 4:
            cost -= word_bonus if fields[3] != "0" else 0.0
            return " ".join((*fields[:4], repr(cost)))
        return f"{fields[0]} {cost!r}"

    def _without_marks(self, line: str) -> str:
        """A line of L ∘ G in OpenFst's text format, with epsilon for a disambiguation symbol."""
        fields = line.split()
        if len(fields) >= 4 and int(fields[2]) >= self._first_mark:
            fields[2] = "0"
        return " ".join(fields)

    def _lexicon_fst(self, separator: int | None) -> kaldifst.StdVectorFst:
        """L for sequences of words.

        A spelling that is a prefix of another or equal to it ends with a disambiguation symbol, without which L ∘ G
        could not be determinized.
        """
        taken: dict[tuple[int, ...], int] = {}
        prefixes = {s[:n] for spellings in self._lexicon.values() for s in spellings for n in range(1, len(s))}
        backoff = f"{self._first_mark} {len(self._words) - 1}"
        # With a separator state 0 is the beginning, 1 before a word, 2 behind a word; without one, 0 is all three.
        before, after = (0, 0) if separator is None else (1, 2)
        lines = ["0", f"0 0 {backoff}"]
        if separator is not None:
            lines = ["0 1 0 0", "0", "2", f"0 0 {backoff}", f"2 2 {backoff}", f"2 1 {separator + 1} 0"]
        free = 3
        for label, word in enumerate(self._words[1:-1], 1):
            for spelling in self._lexicon[word]:
                labels = [token + 1 for token in spelling]
                count = taken[spelling] = taken.get(spelling, 0) + 1
                if count > 1 or spelling in prefixes:
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
        """T: a token lasts one or more frames, and a blank separates two equal tokens. State 0 follows a blank."""
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
