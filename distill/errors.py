"""How errors reach the user: one line on stderr that names file, line and cure, and exit status 2."""

from __future__ import annotations

import errno
import functools
import importlib.util
import re
import sys
from collections.abc import Callable

# Errors of the operating system that the user can do something about, and what
CURES = {
    errno.ENOSPC: "make room on that disk and run the same command again",
    errno.EDQUOT: "make room within your quota and run the same command again",
    errno.EROFS: "it lies on a read-only disk; write somewhere else",
    errno.EACCES: "change its permissions, or write somewhere else",
    errno.EMFILE: "allow more open files (ulimit -n) and run the same command again",
    errno.EFBIG: "allow larger files (ulimit -f) and run the same command again",
    errno.EIO: "the disk is failing; copy what is on it",
    errno.EISDIR: "it is a directory; give a file",
    errno.ENOTDIR: "it is a file; give a directory",
    errno.ELOOP: "it is a link to itself; replace it",
    errno.ENAMETOOLONG: "choose a shorter name",
}
# Characters that a terminal obeys instead of showing them, marks that reverse the order of what follows, and halves of
# surrogate pairs, which no encoding has. Line ends are among them.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Bad input of any kind. The message is one line: ``FILE:LINE: what is wrong; what to do``."""


def printable(text: str) -> str:
    """A text for a terminal: what that would obey instead of showing (:data:`CONTROL`) is replaced."""
    return CONTROL.sub("\ufffd", text)


def require(*packages: str, extra: str) -> None:
    """Check that Python packages of an optional part of the toolkit are installed.

    Args:
        extra: name of the part in setup.py (``extras_require``).

    Raises:
        UserError: one of them is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package}: not installed; pip install 'distillw2v2[{extra}]'")


def cli(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command's ``main``: a :class:`UserError` is printed as one line on stderr, with exit status 2.

    So are the errors of the operating system in :data:`CURES`: a full or read-only disk, missing permissions. An
    interrupt (Ctrl-C) exits with status 130 and no traceback; every other exception is passed on.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if error.errno not in CURES:
                raise
            where = printable(f"{error.filename}: ") if error.filename is not None else ""
            print(f"error: {where}{error.strerror}; {CURES[error.errno]}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return wrapped
