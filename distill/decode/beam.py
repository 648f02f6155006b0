"""CTC prefix beam search of streams, with an n-gram language model, a word bonus and hot words.

A hypothesis is a prefix of tokens and whether its last frame is blank or its last token, because these two continue
differently with that token. Its score is summed over all alignments (Graves & Jaitly, 2014; Hannun et al., 2014). The
beam keeps the best hypotheses after each frame; a beam of one is greedy decoding.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from distill.decode.hotwords import Hotwords
from distill.decode.hypothesis import Hypothesis, Token
from distill.decode.lm import NgramLM
from distill.decode.look_ahead import LookAhead
from distill.errors import UserError

SETTLE_EVERY = 64  # frames between two checks which tokens all hypotheses share
SLACK = 10.0  # nats below the beam's lowest score, where an alignment can still matter to a surviving hypothesis
_SPECIAL = ("<blank>", "<sos/eos>")

# The alignment of a token: that of the previous token, first frame, frame after the last, sum of its posteriors
Alignment = tuple["Alignment | None", int, int, float] | None


class _Prefix:
    """A prefix as a linked list of tokens, with its states in language model and hot words and their score."""

    __slots__ = ("parent", "token", "children", "lm_state", "word", "hot_state", "score")

    def __init__(
        self, parent: _Prefix | None, token: int, lm_state: int, word: str, hot_state: int, score: float
    ) -> None:
        self.parent = parent
        self.token = token
        self.children: dict[int, _Prefix] = {}
        self.lm_state = lm_state
        self.word = word  # the last one, while it is incomplete
        self.hot_state = hot_state
        self.score = score


class Fusion:
    """Score in addition to the acoustic one: ``lm_weight`` · ln P(words) + ``word_bonus`` · words + hot words.

    An incomplete word has its bonus and the n-gram's look-ahead, which its own ln P replaces when it is complete.

    Args:
        token_list: tokens by id, blank first.
        token_type: char, bpe, word or phn.
        lm: n-gram of words, or of tokens if ``lm_unit`` is token.
        lm_weight: weight of the n-gram's ln P.
        word_bonus: score of each word, or of each token if ``lm_unit`` is token.
        hotwords: phrases with a bonus.
        lm_unit: word or token.

    Raises:
        UserError: ``lm_unit`` is neither.
    """

    def __init__(
        self,
        token_list: Sequence[str],
        token_type: str,
        lm: NgramLM | None = None,
        lm_weight: float = 0.0,
        word_bonus: float = 0.0,
        hotwords: Hotwords | None = None,
        lm_unit: str = "word",
    ) -> None:
        if lm_unit not in ("word", "token"):
            raise UserError(f"lm_unit: {lm_unit!r} is neither word nor token")
        self._lm = lm if lm_weight else None
        self._lm_weight, self._word_bonus = lm_weight, word_bonus
        self._hotwords = hotwords
        self._whole = lm_unit == "token" or token_type in ("word", "phn")  # each token is a unit
        self._look_ahead = None
        if self._lm and not self._whole:
            self._look_ahead = LookAhead(self._lm, hotwords.words if hotwords else ())
        self._names = list(token_list)
        # Text of each token, with a leading space if it begins a word
        self._texts: list[str] = []
        for token in token_list:
            if token in _SPECIAL:
                self._texts.append("")
            elif token_type in ("word", "phn"):
                self._texts.append(" " + token)
            else:
                self._texts.append(" " if token == "<space>" else token.replace("▁", " "))
        best_phrase = hotwords.boost if hotwords else 0.0
        # Of one token, for pruning: a word can be as much more probable than its look-ahead as the rarest is improbable
        self.largest_gain = max(word_bonus, 0.0) + 2 * max(best_phrase, 0.0)
        if self._lm and self._look_ahead:
            self.largest_gain -= lm_weight * self._lm.floor

    def empty(self) -> _Prefix:
        """The prefix without tokens, at the start of a sentence."""
        hot_state = self._hotwords.read(0, " ")[1] if self._hotwords else 0
        return _Prefix(None, 0, self._lm.start if self._lm else 0, "", hot_state, 0.0)

    def extend(self, prefix: _Prefix, token: int) -> _Prefix:
        """The prefix with one more token."""
        child = prefix.children.get(token)
        if child is None:
            text = self._texts[token]
            state, word, hot_state, score = prefix.lm_state, prefix.word, prefix.hot_state, prefix.score
            if self._whole and text:
                score, state = self._finish_word(score, state, self._names[token])
            elif not self._whole and text.startswith(" "):
                if word:
                    score, state = self._finish_word(score, state, word)
                word = text[1:]
                score += self._begun(word)
            elif not self._whole:
                score += self._begun(word + text) - self._begun(word)
                word += text
            if self._hotwords and text:
                if self._ends_word(prefix.token):
                    text = text.lstrip()
                gain, hot_state = self._hotwords.read(hot_state, text)
                score += gain
            child = prefix.children[token] = _Prefix(prefix, token, state, word, hot_state, score)
        return child

    def end(self, prefix: _Prefix) -> float:
        """Score of the prefix as a complete sentence."""
        score, state = prefix.score, prefix.lm_state
        if prefix.word:
            score, state = self._finish_word(score, state, prefix.word)
        if self._lm:
            score += self._lm_weight * self._lm.end(state)
        if self._hotwords:
            score += self._hotwords.end(prefix.hot_state, "" if self._ends_word(prefix.token) else " ")
        return score

    def text(self, prefix: _Prefix) -> str:
        """Text of the prefix's tokens that are not settled."""
        pieces = []
        node: _Prefix | None = prefix
        while node is not None:
            pieces.append(self._texts[node.token])
            node = node.parent
        return " ".join("".join(reversed(pieces)).split())

    def _ends_word(self, token: int) -> bool:
        """Whether a token's text ends with a space; true before the first token, where the id is 0."""
        return token == 0 or self._texts[token].endswith(" ")

    def _begun(self, word: str) -> float:
        """Score of an incomplete word."""
        if not word:
            return 0.0
        return self._word_bonus + (self._lm_weight * self._look_ahead.beginning(word) if self._look_ahead else 0.0)

    def _finish_word(self, score: float, state: int, word: str) -> tuple[float, int]:
        """Score and state of the n-gram after a complete word, whose score replaces that of the incomplete one."""
        if self._lm:
            log_p, state = self._lm.score(state, word)
            if self._look_ahead:
                log_p += self._look_ahead.spelling(word)
            score += self._lm_weight * log_p
        return score + self._word_bonus - (0.0 if self._whole else self._begun(word)), state


