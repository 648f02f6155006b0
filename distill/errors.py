"""How errors reach the user: one line on stderr that names file, line and cure, and exit status 2."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import io
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
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
# Environment variables that let a checkpoint run code: of ESPnet, and of torch
UNSAFE = ("ESPNET_ALLOW_UNSAFE_TORCH_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
LEAST_FREE = 1 << 20  # bytes; a disk with less is full
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
    interrupt (Ctrl-C), SIGTERM and SIGHUP exit with status 128 + signal and no traceback, after temporary files are
    removed; so does a closed pipe at stdout (``... | head -1``). Every other exception is passed on.

    Variables of the environment that would let a checkpoint run code are removed (:data:`UNSAFE`), stdin, stdout and
    stderr may be closed, and what their encoding does not have is escaped.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        open_standard_streams()
        forbid_unsafe_loading()
        try:
            with exit_at_signals():
                main(*args, **kwargs)
                sys.stdout.flush()  # a full disk or a closed pipe shows here, not when the interpreter ends
        except UserError as error:
            report(printable(" ".join(str(error).split())))
            sys.exit(2)
        except BrokenPipeError:
            drop_unwritten_output()
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            if error.errno not in CURES:
                raise
            name = error.filename if error.filename is not None else output_file()
            if error.filename2 is not None and error.errno in NO_ROOM:
                name = error.filename2  # where a copy goes
            where = printable(f"{name}: ") if name is not None else ""
            report(f"{where}{error.strerror}; {CURES[error.errno]}")
            drop_unwritten_output()
            sys.exit(2)
        except Exception as error:
            # What libraries raise does not always say that the disk is full.
            if (place := full_disk()) is None:
                raise
            message = printable(" ".join(str(error).split())) or type(error).__name__
            report(f"{place}: {message}: {os.strerror(errno.ENOSPC)}; {CURES[errno.ENOSPC]}")
            drop_unwritten_output()
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    return wrapped


def report(message: str) -> None:
    """Print the line of an error, on a line of its own: progress bars of tqdm end before it."""
    if (module := sys.modules.get("tqdm")) is not None:
        for bar in list(getattr(module.tqdm, "_instances", ())):
            bar.close()
    print(f"error: {message}", file=sys.stderr)


def output_file() -> str | None:
    """Path of the file that stdout is redirected to; None if it is none."""
    with contextlib.suppress(OSError):
        path = os.readlink("/proc/self/fd/1")
        if stat.S_ISREG(os.fstat(1).st_mode) and os.path.exists(path):
            return path
    return None


def full_disk() -> str | None:
    """The working directory or the one of temporary files, if there is no room on its disk; else None."""
    for place in (os.getcwd(), tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free < LEAST_FREE:
                return place
    return None


def drop_unwritten_output() -> None:
    """Send what is left of stdout to /dev/null if it cannot be written, which else would fail again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def forbid_unsafe_loading() -> None:
    """Remove the variables :data:`UNSAFE` from the environment, with a line on stderr for each that is set."""
    for name in UNSAFE:
        if os.environ.pop(name, "0") not in ("", "0"):
            print(f"note: {name} is ignored: it would let a checkpoint run code", file=sys.stderr)


def open_standard_streams() -> None:
    """Give closed standard streams /dev/null, and let characters that a stream's encoding lacks be escaped.

    File names need not be UTF-8; where the stream is, they are printed as they are.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                os.fstat(descriptor)
            except OSError:  # else a file that is opened later would get this number, and what is printed
                null = os.open(os.devnull, os.O_RDWR)  # usually has the number already
                os.dup2(null, descriptor)
                os.set_inheritable(descriptor, True)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


@contextlib.contextmanager
def exit_at_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise :class:`SystemExit`, so that temporary files are removed."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
