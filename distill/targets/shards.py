"""Which utterances go into which shard of stored targets."""

from __future__ import annotations

import bisect
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.files import atomic_write

SHARD_BYTES = 1 << 30
SHARD_MS = 3_600_000  # of audio: what is computed again at most after a kill
LEAST_SHARDS = 64  # of a set that is large enough for them: parallel jobs share the shards
MOST_SHARDS = 900
SHARD_UTTERANCES = 64  # on average at least, so that there are batches
MAX_GROWTH = 2.0  # of a data set, beyond which it is cut anew


def number_of_shards(utterances: int, milliseconds: int, size: int) -> int:
    """Shards of a data set whose targets take ``size`` bytes."""
    wanted = max(-(-size // SHARD_BYTES), -(-milliseconds // SHARD_MS), LEAST_SHARDS)
    return max(1, min(wanted, MOST_SHARDS, -(-utterances // SHARD_UTTERANCES)))


def cut(milliseconds: Mapping[str, int], count: int) -> list[str]:
    """First utterance of each of at most ``count`` shards of about the same length, by the order of UTF-8 bytes."""
    ordered = sorted(milliseconds, key=str.encode)
    total = max(1, sum(milliseconds.values()))
    first: list[str] = []
    before, previous = 0, -1
    for utterance in ordered:
        number = min(count - 1, before * count // total)
        if number != previous:
            first.append(utterance)
        before, previous = before + milliseconds[utterance], number
    return first


def shards(utterances: Sequence[str] | Mapping[str, Any], first: Sequence[str]) -> dict[str, list[str]]:
    """Utterances by the name of their shard; one that no utterance falls into is left out.

    Args:
        first: first utterance of each shard. What comes before all of them belongs to the first shard.
    """
    bounds = [utterance.encode() for utterance in first]
    result: dict[str, list[str]] = {}
    for utterance in sorted(utterances, key=str.encode):
        number = max(1, bisect.bisect_right(bounds, utterance.encode()))
        result.setdefault(f"{number:04d}", []).append(utterance)
    return result


def planned_shards(
    file: Path, contents: Mapping[str, Any], utterances: Mapping[str, Any], first: Callable[[], list[str]]
) -> dict[str, list[str]]:
    """Shards as a file of their first utterances says; cut and written if there is none that fits.

    A cut is kept when utterances are added, removed or change, so that only the shards that hold them are made again.

    Args:
        file: shards.json in the directory of the targets.
        contents: streams and format of the targets. Another cut is made for others.
        utterances: of the data set.
        first: makes a cut.
    """
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
        fits = plan["contents"] == contents and 1 / MAX_GROWTH <= len(utterances) / plan["utterances"] <= MAX_GROWTH
        bounds = [str(utterance) for utterance in plan["first"]] if fits else []
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError):
        bounds = []
    if not bounds:
        bounds = first()
        plan = {"contents": contents, "utterances": len(utterances), "first": bounds}
        with contextlib.suppress(OSError), atomic_write(file) as stream:  # to read them, the targets may be read-only
            json.dump(plan, stream, indent=0)
    return shards(utterances, bounds)
