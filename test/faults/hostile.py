"""Attacks on every part that takes input from strangers; it must refuse them in one line each, or withstand them.

    PYTHONPATH=. python test/faults/hostile.py                     all sections, 10 minutes at most
    PYTHONPATH=. python test/faults/hostile.py models --only yaml  the cases of one section whose names have a word

A section is a module hostile_NAME.py beside this file with a function ``attack(folder, wanted, seconds)``, which yields
the name of each case and what is wrong with its outcome, nothing if all is well. It ends by itself after so many
seconds. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
SECTIONS = sorted(path.stem.removeprefix("hostile_") for path in HERE.glob("hostile_*.py"))
SECONDS = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"(default: {' '.join(SECTIONS)})")
    parser.add_argument("--only", default="", help="a word that the names of the cases have")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all sections (default: {SECONDS})")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"{min(unknown)}: no such section; there are {' '.join(SECTIONS)}")
    sections = args.sections or SECTIONS
    sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]
    end, broken = time.monotonic() + args.seconds, 0
    for number, section in enumerate(sections):
        started, done, failed = time.monotonic(), 0, 0
        share = (end - started) / (len(sections) - number)
        with tempfile.TemporaryDirectory(prefix="hostile_") as folder:
            attack = importlib.import_module(f"hostile_{section}").attack
            for name, wrong in attack(Path(folder), args.only, share):
                done, failed = done + 1, failed + bool(wrong)
                if wrong:
                    print(f"{section}: {name}: {'; '.join(wrong)}", flush=True)
        broken += failed
        print(f"{section}: {done} cases, {failed} wrong, {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
