"""Attention in blocks is attention under the mask over all pairs, with fewer multiplications."""

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import batch, student
from torch.utils.flop_counter import FlopCounterMode

from distill.models import student as student_module
from distill.models.chunk_attention import WORTH_IT, ChunkAttention, pairs
from distill.models.chunk_mask import chunk_mask, copied_frames

CASES = [
    (13, 5, 4, 2, [13, 7, 1]),
    (13, 2, 3, 3, [13, 7, 1]),
    (40, 4, 6, 0, [40, 40, 39]),
    (7, 7, 0, 1, [7, 3]),
    (64, 4, 12, 4, [64, 30, 5]),
    (50, 3, 0, 2, [50, 11]),
    (12, 40, 5, 3, [12, 2]),
    # several chunks in a block
    (80, 3, 30, 2, [80, 41, 9]),
    (61, 2, 24, 3, [61, 60]),
    (75, 4, 60, 0, [75, 20]),
]


@pytest.mark.parametrize(("frames", "chunk", "left", "lookahead", "lengths"), CASES)
def test_outputs_and_gradients_are_those_under_the_mask(frames, chunk, left, lookahead, lengths):
    torch.manual_seed(0)
    ahead = copied_frames(frames, chunk, lookahead).flatten()
    counts = torch.tensor(lengths)
    inputs = [torch.randn(len(lengths), 2, frames + len(ahead), 8, requires_grad=True) for _ in range(3)]
    mask = chunk_mask(counts, frames, chunk, left, lookahead)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    found = ChunkAttention(counts, frames, chunk, left, lookahead)(*inputs)
    assert found.shape == expected.shape and bool(torch.isfinite(found).all())
    inside = (torch.cat((torch.arange(frames), ahead)) < counts[:, None])[:, None, :, None]
    torch.testing.assert_close(found * inside, expected * inside, atol=1e-5, rtol=0)
    weight = torch.randn_like(expected) * inside
    gradients = (torch.autograd.grad((x * weight).sum(), inputs) for x in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("chunk", "lookahead"), [(3, 3), (6, 0)])
def test_a_student_computes_the_same_with_fewer_multiplications(monkeypatch, chunk, lookahead):
    network = student("fbank", layers=2)
    speech, lengths = batch([64000, 40000, 3000])
    outputs, flops = [], []
    for worth_it in (WORTH_IT, 0.0):
        monkeypatch.setattr(student_module, "WORTH_IT", worth_it)
        with (
            FlopCounterMode(display=False) as counter,
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            outputs.append(network(speech, lengths, chunk, 12, lookahead))
        flops.append(sum(n for name, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(name)))
    frames = outputs[0].hidden[0].shape[1]
    in_blocks, dense = pairs(frames, chunk, 12, lookahead)
    assert in_blocks <= WORTH_IT * dense
    assert flops[0] / flops[1] == pytest.approx(in_blocks / dense, rel=0.01)
    for row, length in enumerate(outputs[0].lengths.tolist()):
        torch.testing.assert_close(outputs[0].logits[row, :length], outputs[1].logits[row, :length], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, None),
        ({"lengths": [500, 400]}, (2, 1, 1, 500)),
        ({"chunk": 24, "left": None}, (2, 1, 500, 500)),
        ({"chunk": 24, "left": 450}, (2, 1, 500, 500)),
        ({"chunk": 12, "left": 150, "lookahead": 12}, ChunkAttention),
    ],
)
def test_the_cheapest_form_is_taken(arguments, kind):
    lengths = torch.tensor(arguments.pop("lengths", [500, 500]))
    seen = student_module.what_is_seen(
        lengths, torch.zeros(2, 500, 4), **{"chunk": None, "left": None, "lookahead": 0, **arguments}
    )
    if kind is None or kind is ChunkAttention:
        assert seen is None if kind is None else isinstance(seen, ChunkAttention)
    else:
        assert seen.shape == kind
