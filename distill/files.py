"""Write a file whole or not at all, read one line by line or as JSON, and tell whether two are the same."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from distill.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file beside ``path`` for writing and rename it to ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never a half of either. After an error nothing is left behind, and what a
    killed process of this host left behind the next writer of the same file clears away.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = name_beside(path)
    try:
        with open(beside, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def name_beside(path: Path) -> Path:
    """Where this process is to write what will be renamed to ``path``; such files of dead processes are deleted."""
    stem = f".{path.name}.{platform.node()}."
    for leftover in path.parent.glob(f"{glob.escape(stem)}*.tmp"):
        pid = leftover.name[len(stem) : -len(".tmp")]
        if pid.isdecimal() and not is_running(int(pid)):
            leftover.unlink(missing_ok=True)
    return path.with_name(f"{stem}{os.getpid()}.tmp")


def is_running(pid: int) -> bool:
    """Whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_lines(path: str | Path, expected: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line of a file.

    Args:
        expected: what to give instead, if the file is not there.

    Raises:
        UserError: it is not there, or not UTF-8.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: not found; {expected}")
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                cure = f"convert it: iconv -t utf-8 {path}"
                raise UserError(f"{path}:{number}: not UTF-8 (byte {error.start}); {cure}") from None


def json_object(text: str, where: str, cure: str) -> dict[str, Any]:
    """The object that a text is in JSON.

    Raises:
        UserError: it is none; names ``where`` and ``cure``.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); {cure}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not an object in JSON; {cure}")
    return content
