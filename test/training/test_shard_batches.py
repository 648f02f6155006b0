"""Batches that read large stored targets shard by shard."""

from __future__ import annotations

import logging
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import reporter
from tiny_training import STUDENT

from distill.training import shard_batches
from distill.training.shard_batches import GROUP, ShardBatches, batches_by_group, cut_batches


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=80), st.integers(1, 9000), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_batches_are_full_and_hold_every_utterance_once(counts, bins, least):
    lengths = {f"u{n}": count for n, count in enumerate(counts)}
    batches = cut_batches(lengths, bins, least)
    assert sorted(u for batch in batches for u in batch) == sorted(lengths)
    for batch in batches[:-1]:
        assert len(batch) >= least
        assert len(batch) == least or max(lengths[u] for u in batch) * len(batch) <= bins
    assert len(batches[-1]) >= min(least, len(lengths))


def groups_of(shards: int, per_shard: int) -> tuple[list[list[list[str]]], dict[str, int]]:
    shard_of = {f"{shard:02d}-{n:02d}": shard for shard in range(shards) for n in range(per_shard)}
    lengths = {utterance: 100 + 37 * n % 90 for n, utterance in enumerate(shard_of)}
    return batches_by_group(lengths, shard_of, 500, 1), shard_of


def test_a_pass_needs_two_groups_of_shards_at_a_time_and_each_once():
    groups, shard_of = groups_of(5 * GROUP, 30)
    sampler = ShardBatches(groups)
    for seed in range(5):
        batches = sampler.generate(seed)
        assert len(batches) == len(sampler)
        assert sorted(u for batch in batches for u in batch) == sorted(shard_of)
        needed = [{shard_of[u] // GROUP for u in batch} for batch in batches]
        assert all(len(numbers) == 1 for numbers in needed)
        order = [min(numbers) for numbers in needed]
        spans = {number: (order.index(number), len(order) - 1 - order[::-1].index(number)) for number in set(order)}
        for place in range(len(order)):
            assert sum(first <= place <= last for first, last in spans.values()) <= 2


def test_passes_differ_in_the_order_of_shards_and_of_batches():
    sampler = ShardBatches(groups_of(4 * GROUP, 30)[0])
    first, second = sampler.generate(0), sampler.generate(1)
    assert first == sampler.generate(0)
    assert first != second and sorted(map(tuple, first)) == sorted(map(tuple, second))
    assert len({tuple(dict.fromkeys(int(b[0][:2]) // GROUP for b in sampler.generate(seed))) for seed in range(20)}) > 5


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Advice that is given to the system about files."""
    advice: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: advice.append(arguments[-1]))
    return advice


def test_a_training_with_large_targets_reads_them_by_shard(world, teacher, stored, monkeypatch, caplog, advised):
    caplog.set_level(logging.INFO)
    options = ["--teacher", str(teacher), *stored, "--batch_type", "numel", "--batch_bins", "40000"]
    world.train("student_small_targets", STUDENT, *options)
    assert "by shard" not in caplog.text and not advised
    monkeypatch.setattr(shard_batches, "LARGE", 0)
    stats = reporter(world.train("student_large_targets", STUDENT, *options))
    assert "batches by shard of the stored targets" in caplog.text and advised
    assert stats[2]["train"]["loss"] < stats[1]["train"]["loss"]
