"""A command with hostile input, run in a process of its own: how it ended, and whether that is how it should end."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_S, MOST_MB = 5.0, 1024.0  # of one command: computation, and memory beyond what its imports need
PATIENCE = 6  # a command that takes so many times longer by the clock hangs; on a busy machine it waits for others too


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: exit status, negative for a signal.
        output, errors: bytes of stdout and stderr.
        seconds: of computation.
        hung: it was ended.
        megabytes: its memory grew by at most this much.
    """

    status: int
    output: bytes
    errors: bytes
    seconds: float
    hung: bool
    megabytes: float


def run(main: Callable[[list[str]], None], arguments: Sequence[str], folder: Path, most_s: float = MOST_S) -> Outcome:
    """Run a command's ``main`` in a fork of this process, which has its imports already; it may compute ``most_s``."""
    stdout, stderr = folder / "stdout", folder / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    before, started = resident_mb(), time.monotonic()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            for number, path in ((1, stdout), (2, stderr)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
            # Where memory is filled without end, this ends it before it ends the machine.
            resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
            try:
                main(list(arguments))
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    hung = False
    while True:
        ended, state, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if hung := time.monotonic() - started > PATIENCE * most_s:
            os.kill(child, signal.SIGKILL)
            _, state, usage = os.wait4(child, 0)
            break
        time.sleep(0.005)
    seconds = usage.ru_utime + usage.ru_stime
    grown = max(0.0, usage.ru_maxrss / 1024 - before)
    return Outcome(os.waitstatus_to_exitcode(state), stdout.read_bytes(), stderr.read_bytes(), seconds, hung, grown)


def resident_mb() -> float:
    """Megabytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def controls(text: bytes) -> set[str]:
    """Characters in a command's output that a terminal would obey, besides line ends and what redraws a line."""
    shown = text.decode("utf-8", "replace").replace("\r\033[K", "")
    return {c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t"}


def faults(outcome: Outcome, most_s: float = MOST_S) -> list[str]:
    """What is wrong with how a command ended: it must succeed, or refuse its input in one line with status 2."""
    wrong = []
    errors = outcome.errors.decode("utf-8", "replace")
    if outcome.hung:
        wrong.append("hangs")
    elif outcome.seconds > most_s:
        wrong.append(f"computes for more than {most_s:g} s")
    elif b"Traceback" in outcome.errors:
        wrong.append(f"traceback, {errors.strip().splitlines()[-1][:200]}")
    elif outcome.status not in (0, 2):
        wrong.append(f"exit status {outcome.status}: {errors[-200:]}")
    elif outcome.status == 2 and len([line for line in errors.splitlines() if line.startswith("error: ")]) != 1:
        wrong.append(f"no one line of error: {errors[-200:]}")
    if outcome.megabytes > MOST_MB:
        wrong.append(f"took {outcome.megabytes:.0f} MB")
    if found := controls(outcome.output) | controls(outcome.errors):
        wrong.append(f"control characters reach the terminal: {sorted(found)!r}")
    return wrong
