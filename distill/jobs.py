"""Run parallel jobs of a stage, and show on the terminal how far they are and how long they will take."""

from __future__ import annotations

import errno
import glob
import os
import re
import subprocess
import sys
import time

from tqdm import tqdm

from distill.errors import UserError, full_disk

FINISHED = "with status 0"  # what run.pl, slurm.pl and the others end a log with
STATE = re.compile(r"(\d+)/(\d+) \[")  # as tqdm writes it: done/total [elapsed<left, rate]
TAIL = 4096
POLL_SECONDS = 1.0


def end(log: str) -> str:
    """The last lines of a log."""
    with open(log, "rb") as stream:
        stream.seek(max(0, os.path.getsize(log) - TAIL))
        return stream.read().decode("utf-8", errors="replace")


def state(log: str) -> tuple[int, int]:
    """(done, total) of the last progress bar in a log; (0, 0) if there is none yet."""
    bars = STATE.findall(end(log))
    return (int(bars[-1][0]), int(bars[-1][1])) if bars else (0, 0)


def watch(command: list[str], logs: str) -> None:
    """Run a command that starts the jobs and waits for them, and show a bar on stderr: the sum of the jobs' own bars.

    Args:
        command: such as ``["run.pl", "JOB=1:4", ...]``.
        logs: pattern of the jobs' log files; logs of an earlier run are removed.

    Raises:
        UserError: a job failed. It has that job's line of error, if there is one; else the end of its log is printed
            before.
        OSError: jobs failed and the disk is full, which a log on it may not have taken.
    """
    for old in glob.glob(logs):
        os.remove(old)
    process = subprocess.Popen(command)
    layout = "{desc}{n}/{total} {percentage:3.0f}% [{elapsed}, {remaining} left]"
    bar = None  # until a job has counted its work
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        states = [state(log) for log in glob.glob(logs)]
        total = sum(total for _, total in states)
        if bar is None and total:
            bar = tqdm(total=total, bar_format=layout, mininterval=POLL_SECONDS if sys.stderr.isatty() else 30)
        if bar is not None:
            bar.total = total
            bar.update(sum(done for done, _ in states) - bar.n)
    if bar is not None:
        bar.update(sum(state(log)[0] for log in glob.glob(logs)) - bar.n)
        bar.close()
    if process.returncode != 0:
        failed = [log for log in sorted(glob.glob(logs)) if FINISHED not in end(log)]
        what = f"{len(failed)} jobs failed: {' '.join(failed) or logs}"
        lines = [line for log in failed[:1] for line in end(log).replace("\r", "\n").splitlines() if line.strip()]
        if reasons := [line for line in lines if line.startswith("error: ")]:
            raise UserError(f"{what}: {reasons[-1].removeprefix('error: ')}")
        if full_disk() is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), failed[0] if failed else logs)
        if failed:
            print("\n".join([f"{failed[0]}:", *lines[-5:]]), file=sys.stderr)
        raise UserError(f"{what}; what others finished is kept")
