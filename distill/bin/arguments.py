"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Parser that reports a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {self.prog}: {message}; --help lists the options\n")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the description as it is written, and whose errors are one line."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def true_or_false(value: str) -> bool:
    """Parse ``true`` or ``false``, as a recipe's options are written."""
    if value not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{value!r} is neither true nor false")
    return value == "true"


def chunk_length(text: str) -> int | None:
    """Type of an option: milliseconds of a chunk, or None for ``full``."""
    return None if text == "full" else int(text)


def add_computation(parser: argparse.ArgumentParser) -> None:
    """Add --device and --batch_seconds of commands that compute in batches."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one (default: auto)"
    )
    parser.add_argument(
        "--batch_seconds", type=float, help="padded audio in a batch (default: 60 on the CPU, 300 on a GPU)"
    )
