"""Run parallel jobs of a stage, and show on the terminal how far they are and how long they will take.

    python -m distill.bin.watch_jobs --logs "exp/student_stream/log/decode.*.log" -- run.pl JOB=1:4 ...

The jobs report to their logs with progress bars; the last state of each is read from there. If jobs
fail, the end of the first such log is printed, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import subprocess
import sys
import time

from tqdm import tqdm

from distill.errors import UserError, cli

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
    found = STATE.findall(end(log))
    return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", required=True, help="pattern of the jobs' logs")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UserError("watch_jobs: no command; give it after --")
    for old in glob.glob(args.logs):
        os.remove(old)
    process = subprocess.Popen(command)
    layout = "{desc}{n}/{total} {percentage:3.0f}% [{elapsed}, {remaining} left]"
    with tqdm(total=0, bar_format=layout, mininterval=POLL_SECONDS if sys.stderr.isatty() else 30) as bar:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            states = [state(log) for log in glob.glob(args.logs)]
            bar.total = sum(total for _, total in states)
            bar.update(sum(done for done, _ in states) - bar.n)
    if process.returncode != 0:
        failed = [log for log in sorted(glob.glob(args.logs)) if FINISHED not in end(log)]
        for log in failed[:1]:
            lines = [line for line in end(log).replace("\r", "\n").splitlines() if line.strip()]
            print("\n".join([f"{log}:", *lines[-5:]]), file=sys.stderr)
        raise UserError(f"{len(failed)} jobs failed: {' '.join(failed) or args.logs}; what others finished is kept")


if __name__ == "__main__":
    main()
