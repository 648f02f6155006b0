"""Space on the disk that targets take."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.configuration import code_bytes, logit_bytes
from distill.errors import UserError
from distill.targets.store import NEVER_COMPRESSED

BYTES = {"float32": 4, "float16": 2, "compressed": 1}  # of a value
CODED = ("hidden_", "logits")  # beginnings of the names of streams that codebook stores as codes


def planned_bytes(milliseconds: Sequence[int], streams: Mapping[str, tuple[int, int]], dtype: str) -> int:
    """Bytes of the arks of utterances of these lengths; ``streams``: dimension and milliseconds of a frame by name.

    Codebooks are not counted.
    """
    total = 0
    for stream, (width, frame_ms) in streams.items():
        frames = [length // frame_ms for length in milliseconds]
        if dtype == "codebook" and stream.startswith(CODED):
            of_frame = logit_bytes(width) if stream == "logits" else code_bytes(width)
            total += sum(frames) * of_frame
            continue
        kind = "float32" if stream in NEVER_COMPRESSED else "compressed" if dtype == "codebook" else dtype
        total += sum(frames) * width * BYTES[kind] + len(frames) * (50 if kind == "float32" else 55)
        if kind == "compressed":  # the quantiles of every column
            total += 8 * width * len(frames)
    return total


def check_space(directory: str | Path, needed: int, smaller: Mapping[str, int] | None = None) -> int:
    """Free bytes of the disk that holds ``directory``; refuses if ``needed`` does not fit, naming what would.

    ``smaller`` are other ways to store the targets and the bytes that they need.
    """
    place = Path(directory).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        fitting = [f"{how} ({size / 1e9:.1f} GB)" for how, size in (smaller or {}).items() if size <= free]
        raise UserError(
            f"{directory}: the targets need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; what fits: "
            + ", ".join([*fitting, "an online teacher (--teacher_targets online)"])
        )
    return free
