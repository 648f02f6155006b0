"""A Conformer block against the same formulas written with loops and complex numbers."""

from __future__ import annotations

import torch
from tiny_networks import student, teacher
from torch.nn.functional import layer_norm, silu

from distill.models.conformer import ConformerBlock, for_rotation, rotary_tables, rotate

WIDTH, HEADS, FRAMES, KERNEL = 16, 2, 9, 5


def randomised_block() -> ConformerBlock:
    torch.manual_seed(0)
    block = ConformerBlock(WIDTH, HEADS, 24, KERNEL, 0.0).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block


def feed_forward(part, x):
    norm, wide, _, _, narrow, _ = part
    x = layer_norm(x, x.shape[-1:], norm.weight, norm.bias)
    return silu(x @ wide.weight.T + wide.bias) @ narrow.weight.T + narrow.bias


def attention(part, x):
    """Every head's queries and keys as complex numbers, turned by position * 10000^(-2j / dim)."""
    x = layer_norm(x, x.shape[-1:], part.norm.weight, part.norm.bias)
    dim = WIDTH // HEADS
    weights, biases = part.qkv.weight.view(3, HEADS, dim, WIDTH), part.qkv.bias.view(3, HEADS, dim)
    heads = []
    for head in range(HEADS):
        q, k, v = (x @ weights[n, head].T + biases[n, head] for n in range(3))
        turn = torch.arange(len(x))[:, None] * 10000.0 ** (-2 * torch.arange(dim // 2) / dim)
        q, k = (torch.complex(*y.chunk(2, 1)) * torch.exp(1j * turn) for y in (q, k))
        scores = (q[:, None] * k[None].conj()).real.sum(-1) / dim**0.5
        heads.append(scores.softmax(1) @ v)
    return torch.cat(heads, 1) @ part.out.weight.T + part.out.bias


def convolution(part, x):
    x = layer_norm(x, x.shape[-1:], part.norm.weight, part.norm.bias) @ part.gate.weight.T + part.gate.bias
    x = x[:, :WIDTH] * torch.sigmoid(x[:, WIDTH:])
    rows = []
    for t in range(len(x)):
        taps = [part.depthwise.weight[:, 0, -1 - n] * x[t - n] for n in range(min(KERNEL, t + 1))]
        rows.append(sum(taps) + part.depthwise.bias)
    x = torch.stack(rows)
    x = silu(layer_norm(x, x.shape[-1:], part.inner_norm.weight, part.inner_norm.bias))
    return x @ part.out.weight.T + part.out.bias


@torch.no_grad()
def test_a_block_is_that_of_the_conformer_paper():
    block, x = randomised_block(), torch.randn(FRAMES, WIDTH)
    expected = x + 0.5 * feed_forward(block.ffn1, x)
    expected = expected + attention(block.attention, expected)
    expected = expected + convolution(block.convolution, expected)
    expected = expected + 0.5 * feed_forward(block.ffn2, expected)
    expected = layer_norm(expected, (WIDTH,), block.norm.weight, block.norm.bias)
    tables = for_rotation(*rotary_tables(FRAMES, WIDTH // HEADS, torch.device("cpu")))
    torch.testing.assert_close(block(x[None], None, tables, FRAMES)[0], expected, atol=1e-5, rtol=1e-5)


def test_scores_depend_on_the_difference_of_positions_alone():
    torch.manual_seed(0)
    query, key = torch.randn(1, 8), torch.randn(1, 8)
    scores = []
    for first in (0, 5, 40_000):
        tables = for_rotation(*rotary_tables(4, 8, torch.device("cpu"), first))
        rows = rotate(torch.cat((query, key, key, key)), tables)
        scores.append(rows[0] @ rows[3])
    torch.testing.assert_close(scores[1], scores[0])
    torch.testing.assert_close(scores[2], scores[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_teachers_prediction_layer_is_repeated_for_each_logit_frame():
    source, target = teacher(), student("fbank", width=32, logits_per_frame=2)
    assert target.output.weight.shape[0] == 2 * source.output.weight.shape[0]
    report = target.init_from_teacher(source)
    assert "not copied" not in [line for line in report if "prediction layer" in line][0]
    for half in target.output.weight.chunk(2):
        assert torch.equal(half, source.output.weight)
