"""The denominator graph: CTC topology composed with a token n-gram."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.files import NPZ_DAMAGE, atomic_write
from distill.lfmmi import host, ngram, openfst
from distill.lfmmi.autograd import Denominator, Score
from distill.lfmmi.denominator_score import NativeDenominator
from distill.lfmmi.ngram_automaton import Automaton

ARRAYS = ("last", "final", "arc_node", "arc_token", "arc_target", "arc_log_p", "backoff", "log_weight")


class DenominatorGraph:
    """All token sequences, each weighed by an n-gram, over the CTC topology (blank is token 0).

    Built by :meth:`from_bigram`, :meth:`from_text`, :meth:`from_arpa` or :meth:`from_openfst`.

    Args:
        automaton: the n-gram. Its states are histories; state 0 is the sentence start.
    """

    def __init__(self, automaton: Automaton) -> None:
        bad = [np.isnan(a).any() or (a == np.inf).any() for a in (automaton.arc_log_p, automaton.final)]
        if any(bad):
            raise UserError(
                "denominator graph: a log probability is not a number; expected natural logs, -inf for none"
            )
        if not (automaton.final > -np.inf).any():
            raise UserError(
                "denominator graph: no state has a sentence end (column 0); give at least one a probability"
            )
        self.automaton = automaton
        self.native = NativeDenominator(automaton)

    @property
    def vocab_size(self) -> int:
        """V, tokens with blank."""
        return self.automaton.vocab_size

    @property
    def states(self) -> int:
        """S, histories of the n-gram."""
        return self.automaton.states

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        log_p, next_state = self.automaton.dense()
        return torch.from_numpy(log_p), torch.from_numpy(next_state)

    @property
    def log_p(self) -> Tensor:
        """(S, V) double, log P(token | history), column 0 the sentence end. A dense table: for small graphs."""
        return self._dense[0]

    @property
    def next_state(self) -> Tensor:
        """(S, V) history after each token. A dense table: for small graphs."""
        return self._dense[1]

    @property
    def last(self) -> Tensor:
        """(S,) last token of each history, 0 for the sentence start."""
        return torch.from_numpy(self.automaton.last)

    @classmethod
    def from_dense(cls, log_p: Tensor, next_state: Tensor, last: Tensor) -> DenominatorGraph:
        """From the tables that :attr:`log_p`, :attr:`next_state` and :attr:`last` are: no back-off."""
        log_p = log_p.detach().double().cpu()
        if torch.isnan(log_p).any() or (log_p == float("inf")).any():
            raise UserError(
                "denominator graph: a log probability is not a number; expected natural logs, -inf for none"
            )
        return cls(Automaton.from_dense(log_p.numpy(), next_state.cpu().numpy(), last.cpu().numpy()))

    @classmethod
    def from_bigram(cls, log_p: Tensor, check: bool = True) -> DenominatorGraph:
        """From a bigram (V, V) in natural logs: row 0 after the sentence start, row s after token s; column 0 the end.

        -inf (or below -1e29) marks what is absent. ``check`` refuses a token that nothing leads to and a row that is
        no distribution: its probabilities sum to less than 0.5 or more than 2 (both routes of a back-off model,
        added up, exceed 1), unless every weight of the graph is 0, which counts all sequences alike.
        """
        if log_p.dim() != 2 or log_p.shape[0] != log_p.shape[1] or log_p.shape[0] < 2:
            raise UserError(f"denominator graph: a bigram is a (V, V) matrix, V >= 2, not {tuple(log_p.shape)}")
        log_p = log_p.detach().double().cpu()
        log_p = torch.where(log_p < -1e29, torch.full_like(log_p, float("-inf")), log_p)
        tokens = torch.arange(len(log_p))
        graph = cls.from_dense(log_p, tokens.expand(len(tokens), -1), tokens)
        if check:
            present = torch.isfinite(log_p)
            for token in torch.nonzero(~present.any(0)).flatten().tolist():
                raise UserError(f"denominator graph: nothing leads to token {token}; is it of other tokens?")
            sums = log_p.exp().sum(1)
            for row in torch.nonzero((sums < 0.5) | (sums > 2.0)).flatten().tolist():
                if bool((log_p[present] != 0).any()):
                    raise UserError(
                        f"denominator graph: the probabilities of row {row} sum to {float(sums[row]):.4g}, not 1; "
                        "normalise the rows"
                    )
        return graph

    @classmethod
    def from_text(cls, lines: Iterable[Sequence[int]], order: int, vocab_size: int) -> DenominatorGraph:
        """Estimate an n-gram of order 1 to 4 on token id sequences, see :func:`distill.lfmmi.ngram.from_text`."""
        return cls(ngram.from_text(lines, order, vocab_size))

    @classmethod
    def from_arpa(cls, path: str | Path, token_list: Sequence[str]) -> DenominatorGraph:
        """Read an ARPA file over the tokens of ``token_list``, see :func:`distill.lfmmi.ngram.from_arpa`."""
        return cls(ngram.from_arpa(Path(path), token_list))

    @classmethod
    def from_openfst(cls, path: str | Path, token_list: Sequence[str]) -> DenominatorGraph:
        """Read an n-gram in OpenFst's text format over the ids of ``token_list``, see :mod:`distill.lfmmi.openfst`."""
        return cls(openfst.read(Path(path), token_list))

    def to_openfst(self, path: str | Path) -> None:
        """Write the n-gram (not the topology) in OpenFst's text format."""
        openfst.write(Path(path), self.automaton)

    def score(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        """Total score, (B,) double: ``log sum over paths exp(sum_t log_probs[t, path_t] + log P(tokens of path))``.

        Args:
            log_probs: (B, T, V), any floating type; need not be normalised.
            lengths: (B,) frames.

        Differentiable; the gradient is the occupancies, rows of which sum to 1 (0 beyond lengths).
        """
        self.check(log_probs, lengths)
        return Score.apply(log_probs, lengths, self.native)

    def denominator(self, backend: str) -> Denominator:
        """What sums over all paths: ``native``, or ``k2`` to compare with."""
        return self.native if backend == "native" else self._k2

    @cached_property
    def _k2(self) -> Denominator:
        from distill.lfmmi.k2_backend import K2Denominator

        return K2Denominator.exact(self.automaton)

    def check(self, log_probs: Tensor, lengths: Tensor) -> None:
        """Refuse a batch that does not belong to this graph."""
        if log_probs.dim() != 3 or log_probs.shape[2] != self.vocab_size or 0 in log_probs.shape:
            raise UserError(
                f"denominator graph: made for {self.vocab_size} tokens, but log_probs are {tuple(log_probs.shape)}; "
                "make the graph from the model's own token list"
            )
        (frames,) = host.read(lengths)
        if len(frames) != len(log_probs) or frames.min() < 0 or frames.max() > log_probs.shape[1]:
            raise UserError(f"lengths: must be {len(log_probs)} numbers from 0 to {log_probs.shape[1]}")

    def log_prob(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """(B,) double log P of token sequences (B, U), sentence end included; padding is ignored."""
        ids, counts = host.read(tokens, token_lengths)
        inside = np.arange(ids.shape[1]) < counts[:, None]
        if (((ids < 1) | (ids >= self.vocab_size)) & inside).any():
            raise UserError(f"tokens: must be from 1 to {self.vocab_size - 1}; is the text of another token list?")
        return torch.from_numpy(self.automaton.log_prob(ids, counts)).to(tokens.device)

    def save(self, path: str | Path) -> None:
        """Write the graph to an .npz file."""
        a = self.automaton
        with atomic_write(path, "wb") as stream:
            arrays = {name: getattr(a, name) for name in ARRAYS}
            for name, array in arrays.items():
                if array.dtype == np.int64:
                    arrays[name] = array.astype(np.int32)
            np.savez_compressed(stream, vocab_size=a.vocab_size, order=a.order, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> DenominatorGraph:
        """Read what :meth:`save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as data:
                if "log_p" in data:  # the dense tables that were once written
                    raise UserError(f"{path}: written by an older version; make the denominator graph again (stage 6)")
                arrays = [data[name] for name in ARRAYS]
                last, final, node, token, target, log_p, backoff, log_weight = arrays
                arcs = (node, token, target, log_p)
                vocab_size, order = int(data["vocab_size"]), int(data["order"])
                return cls(Automaton.make(vocab_size, last, final, arcs, backoff, log_weight, order))
        except FileNotFoundError:
            raise UserError(f"{path}: not found; make the denominator graph first (stage 6)") from None
        except NPZ_DAMAGE as error:
            raise UserError(f"{path}: not a denominator graph ({error}); make it again (stage 6)") from None
