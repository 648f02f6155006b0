"""Checkpoints from which a training resumes after it was killed, the disk was full, or a checkpoint was damaged."""

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
    """Context in which torch.save, by which ESPnet's trainer saves, writes to a temporary file and renames it.

    A training that is killed while it saves then still has its previous checkpoint instead of half a new one. The
    trainer writes checkpoint.pth before the epoch's weights, which the average at the end needs. Here it is written
    after them, so that the weights of every epoch before a checkpoint exist. The previous one is kept as
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
    """Keep a checkpoint that is about to be replaced as checkpoint.previous.pth, by a hard link.

    At every moment one of the two files exists.
    """
    beside = name_beside(checkpoint.with_name(PREVIOUS))
    with contextlib.suppress(OSError):  # there is no checkpoint yet, or the file system has no hard links
        os.link(checkpoint, beside)
        os.replace(beside, checkpoint.with_name(PREVIOUS))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete and undamaged, by the checksums of torch's zip format."""
    try:
        with zipfile.ZipFile(checkpoint) as parts:
            return parts.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        return False


def usable_checkpoint(directory: Path, first_process: bool = True) -> bool:
    """Whether a training's directory has a checkpoint to resume from.

    A damaged checkpoint.pth is replaced by the previous one.

    Args:
        first_process: whether this is the first process of a distributed training. The others wait until it has
            replaced a damaged checkpoint.

    Raises:
        UserError: both are damaged.
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
