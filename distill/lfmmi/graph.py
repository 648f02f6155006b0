"""The denominator graph: CTC topology composed with a token n-gram."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.files import atomic_write
from distill.lfmmi import ngram, openfst
from distill.lfmmi.forward_backward import Denominator, NativeDenominator, Score


class DenominatorGraph:
    """All token sequences, each weighed by an n-gram, over the CTC topology (blank is token 0).

    Built by :meth:`from_bigram`, :meth:`from_text`, :meth:`from_arpa` or :meth:`from_openfst`. States are histories of
    the n-gram; state 0 is the sentence start. ``log_p`` (S, V) holds log P(token | history), column 0 the sentence end;
    ``next_state`` (S, V) the history after each token.
    """

    def __init__(self, log_p: Tensor, next_state: Tensor, last: Tensor) -> None:
        self.log_p, self.next_state, self.last = log_p.double(), next_state, last
        if torch.isnan(self.log_p).any() or (self.log_p == float("inf")).any():
            raise UserError(
                "denominator graph: a log probability is not a number; expected natural logs, -inf for none"
            )
        if not (self.log_p[:, 0] > float("-inf")).any():
            raise UserError(
                "denominator graph: no state has a sentence end (column 0); give at least one a probability"
            )
        self.native = NativeDenominator(self.log_p, next_state, last)
        self._k2: Denominator | None = None

    @property
    def vocab_size(self) -> int:
        """V, tokens with blank."""
        return self.log_p.shape[1]

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
        graph = cls(log_p, tokens.expand(len(tokens), -1).contiguous(), tokens)
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
        return cls._from_ngram(ngram.from_text(lines, order, vocab_size))

    @classmethod
    def from_arpa(cls, path: str | Path, token_list: Sequence[str]) -> DenominatorGraph:
        """Read an ARPA file over the tokens of ``token_list``, see :func:`distill.lfmmi.ngram.from_arpa`."""
        return cls._from_ngram(ngram.from_arpa(Path(path), token_list))

    @classmethod
    def from_openfst(cls, path: str | Path, token_list: Sequence[str]) -> DenominatorGraph:
        """Read an n-gram in OpenFst's text format over the ids of ``token_list``, see :mod:`distill.lfmmi.openfst`."""
        return cls(*(torch.from_numpy(array) for array in openfst.read(Path(path), token_list)))

    def to_openfst(self, path: str | Path) -> None:
        """Write the n-gram (not the topology) in OpenFst's text format."""
        openfst.write(Path(path), self.log_p.numpy(), self.next_state.numpy())

    @classmethod
    def _from_ngram(cls, model: ngram.Ngram) -> DenominatorGraph:
        vocab_size = model.log_p.shape[1]
        number = {history: index for index, history in enumerate(model.histories)}
        children: dict[ngram.History, list[int]] = {}
        for history in model.histories:
            children.setdefault(history[:-1], []).append(history[-1])
        rows: dict[ngram.History, np.ndarray] = {(): np.arange(vocab_size)}

        def row(history: ngram.History) -> np.ndarray:
            """State after each token: its longest known ending, in the end the token alone."""
            if history not in rows:
                values = row(history[1:])
                if history in children:
                    values = values.copy()
                    for token in children[history]:
                        values[token] = number[*history, token]
                rows[history] = values
            return rows[history]

        next_state = torch.from_numpy(np.stack([row(history) for history in model.histories]))
        last = torch.tensor([max(history[-1], 0) for history in model.histories])
        return cls(torch.from_numpy(model.log_p), next_state, last)

    def score(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        """Total score, (B,) double: ``log sum over paths exp(sum_t log_probs[t, path_t] + log P(tokens of path))``.

        Args:
            log_probs: (B, T, V), any floating type; need not be normalised.
            lengths: (B,) frames.

        Differentiable; the gradient is the occupancies, rows of which sum to 1 (0 beyond lengths).
        """
        self.check(log_probs, lengths)
        return Score.apply(log_probs, lengths, self.native)

    def denominator(self, backend: str, device: torch.device) -> Denominator:
        """What sums over all paths: ``native``; ``k2``; or ``auto``, which is k2 on a GPU where it is installed."""
        if backend == "auto":
            backend = "k2" if device.type == "cuda" and find_spec("k2") is not None else "native"
        if backend == "native":
            return self.native
        if self._k2 is None:
            from distill.lfmmi.k2_backend import K2Denominator

            self._k2 = K2Denominator(self.log_p, self.next_state)
        return self._k2

    def check(self, log_probs: Tensor, lengths: Tensor) -> None:
        """Refuse a batch that does not belong to this graph."""
        if log_probs.dim() != 3 or log_probs.shape[2] != self.vocab_size or 0 in log_probs.shape:
            raise UserError(
                f"denominator graph: made for {self.vocab_size} tokens, but log_probs are {tuple(log_probs.shape)}; "
                "make the graph from the model's own token list"
            )
        if len(lengths) != len(log_probs) or int(lengths.min()) < 0 or int(lengths.max()) > log_probs.shape[1]:
            raise UserError(f"lengths: must be {len(log_probs)} numbers from 0 to {log_probs.shape[1]}")

    def log_prob(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """(B,) double log P of token sequences (B, U), sentence end included; padding is ignored."""
        inside = torch.arange(tokens.shape[1], device=tokens.device) < token_lengths[:, None]
        if bool(((tokens < 1) | (tokens >= self.vocab_size))[inside].any()):
            raise UserError(f"tokens: must be from 1 to {self.vocab_size - 1}; is the text of another token list?")
        log_p, next_state = self.log_p.to(tokens.device), self.next_state.to(tokens.device)
        state = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        total = torch.zeros(len(tokens), dtype=torch.double, device=tokens.device)
        for u in range(int(token_lengths.max()) if len(tokens) else 0):
            token = torch.where(inside[:, u], tokens[:, u], torch.zeros_like(state))
            total = torch.where(inside[:, u], total + log_p[state, token], total)
            state = torch.where(inside[:, u], next_state[state, token], state)
        return total + log_p[state, 0]

    def save(self, path: str | Path) -> None:
        """Write the graph to an .npz file."""
        with atomic_write(path, "wb") as stream:
            np.savez_compressed(
                stream, log_p=self.log_p.numpy(), next_state=self.next_state.numpy(), last=self.last.numpy()
            )

    @classmethod
    def load(cls, path: str | Path) -> DenominatorGraph:
        """Read what :meth:`save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as data:
                return cls(*(torch.from_numpy(data[name]) for name in ("log_p", "next_state", "last")))
        except FileNotFoundError:
            raise UserError(f"{path}: not found; make the denominator graph first (stage 6)") from None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a denominator graph ({error}); make it again (stage 6)") from None
