"""The kernel that runs the loop over frames on a GPU, interpreted on the CPU: its sums are those of torch."""

import os
import subprocess
import sys

import pytest
import torch
from device_reads import OperationCount
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import assert_same, by, emissions
from small_graphs import odd_automaton, random_bigram, random_text

from distill.lfmmi import DenominatorGraph, LFMMILoss, topology

triton_recursions = pytest.importorskip("distill.lfmmi.triton_recursions")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled here; test/gpu tests them on the GPU"
)
MINUS_INFINITY = float("-inf")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So small that matrices have several, and that rows run over their borders."""
    monkeypatch.setattr(triton_recursions, "TILE", {torch.float32: 16, torch.float64: 16})


@pytest.mark.parametrize("order,frames", [(1, 11), (2, 11), (3, 7), (4, 4)])
def test_equals_the_sums_of_torch(order, frames):
    graph = DenominatorGraph.from_text(random_text(4, 5), order=order, vocab_size=4)
    assert_same(graph, emissions(2, frames, 4), [frames, 3], "triton")


@pytest.mark.parametrize("absent", [0.0, 0.5])
def test_bigram_without_back_off(absent):
    assert_same(random_bigram(7, absent=absent), emissions(1, 10, 7), [10], "triton")


def test_any_automaton_with_back_off():
    assert_same(odd_automaton(), emissions(2, 7, 4), [7, 2], "triton")


def test_one_frame_and_none():
    graph = DenominatorGraph.from_text(random_text(4, 5), order=2, vocab_size=4)
    assert_same(graph, emissions(3, 1, 4), [1, 0, 1], "triton")


@pytest.mark.parametrize("order", [2, 3])
def test_peaky_emissions(order):
    """One emission of a frame 200 nats above all others, whatever the n-gram thinks of it."""
    graph = DenominatorGraph.from_text(random_text(4, 5), order=order, vocab_size=4)
    x = torch.full((1, 10, 4), -200.0, dtype=torch.double)
    x.scatter_(2, torch.randint(4, (1, 10, 1), generator=torch.Generator().manual_seed(1)), 0.0)
    assert_same(graph, x, [10], "triton")


def test_minus_infinity_and_what_is_not_a_number():
    graph = DenominatorGraph.from_text(random_text(4, 5), order=2, vocab_size=4)
    x = emissions(3, 5, 4)
    x[0, 2, 1:] = x[0, 3, 0] = MINUS_INFINITY  # still possible
    x[1, 3] = MINUS_INFINITY  # nothing can be emitted
    assert_same(graph, x, [5, 5, 5], "triton")
    x[2, 1, 2] = float("nan")
    scores, _ = by(graph, "triton").native(x, torch.tensor([5, 5, 5]))
    assert scores[0].isfinite() and scores[1] == MINUS_INFINITY and scores[2].isnan()


@pytest.mark.parametrize("order,block", [(2, 1), (2, 3), (3, 2)])
def test_sums_kept_block_by_block_change_nothing(monkeypatch, order, block):
    graph = DenominatorGraph.from_text(random_text(4, 4), order=order, vocab_size=4)
    x, lengths = emissions(2, 6, 4), torch.tensor([6, 5])
    whole = by(graph, None).native(x, lengths)
    monkeypatch.setattr(topology, "KEPT_BYTES", block * 4 * graph.states * 2 * 8)
    for kept, apart in zip(whole, by(graph, "triton").native(x, lengths), strict=True):
        torch.testing.assert_close(apart, kept, rtol=1e-12, atol=1e-12)


def test_scores_without_gradient_are_the_same():
    graph = by(DenominatorGraph.from_text(random_text(4, 5), order=3, vocab_size=4), "triton")
    x, lengths = emissions(2, 5, 4), torch.tensor([5, 4])
    torch.testing.assert_close(graph.native(x, lengths, False)[0], graph.native(x, lengths)[0])


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=8),
    st.integers(1, 3),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.floats(0.1, 40.0),
    st.integers(0, 99),
)
def test_sums_of_any_text(lines, order, lengths, scale, seed):
    graph = DenominatorGraph.from_text(lines, order=order, vocab_size=4)
    assert_same(graph, emissions(len(lengths), max(1, *lengths, 1), 4, scale, seed), lengths, "triton")


def test_torch_has_the_same_few_operations_for_any_number_of_frames():
    """Frames are the kernel's: loss and gradient of 4 and of 8 take the same operations."""
    graph = by(DenominatorGraph.from_text(random_text(4, 5), order=2, vocab_size=4), "triton")
    criterion, counts = LFMMILoss(graph), []
    for frames in (2, 4, 8):
        x = emissions(2, frames, 4).float().requires_grad_()
        tokens, token_lengths = torch.tensor([[1, 2], [3, -1]]), torch.tensor([2, 1])
        with OperationCount() as count:
            criterion(x, torch.tensor([frames, frames - 1]), tokens, token_lengths).backward()
        counts.append(count.total)
    assert counts[1] == counts[2]  # the first call makes what is kept


def test_compiles_for_a_gpu():
    """By the compiler, which needs no GPU; registers that do not suffice or types that do not fit would end it."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distill.lfmmi.triton_loop import recursion
integers, constants = ("columns", "groups", "last"), dict(
    EVERY=2, TINY=1e-30, FROM_BLANK=True, TILE=1024, GROUP=4, BLOCK=512)
pointers = ("values", "goes_on", "x", "x_blank", "scratch")
types = {
    name: "constexpr" if name in constants else "*i32" if name in integers
    else "*fp32" if name in pointers or name.startswith(("alpha", "beta")) else "i32"
    for name in recursion.arg_names
}
source = ASTSource(recursion, types, constexprs={(recursion.arg_names.index(n),): v for n, v in constants.items()})
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
print(len(kernel.asm["cubin"]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 10_000
