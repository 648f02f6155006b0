"""Batches of a training with large stored targets, which read them shard by shard, as a network disk is read best.

A batch holds utterances of a few adjacent shards. These groups come in a random order. Half of a group's batches, drawn
at random, are mixed with half of those of the group before, the other half with the group behind; so a pass needs two
groups of shards at a time, and each of them once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from espnet2.samplers.abs_sampler import AbsSampler

GROUP = 8  # shards whose utterances may share a batch
LARGE = 4 << 30  # bytes of targets, from which batches are made by shard


def cut_batches(lengths: Mapping[str, int], bins: int, least: int) -> list[list[str]]:
    """Utterances by rising length, in batches of at most ``bins`` padded samples but at least ``least`` utterances.

    Too few utterances are one batch.
    """
    batches: list[list[str]] = [[]]
    for utterance in sorted(lengths, key=lambda name: (lengths[name], name)):
        if len(batches[-1]) >= least and lengths[utterance] * (len(batches[-1]) + 1) > bins:
            batches.append([])
        batches[-1].append(utterance)
    if len(batches[-1]) < least and len(batches) > 1:
        rest = batches.pop()
        batches[-1] += rest
    return batches


def batches_by_group(
    lengths: Mapping[str, int], shard_of: Mapping[str, int], bins: int, least: int
) -> list[list[list[str]]]:
    """The batches of each group of adjacent shards.

    Args:
        lengths: samples of each utterance.
        shard_of: number of its shard.
        bins: padded samples of a batch; least: utterances of a batch.
    """
    groups: dict[int, dict[str, int]] = {}
    for utterance, length in lengths.items():
        groups.setdefault(shard_of[utterance] // GROUP, {})[utterance] = length
    return [cut_batches(groups[number], bins, least) for number in sorted(groups)]


class ShardBatches(AbsSampler):
    """Batches in an order that reads shard by shard; the same batches in every pass.

    Args:
        groups: batches of each group of shards.
    """

    def __init__(self, groups: Sequence[Sequence[Sequence[str]]]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return sum(len(batches) for batches in self._groups)

    def __iter__(self) -> Iterator[Sequence[str]]:
        return iter([batch for batches in self._groups for batch in batches])

    def generate(self, seed: int) -> list[Sequence[str]]:
        """The batches of a pass."""
        rng = np.random.RandomState(seed)
        result: list[Sequence[str]] = []
        waiting: list[Sequence[str]] = []
        for number in rng.permutation(len(self._groups)):
            batches = list(self._groups[number])
            rng.shuffle(batches)
            now = waiting + batches[: len(batches) // 2]
            rng.shuffle(now)
            result += now
            waiting = batches[len(batches) // 2 :]
        return result + waiting
