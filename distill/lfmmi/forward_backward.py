"""Exact forward-backward over the CTC topology composed with a token n-gram.

A state of the composition is a history s of the n-gram together with what the last frame emitted: a blank, or the
history's last token l(s). With x_t the emissions (probabilities) of frame t, P(v | s) the n-gram, s.v the history after
token v, and all_t = blank_t + token_t:

    blank_t(s)  = x_t(blank) * all_{t-1}(s)
    token_t(s') = x_t(l(s')) * (token_{t-1}(s')                                        the same token goes on
                                + sum over s, v with s.v = s' of P(v | s) * (blank_{t-1}(s)
                                                                + [v != l(s)] token_{t-1}(s)))

In a bigram s.v = v, so the repetition that needs a blank and the token that goes on meet in the same state, and the
line is one matrix product with M[s, v] = P(v | s) and no subtraction:

    token_t = x_t * (all_{t-1} M + token_{t-1} * (1 - diag M))

Longer histories use one product of a sparse matrix with blank_t and all_t stacked. The backward pass is the transpose.

Everything is in the probability domain. A frame's emissions are divided by their mean and the sums are rescaled every
few frames. What may be lost is what lies further below the rest than the number format reaches; whether that could
matter is decided by the n-gram and by the scales that were met, and where it could, the utterance is computed again:
float32, then float64, then the log domain.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

MINUS_INFINITY = float("-inf")
# float32 is for graphs large enough to gain from it, in which every token may follow every history with at least e^-18:
# then a path 66 nats below the others of a frame stays below them by 66 - 2 * 18 nats at the end.
FLOAT32_STATES, FLOAT32_LOG_P = 64, -18.0
FLOAT64_LOG_P = -60.0
# From so many states on, a frame's product takes long enough that two threads do not wait for the interpreter.
SIDE_BY_SIDE_STATES = 256
# Frames between two scalings, and the smallest scale that leaves the range the bounds above count on
RESCALE = {torch.float32: (4, 1.5e-8), torch.float64: (8, 1e-100)}


class Transitions:
    """An n-gram on one device and in one precision, ready for products.

    Args:
        log_p: (S, V) double, log P(token | history), -inf where absent; column 0 is the sentence end.
        next_state: (S, V) history after each token.
        last: (S,) last token of each history, 0 for the sentence start, which is state 0.
        dtype: of the products.
    """

    def __init__(self, log_p: Tensor, next_state: Tensor, last: Tensor, dtype: torch.dtype) -> None:
        self.log_p, self.next_state, self.last, self.dtype = log_p, next_state, last, dtype
        states, vocab_size = log_p.shape
        self.states, self.vocab_size = states, vocab_size
        present = torch.isfinite(log_p)
        self.unreachable = ~present.any(0)
        self.unreachable[0] = False
        # Tokens that nothing leads to do not count: they are masked.
        smallest = float(log_p[:, ~self.unreachable].min())
        self.full_support = smallest >= FLOAT64_LOG_P
        self.extreme = float(log_p[present].min()) < FLOAT64_LOG_P
        self.float32_is_safe = states >= FLOAT32_STATES and smallest >= FLOAT32_LOG_P
        self.final = (log_p[:, 0] - log_p[:, 0].max()).exp().to(dtype)
        self.log_final_scale = float(log_p[:, 0].max())
        tokens = torch.arange(vocab_size, device=log_p.device)
        self.is_bigram = states == vocab_size and bool((next_state == tokens).all()) and bool((last == tokens).all())
        if self.is_bigram:
            self.matrix = log_p.exp()
            self.matrix[:, 0] = 0
            self.matrix = self.matrix.to(dtype)
            self.transposed = self.matrix.t()
            self.goes_on = 1 - self.matrix.diagonal()
        else:
            self._make_sparse(present)

    def _make_sparse(self, present: Tensor) -> None:
        """(S, 2S): what leads to a state from all_t (columns below S) and, for a repeated token, from blank_t."""
        arcs = present.clone()
        arcs[:, 0] = False
        source, token = torch.nonzero(arcs, as_tuple=True)
        target = self.next_state[source, token]
        values = self.log_p[source, token].exp().to(self.dtype)
        column = torch.where(token == self.last[source], source + self.states, source)
        self.matrix = _csr(target, column, values, (self.states, 2 * self.states))
        self.transposed = _csr(column, target, values, (2 * self.states, self.states))


def _csr(row: Tensor, column: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    order = torch.argsort(row * size[1] + column)
    starts = torch.zeros(size[0] + 1, dtype=torch.long, device=row.device)
    starts[1:] = torch.bincount(row, minlength=size[0]).cumsum(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its sparse tensors are new
        return torch.sparse_csr_tensor(starts, column[order], values[order], size)


class NativeDenominator:
    """Exact sums over all paths through the topology and one n-gram, on any device.

    Args:
        log_p, next_state, last: of the n-gram, see :class:`Transitions`.
    """

    def __init__(self, log_p: Tensor, next_state: Tensor, last: Tensor) -> None:
        self._of = log_p.double(), next_state, last
        self._made: dict[tuple[torch.device, torch.dtype], Transitions] = {}

    def transitions(self, device: torch.device, dtype: torch.dtype) -> Transitions:
        """The n-gram for one device and precision, made when first asked for."""
        key = (device, dtype)
        if key not in self._made:
            log_p, next_state, last = (tensor.to(device) for tensor in self._of)
            self._made[key] = Transitions(log_p, next_state, last, dtype)
        return self._made[key]

    def __call__(self, log_probs: Tensor, lengths: Tensor, gradient: bool = True) -> tuple[Tensor, Tensor]:
        """Total score and occupancies of every utterance.

        Args:
            log_probs: (B, T, V) of any floating type, need not be normalised; -inf is allowed. Frames beyond
                ``lengths`` may hold anything.
            lengths: (B,) frames.
            gradient: False leaves the occupancies out (an empty tensor).

        Returns:
            scores (B,) double, ``log sum over paths of exp(sum_t x_t[path_t] + log P(tokens of the path))``, and the
            occupancies (B, T, V), float32 or double, the gradient of their sum; -inf and 0 where no path is possible,
            not a number where an emission is not.
        """
        lengths = lengths.to(log_probs.device)
        graph = self.transitions(log_probs.device, torch.float64)
        ways = ["scaled64", "log"] if not graph.full_support else ["scaled64"]
        if graph.float32_is_safe and log_probs.dtype != torch.float64:
            ways.insert(0, "scaled32")
        with torch.autocast(log_probs.device.type, enabled=False):
            scores, occupancies, rows = None, None, None
            for way in ways:
                x, n = (log_probs, lengths) if rows is None else (log_probs[rows], lengths[rows])
                if way == "log":
                    s, o = _log_domain(graph, x, n, gradient)
                    doubtful = torch.zeros_like(s, dtype=torch.bool)
                else:
                    dtype = torch.float32 if way == "scaled32" else torch.float64
                    s, o, doubtful = _scaled(self.transitions(log_probs.device, dtype), x, n, gradient)
                if scores is None or occupancies is None or rows is None:
                    scores, occupancies, rows = s, o, torch.arange(len(s), device=s.device)
                else:
                    scores[rows] = s
                    if gradient:
                        occupancies[rows] = o.to(occupancies.dtype)
                rows = rows[doubtful]
                if not len(rows):
                    break
            assert scores is not None and occupancies is not None
        return scores, occupancies


def _emissions(
    graph: Transitions, log_probs: Tensor, lengths: Tensor, dtype: torch.dtype, time_first: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Emission probabilities in the order of dimensions ``time_first``, divided by their mean in each frame.

    Frames beyond an utterance emit a blank with probability 1, which leaves every state and the final score as they
    are, so that a ragged batch needs no masks. Tokens that no history leads to are masked.

    Returns:
        tokens (column 0 is 0), blanks (one column), sum of the logs of the means (B,) double, and (B,) the lowest
        emission above 0 relative to the largest (1 where that is not asked for).
    """
    frames = log_probs.shape[1]
    raw = log_probs.detach().permute(*time_first)
    batch, vocab = time_first.index(0), time_first.index(2)
    x = torch.empty(raw.shape, dtype=dtype, device=raw.device).copy_(raw)
    ragged = bool((lengths < frames).any())
    if bool(graph.unreachable.any()):
        x[(slice(None),) * vocab + (graph.unreachable,)] = MINUS_INFINITY
    if ragged:
        outside = torch.arange(frames, device=x.device)[:, None] >= lengths  # (T, B)
        x.masked_fill_(outside.unsqueeze(vocab), MINUS_INFINITY)
        x.select(vocab, 0).masked_fill_(outside, 0.0)
    top = x.amax(vocab, keepdim=True)
    top = top.masked_fill(top == MINUS_INFINITY, 0.0)
    x.sub_(top)
    if graph.full_support:
        lowest = x.new_ones(x.shape[batch])
    else:
        lowest = x.masked_fill(x == MINUS_INFINITY, 0.0).amin((0, vocab)).exp()
    x.exp_()
    # By the mean rather than the largest: sums then stay near 1 whether emissions are peaky or flat.
    mean = x.mean(vocab, keepdim=True)
    mean.masked_fill_(mean == 0, 1.0)
    if ragged:
        mean.masked_fill_(outside.unsqueeze(vocab), 1.0)
    x.div_(mean)
    top = top.double() + mean.double().log()
    blanks = x.narrow(vocab, 0, 1).clone()
    x.select(vocab, 0).zero_()
    return x, blanks, top.sum((0, vocab)), lowest


