"""Checkpoints of ESPnet's trainer that outlive a kill, a full disk and damage on the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import atomic_write, name_beside

NAME, PREVIOUS = "checkpoint.pth", "checkpoint.previous.pth"


@contextmanager
def save_whole() -> Iterator[None]:
    """Within this, let torch.save, with which ESPnet's trainer writes its checkpoints, write beside and rename.

    A training that is killed while it saves then finds its previous checkpoint instead of half a new one. The trainer
    writes checkpoint.pth before the epoch's own weights, which the average at the end needs; here it comes after them,
    so that a checkpoint never speaks of an epoch whose weights are lost. The one before stays as
    checkpoint.previous.pth.
    """
    import torch

    save = torch.save
    waiting: list[tuple[Any, Path]] = []

    def save_beside(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, str | Path):
            save(obj, f, *args, **kwargs)
        elif Path(f).name == NAME:
            waiting.append((obj, Path(f)))
        else:
            with atomic_write(f, "wb") as stream:
                save(obj, stream, *args, **kwargs)
            while waiting:
                checkpoint, path = waiting.pop()
                with atomic_write(path, "wb") as stream:
                    save(checkpoint, stream)
                    keep_previous(path)

    torch.save = save_beside
    try:
        yield
    finally:
        torch.save = save


def keep_previous(checkpoint: Path) -> None:
    """Give a checkpoint that is about to be replaced its second name; there is no moment without either."""
    beside = name_beside(checkpoint.with_name(PREVIOUS))
    with contextlib.suppress(OSError):  # there is none yet, or this disk knows no hard links
        os.link(checkpoint, beside)
        os.replace(beside, checkpoint.with_name(PREVIOUS))


def is_whole(checkpoint: Path) -> bool:
    """Whether every byte is there and as it was written, by the checksums within the file."""
    try:
        with zipfile.ZipFile(checkpoint) as parts:
            return parts.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        return False


def usable_checkpoint(directory: Path, first_process: bool = True) -> bool:
    """Whether a training can go on from checkpoint.pth of its directory; a damaged one is replaced by the one before.

    Args:
        first_process: of several that train together; the others wait until it has replaced the damaged one.

    Raises:
        UserError: neither is whole.
    """
    checkpoint, previous = directory / NAME, directory / PREVIOUS
    if not checkpoint.exists():
        return False
    if is_whole(checkpoint):
        return True
    if not first_process:
        for _ in range(600):
            time.sleep(1)
            if is_whole(checkpoint):
                return True
    elif is_whole(previous):
        logging.warning(f"{checkpoint}: damaged or cut off; going on from the one before it, {PREVIOUS}")
        os.replace(previous, checkpoint)
        return True
    raise UserError(f"{checkpoint}: damaged or cut off, and so is the one before; remove {directory} to start again")