class BeamSearch:
    """Prefix beam search of one stream; a :class:`distill.decode.hypothesis.Search`.

    Args:
        fusion: language model and other scores.
        beam: number of hypotheses kept after each frame. In each frame the ``4 * beam`` most probable tokens are tried.
        nbest: largest number of hypotheses, all with different texts, that ``finish`` returns.

    Raises:
        UserError: ``beam`` is not positive.
    """

    def __init__(self, fusion: Fusion, beam: int = 8, nbest: int = 1) -> None:
        if beam < 1:
            raise UserError(f"beam: {beam} must be at least 1")
        self._fusion, self._width, self._nbest = fusion, beam, nbest
        self.frames = 0
        self._start_utterance()

    def _start_utterance(self) -> None:
        self._settled: list[Token] = []
        self._next_settling = self.frames + SETTLE_EVERY
        # Prefix, whether its last frame is blank, ln P of all its alignments, ln P of the best one, and that one
        self._beam: list[tuple[_Prefix, bool, float, float, Alignment]] = [(self._fusion.empty(), True, 0.0, 0.0, None)]

    @property
    def settled(self) -> int:
        """Number of tokens that all hypotheses share."""
        return len(self._settled)

    def accept(self, logits: Tensor) -> None:
        """Decode the next (t, V) logits or log-probabilities; t may be 0."""
        if not len(logits):
            return
        log_p = logits.detach().float().log_softmax(-1)
        values, ids = log_p[:, 1:].topk(min(4 * self._width, log_p.shape[1] - 1))
        for row, row_values, row_ids in zip(log_p.cpu().numpy(), values.tolist(), (ids + 1).tolist(), strict=True):
            self._step(row, row_values, row_ids)
            self.frames += 1
            if self.frames == self._next_settling:
                self._settle()
                self._next_settling += SETTLE_EVERY

    def _step(self, log_p: np.ndarray, values: list[float], ids: list[int]) -> None:
        """Decode a frame: log-posteriors (V,), and those of the most probable tokens with their ids, in order."""
        frame, blank = self.frames, float(log_p[0])
        after_blank: dict[_Prefix, list] = {}
        after_token: dict[_Prefix, list] = {}

        # The same prefix: a blank, or the last token continues
        for prefix, blank_last, total, best, alignment in self._beam:
            _add(after_blank, prefix, total + blank, best + blank, alignment)
            if not blank_last:
                p = float(log_p[prefix.token])
                before, start, _, posterior = alignment  # type: ignore[misc]
                longer = (before, start, frame + 1, posterior + math.exp(p))
                _add(after_token, prefix, total + p, best + p, longer)
        worst = -math.inf
        if len(after_blank) + len(after_token) >= self._width:
            ranks = [entry[0] + prefix.score for part in (after_blank, after_token) for prefix, entry in part.items()]
            worst = heapq.nlargest(self._width, ranks)[-1] - SLACK - self._fusion.largest_gain

        # One more token; the last token again only after a blank
        for prefix, blank_last, total, best, alignment in self._beam:
            least = worst - total - prefix.score
            for p, token in zip(values, ids, strict=True):
                if p < least:
                    break
                if blank_last or token != prefix.token:
                    child = self._fusion.extend(prefix, token)
                    _add(after_token, child, total + p, best + p, (alignment, frame, frame + 1, math.exp(p)))

        candidates = [(prefix, True, *entry) for prefix, entry in after_blank.items()]
        candidates += [(prefix, False, *entry) for prefix, entry in after_token.items()]
        self._beam = heapq.nlargest(self._width, candidates, key=lambda entry: entry[2] + entry[0].score)

    def _ranked(self, ended: bool) -> list[tuple[float, _Prefix, Alignment]]:
        """Score, prefix and best alignment of each prefix, best first.

        ``ended``: whether a prefix is scored as a complete sentence.
        """
        merged: dict[_Prefix, list] = {}
        for prefix, _, total, best, alignment in self._beam:
            _add(merged, prefix, total, best, alignment)
        score_of = self._fusion.end if ended else lambda prefix: prefix.score
        ranked = [(entry[0] + score_of(prefix), prefix, entry[2]) for prefix, entry in merged.items()]
        return sorted(ranked, key=lambda row: -row[0])

    def _hypothesis(self, score: float, prefix: _Prefix, alignment: Alignment) -> Hypothesis:
        return Hypothesis(self._settled + _tokens(prefix, alignment, None), None, score)

    @property
    def best(self) -> Hypothesis:
        """The best hypothesis of the utterance so far, scored without a sentence end."""
        return self._hypothesis(*self._ranked(ended=False)[0])

    def finish(self) -> list[Hypothesis]:
        """End the utterance and return its best hypotheses with different texts, best first.

        The next frame begins a new utterance.
        """
        texts: set[str] = set()
        hypotheses: list[Hypothesis] = []
        for score, prefix, alignment in self._ranked(ended=True):
            text = self._fusion.text(prefix)
            if text not in texts and len(hypotheses) < self._nbest:
                texts.add(text)
                hypotheses.append(self._hypothesis(score, prefix, alignment))
        self._start_utterance()
        return hypotheses

    def _settle(self) -> None:
        """Settle the tokens that all hypotheses share, with their frames in the best one, and free pruned prefixes.

        Otherwise memory, and the time for a partial result, would grow with the stream.
        """
        chains = []
        for prefix, *_ in self._beam:
            chain: list[_Prefix] = []
            node: _Prefix | None = prefix
            while node is not None:
                chain.append(node)
                node = node.parent
            chains.append(chain[::-1])
        shared = 0
        while all(len(chain) > shared and chain[shared] is chains[0][shared] for chain in chains):
            shared += 1
        root = chains[0][shared - 1]  # the end of its last token may still change
        _, best, alignment = self._ranked(ended=False)[0]
        self._settled += _tokens(best, alignment, root)
        self._beam = [
            (prefix, blank_last, total, viterbi, _cut(alignment, len(chain) - shared + 1 if root.token else None))
            for (prefix, blank_last, total, viterbi, alignment), chain in zip(self._beam, chains, strict=True)
        ]
        alive = {node for chain in chains for node in chain[shared - 1 :]}
        for node in alive:
            node.children = {token: child for token, child in node.children.items() if child in alive}
        root.parent = None


