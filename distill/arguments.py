"""Types of command-line options that several commands share."""

from __future__ import annotations

import argparse


def true_or_false(value: str) -> bool:
    """Parse ``true`` or ``false``, as a recipe's options are written."""
    if value not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{value!r} is neither true nor false")
    return value == "true"
