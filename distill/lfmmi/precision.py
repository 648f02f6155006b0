"""Which number format the sums need: a bound from the n-gram, and a check of the scales that an utterance met.

All terms are positive, so no digits cancel and rounding stays small. What can go wrong is that a term is below the
smallest number t of the format (e^-87 in float32, e^-708 in float64) and lost, though the others die out later and it
would have been all that is left. Let D bound how much better the future of one state can be than that of another, at
the same frame, as a log. Then a lost term takes away at most a share

    t * e^D / c

of the total, c being the least total of a frame since the last scaling. At most N terms are lost in all; the loss is
below 1e-7 if

    log c  >=  log t + D + log N + log 1e7.

D is finite where every token that occurs, and the end, may follow every state: whatever labels the better state's path
emits, the other state can emit them too. It pays at most L = -min log P(v | s) for the first token, after which the
last tokens agree. The n-gram's histories agree after n - 1 tokens; each of the n - 2 between costs at most R, the
largest log of P(w | h) / P(w | h') for two states h, h' with the same last token. So D = L + (n - 2) min(R, L).

c is seen at the scalings only. Between two of them a frame's emissions, divided by their mean, can raise the total by V
at most, so c >= the smallest scale / V^(k - 1), with a scaling every k frames.

Where D is not finite, float64 is taken, and the log domain for utterances in which something was lost and what was kept
has since gone down as far.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from distill.lfmmi.ngram_automaton import Automaton
from distill.lfmmi.topology import RESCALE

MINUS_INFINITY = float("-inf")
SHARE_LOST = math.log(1e-7)


def reachable(automaton: Automaton) -> np.ndarray:
    """(V,) whether any state or back-off lists the token; blank counts as one that does."""
    occurs = np.zeros(automaton.vocab_size, dtype=bool)
    occurs[automaton.arc_token[np.isfinite(automaton.arc_log_p)]] = True
    occurs[0] = True
    return occurs


def smallest_log_p(automaton: Automaton) -> float:
    """A lower bound of log P(v | s) over all states and reachable tokens v, and the end; -inf if one has no way."""
    a = automaton
    smallest = np.full(a.nodes, np.inf)
    np.minimum.at(smallest, a.arc_node, a.arc_log_p)
    complete = np.bincount(a.arc_node, minlength=a.nodes) == int(reachable(a).sum()) - 1
    for depth, nodes in enumerate(a.by_depth):
        below = np.full(len(nodes), -np.inf)
        if depth:
            below = a.log_weight[nodes] + smallest[a.backoff[nodes]]
        smallest[nodes] = np.where(complete[nodes], smallest[nodes], np.minimum(smallest[nodes], below))
    return float(min(smallest[: a.states].min(), a.final.min()))


def spread(automaton: Automaton) -> float:
    """R, an upper bound of log P(w | h) / P(w | h') over tokens w and states h, h' with the same last token.

    Both are compared with the node of the last token alone, which their back-off leads to.
    """
    a = automaton
    base = np.arange(a.nodes)
    for nodes in a.by_depth[2:]:
        base[nodes] = base[a.backoff[nodes]]
    deeper = base != np.arange(a.nodes)
    up, down = np.zeros(a.nodes), np.zeros(a.nodes)
    listed = deeper[a.arc_node]
    node = a.arc_node[listed]
    ratio = a.arc_log_p[listed] - a.resolve(base[node], a.arc_token[listed])[0]
    highest, lowest = np.full(a.nodes, -np.inf), np.full(a.nodes, np.inf)
    np.maximum.at(highest, node, ratio)
    np.minimum.at(lowest, node, ratio)
    for nodes in a.by_depth[2:]:
        up[nodes] = np.maximum(highest[nodes], a.log_weight[nodes] + up[a.backoff[nodes]])
        down[nodes] = np.minimum(lowest[nodes], a.log_weight[nodes] + down[a.backoff[nodes]])
    ends = a.final - a.final[base[: a.states]]
    return float(max(up.max(), ends.max()) - min(down.min(), ends.min()))


def advantage(automaton: Automaton) -> float:
    """D, see the module; inf where it has no bound."""
    least = smallest_log_p(automaton)
    if not math.isfinite(least) or automaton.order == 0:
        return math.inf
    return -least + (automaton.order - 2) * (min(spread(automaton), -least) if automaton.order > 2 else 0.0)


def smallest_total(dtype: torch.dtype, advantage_: float, terms: int, frames: int, vocab_size: int) -> float:
    """Log of the smallest scale that the bound allows; above 0 means that no utterance can be safe.

    Args:
        terms: products and sums of a frame.
    """
    tiny = math.log(torch.finfo(dtype).tiny)
    between = (RESCALE[dtype] - 1) * math.log(vocab_size)
    return tiny + advantage_ + math.log(max(1, terms * frames)) + math.log(vocab_size) - SHARE_LOST + between


def below_bound(scores: Tensor, scales: list[Tensor], limit: float) -> Tensor:
    """(B,) whether a scale (k, B) was below e^limit, or a score is not a finite number."""
    smallest = torch.cat(scales).double().amin(0)
    return ~torch.isfinite(scores) | (smallest.log() < limit)


def lost_and_sunk(scores: Tensor, scales: list[Tensor], ended: Tensor, lowest: Tensor, extreme: bool) -> Tensor:
    """(B,) whether, in float64 and without a bound D, what was lost may be all that could have gone on.

    That takes two things: something was lost, and what was kept has since gone down as far.

    Args:
        scales: of the forward and of the backward pass, each (k, B) in the order they were met.
        ended: (B,) final probability of what was kept.
        lowest: (B,) smallest emission, or sum above 0 that was met.
        extreme: whether the n-gram has a log P below -60.
    """
    smallest = torch.cat(scales).double().amin(0)
    lost = (lowest < 1e-100) | (smallest < 1e-80) | extreme
    drop = ended.log().clamp(max=0)
    for each in scales:
        if len(each):
            total = each.double().log().cumsum(0)
            stretches = total[-1] - total  # from each scaling to the last one
            drop = torch.minimum(drop, ended.log().clamp(max=0) + torch.minimum(stretches.amin(0), total[-1]))
    return ~torch.isfinite(scores) | (lost & (drop < -138))