def _add(entries: dict[_Prefix, list], prefix: _Prefix, total: float, best: float, alignment: Alignment) -> None:
    """Add alignments to a prefix: sum their probabilities, and keep the best one."""
    entry = entries.get(prefix)
    if entry is None:
        entries[prefix] = [total, best, alignment]
        return
    if best > entry[1]:
        entry[1:] = best, alignment
    high, low = (entry[0], total) if entry[0] > total else (total, entry[0])
    entry[0] = high + math.log1p(math.exp(low - high))


def _tokens(prefix: _Prefix, alignment: Alignment, root: _Prefix | None) -> list[Token]:
    """Tokens of a prefix; if ``root`` is given, only those before it."""
    tokens = []
    before = root is None
    node: _Prefix | None = prefix
    while alignment is not None and node is not None:
        earlier, start, end, posterior = alignment
        if before:
            tokens.append(Token(node.token, start, end, posterior / (end - start)))
        before |= node is root
        node, alignment = node.parent, earlier
    return tokens[::-1]


def _cut(alignment: Alignment, length: int | None) -> Alignment:
    """The last ``length`` tokens of an alignment (None: all)."""
    if alignment is None or length is None:
        return alignment
    earlier, start, end, posterior = alignment
    return (None if length == 1 else _cut(earlier, length - 1), start, end, posterior)