def _scaled(graph: Transitions, log_probs: Tensor, lengths: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, occupancies and whether they are doubtful, in the graph's precision."""
    sums = _bigram_sums if graph.is_bigram else _sparse_sums
    scores, occupancies, doubtful = sums(graph, log_probs, lengths, gradient)
    if gradient:
        inside = torch.arange(log_probs.shape[1], device=scores.device) < lengths[:, None]
        keep = inside & (scores != MINUS_INFINITY)[:, None]
        if not bool(keep.all()):
            occupancies = occupancies.masked_fill(~keep[:, :, None], 0.0)
    return scores, occupancies, doubtful


def _doubtful(graph: Transitions, scores: Tensor, scales: list[Tensor], ended: Tensor, lowest: Tensor) -> Tensor:
    """(B,) whether a loss of what was far below the rest may have changed the result.

    With full support whatever one history can do another can too, at the price of P, so only the range between two
    scalings counts. With arcs missing, what was lost may be all that could have gone on: that matters if something was
    lost, and what was kept has since gone down as far.

    Args:
        scales: of the forward and of the backward pass, each (B, scalings).
        ended: (B,) final probability of what was kept.
        lowest: (B,) smallest emission, or sum above 0 that was met.
    """
    smallest = torch.cat(scales, 1).double().amin(1)
    if graph.full_support:
        if graph.dtype == torch.float32:
            return ~torch.isfinite(scores) | (smallest < RESCALE[graph.dtype][1])
        return torch.zeros_like(scores, dtype=torch.bool)  # only where a frame emits nothing, or no number
    lost = (lowest < 1e-100) | (smallest < 1e-80) | graph.extreme
    drop = ended.log().clamp(max=0)
    for each in scales:
        total = each.double().log().cumsum(1)
        stretches = total[:, -1:] - total  # from each scaling to the last one
        drop = torch.minimum(drop, ended.log().clamp(max=0) + torch.minimum(stretches.amin(1), total[:, -1]))
    return ~torch.isfinite(scores) | (lost & (drop < -138))


def _smallest_positive(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.masked_fill(x == 0, 1.0).amin(dims)


def _bigram_sums(
    graph: Transitions, log_probs: Tensor, lengths: Tensor, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Dense products in the order (T, B, S), where S = V."""
    x, blank, shift, lowest = _emissions(graph, log_probs, lengths, graph.dtype, (1, 0, 2))
    if not gradient:
        (_, alls), forward_scales = _bigram_forward(graph, x, blank)
    elif x.device.type == "cpu" and graph.states >= SIDE_BY_SIDE_STATES and torch.get_num_threads() > 1:
        ((tokens, alls), forward_scales), ((after_token, after_blank), back_scales) = _side_by_side(
            lambda: _bigram_forward(graph, x, blank), lambda: _bigram_backward(graph, x, blank)
        )
    else:
        (tokens, alls), forward_scales = _bigram_forward(graph, x, blank)
        (after_token, after_blank), back_scales = _bigram_backward(graph, x, blank)
    ended = (alls[-1] * graph.final).double().sum(1)
    scores = ended.log() + forward_scales.double().log().sum(1) + shift + graph.log_final_scale
    if not graph.full_support:
        lowest = torch.minimum(lowest, _smallest_positive(alls, (0, 2)))
    if not gradient:
        return scores, x.new_empty(0), _doubtful(graph, scores, [forward_scales], ended, lowest)
    if not graph.full_support:
        lowest = torch.minimum(lowest, _smallest_positive(after_token, (0, 2)))
    doubtful = _doubtful(graph, scores, [forward_scales, back_scales], ended, lowest)
    blank_mass = alls.sub_(tokens).clamp_(min=0).mul_(after_blank).sum(2, keepdim=True)
    occupancies = tokens.mul_(after_token)
    total = occupancies.sum(2, keepdim=True) + blank_mass
    occupancies[:, :, :1] = blank_mass
    occupancies.div_(total.clamp_(min=torch.finfo(graph.dtype).tiny))
    return scores, occupancies.transpose(0, 1), doubtful


def _bigram_forward(graph: Transitions, x: Tensor, blank: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """token_t and all_t of every frame (T, B, S), rescaled, and the scales (B, scalings)."""
    matrix, goes_on, frames = graph.matrix, graph.goes_on, len(x)
    every = RESCALE[graph.dtype][0]
    tiny = 1e-30 if graph.dtype == torch.float32 else 1e-290
    tokens, alls = torch.empty_like(x), torch.empty_like(x)
    # Lists of views: slicing a tensor costs as much as an operation on a frame.
    x_at, blank_at, token_at, all_at = x.unbind(0), blank.unbind(0), tokens.unbind(0), alls.unbind(0)
    token = torch.zeros_like(x_at[0])
    all_ = torch.zeros_like(token)
    all_[:, 0] = 1
    fresh = torch.empty_like(token)
    scales = []
    for t in range(frames):
        torch.mm(all_, matrix, out=fresh)
        fresh.addcmul_(token, goes_on)
        token = torch.mul(fresh, x_at[t], out=token_at[t])
        all_ = torch.addcmul(token, all_, blank_at[t], out=all_at[t])
        if t % every == every - 1 or t == frames - 1:
            scale = all_.sum(1, keepdim=True).clamp_(min=tiny)
            all_.div_(scale)
            token.div_(scale)
            scales.append(scale)
    return (tokens, alls), torch.cat(scales, 1)


def _bigram_backward(graph: Transitions, x: Tensor, blank: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What may follow token_t and blank_t of every frame (T, B, S), rescaled, and the scales (B, scalings)."""
    transposed, goes_on, frames = graph.transposed, graph.goes_on, len(x)
    every = RESCALE[graph.dtype][0]
    tiny = 1e-30 if graph.dtype == torch.float32 else 1e-290
    after_token, after_blank = torch.empty_like(x), torch.empty_like(x)
    x_at, blank_at, token_at, after_at = x.unbind(0), blank.unbind(0), after_token.unbind(0), after_blank.unbind(0)
    beta_token, beta_blank = token_at[-1].copy_(graph.final), after_at[-1].copy_(graph.final)
    emitted = torch.empty_like(beta_token)
    scales = [torch.ones_like(beta_token[:, :1])]
    for t in range(frames - 2, -1, -1):
        torch.mul(beta_token, x_at[t + 1], out=emitted)
        beta_blank = torch.mul(beta_blank, blank_at[t + 1], out=after_at[t])
        beta_blank.addmm_(emitted, transposed)
        beta_token = torch.addcmul(beta_blank, emitted, goes_on, out=token_at[t])
        if t % every == 0:
            scale = beta_token.amax(1, keepdim=True).clamp_(min=tiny)
            beta_blank.div_(scale)
            beta_token.div_(scale)
            scales.append(scale)
    return (after_token, after_blank), torch.cat(scales, 1)


def _side_by_side(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Both results, computed at the same time with half of torch's threads each.

    A product of a few rows with a matrix gains little from a second thread; two recursions over frames gain all of it.
    """
    threads = torch.get_num_threads()

    def limited(work: Callable[[], Any]) -> Any:
        torch.set_num_threads(threads // 2)  # of the calling thread
        return work()

    with ThreadPoolExecutor(1) as pool:
        try:
            other = pool.submit(limited, second)
            return limited(first), other.result()
        finally:
            torch.set_num_threads(threads)


def _sparse_sums(
    graph: Transitions, log_probs: Tensor, lengths: Tensor, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_bigram_sums` for any histories: sparse products in the order (T, S, B)."""
    token_x, blank_x, shift, lowest = _emissions(graph, log_probs, lengths, graph.dtype, (1, 2, 0))
    frames, batch = log_probs.shape[1], log_probs.shape[0]
    states, last = graph.states, graph.last
    every = RESCALE[graph.dtype][0]
    tiny = 1e-30 if graph.dtype == torch.float32 else 1e-290
    x, blank = token_x.unbind(0), blank_x.unbind(0)
    tokens = token_x.new_empty(frames, states, batch)
    stacked = token_x.new_zeros(frames + 1, 2 * states, batch)  # all, then blank; entry t + 1 is after frame t
    token_at, stacked_at = tokens.unbind(0), stacked.unbind(0)
    stacked[0, 0] = stacked[0, states] = 1
    token = torch.zeros_like(tokens[0])
    scales = []
    for t in range(frames):
        before, now = stacked_at[t], stacked_at[t + 1]
        fresh = torch.mm(graph.matrix, before).add_(token)
        token = torch.mul(fresh, x[t].index_select(0, last), out=token_at[t])
        torch.mul(before[:states], blank[t], out=now[states:])
        torch.add(token, now[states:], out=now[:states])
        if t % every == every - 1 or t == frames - 1:
            scale = now[:states].sum(0, keepdim=True).clamp_(min=tiny)
            now.div_(scale)
            token.div_(scale)
            scales.append(scale)
    ended = (stacked_at[-1][:states] * graph.final[:, None]).double().sum(0)
    forward_scales = torch.cat(scales, 0).t()
    scores = ended.log() + forward_scales.double().log().sum(1) + shift + graph.log_final_scale
    if not graph.full_support:
        lowest = torch.minimum(lowest, _smallest_positive(stacked[1:, :states], (0, 1)))
    if not gradient:
        return scores, token_x.new_empty(0), _doubtful(graph, scores, [forward_scales], ended, lowest)

    occupancies = torch.zeros_like(token_x)
    beta_token = beta_blank = graph.final[:, None].expand(states, batch)
    back_scales = []
    for t in range(frames - 1, -1, -1):
        if t < frames - 1:
            emitted = beta_token * x[t + 1].index_select(0, last)
            through = torch.mm(graph.transposed, emitted)
            beta_blank = torch.addcmul(through[:states], beta_blank, blank[t + 1])
            beta_token = beta_blank + emitted
            beta_blank.add_(through[states:])
            if t % every == 0:
                scale = torch.maximum(beta_token.amax(0, keepdim=True), beta_blank.amax(0, keepdim=True))
                scale.clamp_(min=tiny)
                beta_blank.div_(scale)
                beta_token.div_(scale)
                back_scales.append(scale)
            if not graph.full_support:
                lowest = torch.minimum(lowest, _smallest_positive(beta_token, (0,)))
        occupancy = occupancies[t]
        occupancy.index_add_(0, last, token_at[t] * beta_token)
        occupancy[0] = (stacked_at[t + 1][states:] * beta_blank).sum(0)
    all_scales = [forward_scales] + ([torch.cat(back_scales, 0).t()] if back_scales else [])
    doubtful = _doubtful(graph, scores, all_scales, ended, lowest)
    occupancies.div_(occupancies.sum(1, keepdim=True).clamp_(min=torch.finfo(graph.dtype).tiny))
    return scores, occupancies.permute(2, 0, 1), doubtful


def _log_domain(graph: Transitions, log_probs: Tensor, lengths: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """The same sums in the log domain, one utterance at a time: slow, and right for any range of emissions."""
    x = log_probs.detach().double()
    scores, occupancies = x.new_full((len(x),), MINUS_INFINITY), torch.zeros_like(x)
    rows = torch.arange(graph.states, device=x.device)
    arcs, target = graph.log_p[:, 1:], graph.next_state[:, 1:]
    flat_target = target.reshape(-1)
    speaks = graph.last > 0
    start = rows.new_zeros(()).long()
    final = graph.log_p[:, 0]

    def arrive(token: Tensor, blank: Tensor) -> Tensor:
        """(S,) log of what arrives in each state by a new token."""
        leave = torch.logaddexp(token, blank)[:, None].expand(-1, arcs.shape[1]).clone()
        leave[rows[speaks], graph.last[speaks] - 1] = blank[speaks]
        values = (leave + arcs).reshape(-1)
        top = values.new_full((graph.states,), MINUS_INFINITY).scatter_reduce(0, flat_target, values, "amax")
        top = top.masked_fill(top == MINUS_INFINITY, 0.0)
        return top + torch.zeros_like(top).index_add_(0, flat_target, (values - top[flat_target]).exp()).log()

    for b, length in enumerate(lengths.tolist()):
        frames = x[b, :length]
        into = frames[:, graph.last].masked_fill(~speaks, MINUS_INFINITY)
        token, blank = torch.full_like(final, MINUS_INFINITY), torch.full_like(final, MINUS_INFINITY)
        blank[start] = 0
        kept = []
        for t in range(length):
            token, blank = (
                into[t] + torch.logaddexp(token, arrive(token, blank)),
                frames[t, 0] + torch.logaddexp(blank, token),
            )
            kept.append((token, blank))
        total = torch.logsumexp(torch.cat([token + final, blank + final]), 0)
        scores[b] = total
        if not gradient or not torch.isfinite(total):
            continue
        beta_token = beta_blank = final
        for t in range(length - 1, -1, -1):
            if t < length - 1:
                after, stay = into[t + 1] + beta_token, frames[t + 1, 0] + beta_blank
                through = arcs + after[target]
                beta_blank = torch.logaddexp(stay, torch.logsumexp(through, 1))
                through = through.clone()
                through[rows[speaks], graph.last[speaks] - 1] = MINUS_INFINITY
                beta_token = torch.logaddexp(torch.logaddexp(stay, after), torch.logsumexp(through, 1))
            token, blank = kept[t]
            occupancies[b, t].index_add_(0, graph.last, (token + beta_token - total).exp())
            occupancies[b, t, 0] = (torch.logsumexp(blank + beta_blank, 0) - total).exp()
    return scores, occupancies if gradient else x.new_empty(0)


# (log_probs, lengths, gradient) -> scores, occupancies
Denominator = Callable[..., tuple[Tensor, Tensor]]


class Score(torch.autograd.Function):
    """(B,) scores whose gradient with respect to the log-probabilities is the occupancies."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, denominator: Denominator) -> Tensor:
        scores, occupancies = denominator(log_probs, lengths, ctx.needs_input_grad[0])
        _keep(ctx, occupancies, log_probs)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _gradient(ctx, grads[0]), None, None


class CTCScore(torch.autograd.Function):
    """(B,) log of the sum over all alignments of given tokens, -inf where there is none; gradient: its occupancies.

    ``log_probs`` need not be normalised. torch's ctc_loss does the sums on frames divided by their largest emission,
    which changes no occupancy; what it calls the gradient is exp(log_probs) - occupancy, as it takes its input for the
    output of a softmax.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        batch, frames, _ = log_probs.shape
        device = log_probs.device
        lengths, token_lengths = lengths.to(device), token_lengths.to(device)
        tokens = tokens.to(device).clamp(min=0)
        within = torch.arange(1, max(1, tokens.shape[1]), device=device) < token_lengths[:, None]
        repeats = ((tokens[:, 1:] == tokens[:, :-1]) & within).sum(1)
        fits = (lengths >= token_lengths + repeats) & (lengths > 0)
        scores = torch.full((batch,), MINUS_INFINITY, dtype=torch.double, device=device)
        occupancies = torch.zeros_like(log_probs, dtype=torch.promote_types(log_probs.dtype, torch.float32))
        scores[(lengths == 0) & (token_lengths == 0)] = 0.0
        if bool(fits.any()):
            every = bool(fits.all())
            raw = log_probs.detach() if every else log_probs.detach()[fits]
            n, u, k = lengths[fits], token_lengths[fits], tokens[fits]
            inside = torch.arange(frames, device=device)[:, None] < n  # (T, B)
            x = raw.transpose(0, 1).double()
            x = torch.where(inside[:, :, None], x, x.new_zeros(()))
            top = x.amax(2, keepdim=True)
            top = top.masked_fill(top == MINUS_INFINITY, 0.0)
            x = (x - top).requires_grad_(ctx.needs_input_grad[0])
            if k.shape[1] == 0:
                k = k.new_zeros(len(k), 1)
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                losses = torch.nn.functional.ctc_loss(x, k, n, u, reduction="none", zero_infinity=False)
                if x.requires_grad:
                    (gradient,) = torch.autograd.grad(losses.sum(), x)
            possible = losses.detach() < float("inf")
            scores[fits] = torch.where(
                possible | losses.detach().isnan(), top.sum((0, 2)) - losses.detach(), scores[fits]
            )
            if x.requires_grad:
                emission = x.detach().exp()
                # Chosen, not multiplied: where there is no emission or no alignment the gradient is not a number.
                keep = (inside & possible)[:, :, None] & (emission > 0)
                occupied = torch.where(keep, emission - gradient, emission.new_zeros(())).clamp_(min=0)
                occupancies[fits] = occupied.transpose(0, 1).to(occupancies.dtype)
        _keep(ctx, occupancies, log_probs)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _gradient(ctx, grads[0]), None, None, None


class Divergence(torch.autograd.Function):
    """(B,) Kullback-Leibler divergence of the student's distribution over paths from the teacher's, both (B, T, V).

    ``(Z_S - sum gamma_T x_S) - (Z_T - sum gamma_T x_T)``, gamma_T the teacher's occupancies; its gradient with respect
    to the student is occupancy_S - gamma_T. Infinite where either has no path.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, lengths: Tensor, denominator: Denominator) -> Tensor:
        wide = torch.promote_types(student.dtype, teacher.dtype)
        both = torch.cat([student.detach().to(wide), teacher.detach().to(wide)])  # one pass over frames for the two
        scores, occupancies = denominator(both, lengths.repeat(2))
        (score_s, score_t), (occupancy, gamma) = scores.chunk(2), occupancies.chunk(2)
        # in double: half precision inputs lie far apart, and the sum runs over many frames
        difference = both[: len(student)].double() - both[len(student) :].double()
        difference = torch.where(gamma > 0, difference * gamma, difference.new_zeros(()))
        _keep(ctx, occupancy - gamma, student)
        divergence = score_s - score_t - difference.sum((1, 2))
        nowhere = (score_s == MINUS_INFINITY) | (score_t == MINUS_INFINITY)
        return divergence.masked_fill(nowhere, float("inf"))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _gradient(ctx, grads[0]), None, None, None


def _keep(ctx: Any, occupancies: Tensor, log_probs: Tensor) -> None:
    """Save what the gradient is, never wider than float32 unless the input is."""
    ctx.dtype = log_probs.dtype
    ctx.save_for_backward(occupancies.to(torch.promote_types(log_probs.dtype, torch.float32)))


def _gradient(ctx: Any, grad: Tensor) -> Tensor:
    (occupancies,) = ctx.saved_tensors
    return (occupancies * grad.to(occupancies.dtype)[:, None, None]).to(ctx.dtype)
