"""Attacks on the toolkit, each with limits that it must keep to; ten minutes for all.

    PYTHONPATH=. python test/faults/hostile.py [SECTION ...] [--seconds 600]

A section is a function of a module below: it takes seconds, prints what it measures, and returns the limits that were
exceeded, one line each. The status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # commands run in forks, which threads of this process would not survive
SHARES = {"models": 10}  # of the time; 1 for every other section
MODULES = ("hostile_models", "hostile_audio", "hostile_server")  # each has SECTIONS: functions by name


def sections() -> dict[str, Callable[[float], list[str]]]:
    """All sections by name, in the order in which they run."""
    found: dict[str, Callable[[float], list[str]]] = {}
    for module in MODULES:
        found |= import_module(module).SECTIONS
    return found


def main() -> None:
    every = sections()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="*", help=f"(default: all of {', '.join(every)})")
    parser.add_argument("--seconds", type=float, default=600, help="for all of them (default: 600)")
    args = parser.parse_args()
    if unknown := set(args.section) - every.keys():
        parser.error(f"there is no section {', '.join(sorted(unknown))}")
    chosen = args.section or list(every)
    started, problems = time.monotonic(), []
    for number, name in enumerate(chosen):
        print(name, flush=True)
        left = started + args.seconds - time.monotonic()
        shares = [SHARES.get(other, 1) for other in chosen[number:]]
        problems += every[name](left * shares[0] / sum(shares))
    print(f"{len(chosen)} sections in {time.monotonic() - started:.0f} s, {len(problems)} limits exceeded")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
