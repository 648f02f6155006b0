"""Run parallel jobs of a stage, and show on the terminal how far they are and how long they will take.

    python -m distill.bin.watch_jobs --logs "exp/student_stream/log/decode.*.log" -- run.pl JOB=1:4 ...

The jobs write progress bars to their logs; the last state of each is read from there. If jobs fail, the end of the
first such log is printed, and the exit status is 2.
"""

from __future__ import annotations

import argparse

from distill.bin.arguments import new_parser
from distill.errors import UserError, cli
from distill.jobs import watch


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--logs", required=True, help="pattern of the jobs' logs")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UserError("watch_jobs: no command; give it after --")
    watch(command, args.logs)


if __name__ == "__main__":
    main()
