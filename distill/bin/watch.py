"""Run a training with its output in a log file, and show its progress in one line on the terminal.

    python -m distill.bin.watch --log exp/student_full/train.log -- python -m distill.bin.train ...

The exit status is the training's. If it fails, the end of the log is printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import UserError, cli
from distill.progress import watch


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--log", type=Path, required=True, help="log file, appended to")
    parser.add_argument("--max_epoch", type=int, help="epochs in all (default: what the log says)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the training's command")
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UserError("watch: no command; give it after --")
    if status := watch(command, args.log, args.max_epoch):
        sys.exit(status)


if __name__ == "__main__":
    main()
