"""Remember what a stage was made from, so that it is skipped when nothing changed and run again when something did.

A stage's stamp is a JSON file of its options, the SHA-256 of its input files and the version of the code. ``begin``
compares them with the stamp of the last finished run, ``finish`` makes the stamp of the run that has just ended. Input
files that are stamps of earlier stages chain the stages: a changed data set makes the teacher, the targets and the
students stale. Newer code makes nothing stale by itself, but is told of.

    python -m distill.bin.stage begin exp/.stages/10 --options "$opts" conf/train_student_full.yaml exp/.stages/7
      exit 0: finished before and unchanged (says so) - skip it
      exit 3: to do, and what an earlier run left (if anything) may be continued
      exit 4: to do, and what an earlier run left was made from other inputs: put it aside
    python -m distill.bin.stage finish exp/.stages/10
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

import distill
from distill.errors import UserError, cli
from distill.files import atomic_write, sha256

DONE, TO_DO, STALE = 0, 3, 4
CODE = "code"  # what a stamp calls the version of the code


def fingerprint(options: str, inputs: list[str]) -> dict[str, str]:
    """What a stage is made from: its options, the checksum of each input file, and by which code."""
    made_from = {"options": options, CODE: code_version()}
    for name in inputs:
        if not Path(name).is_file():
            raise UserError(f"{name}: not found, but this stage reads it; run the stage that makes it first")
        made_from[name] = sha256(name)
    return made_from


def read_stamp(path: Path) -> dict[str, str] | None:
    """The fingerprint in a stamp file; None if there is none or it cannot be read."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return stamp if isinstance(stamp, dict) else None


def code_version() -> str:
    """Of the package that runs: its version, and a checksum of its source files."""
    package = Path(distill.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{distill.__version__}+{digest.hexdigest()[:8]}"


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Names of the inputs in which two fingerprints differ. Code that has changed makes nothing stale."""
    return sorted(name for name in (old.keys() | new.keys()) - {CODE} if old.get(name) != new.get(name))


def begin(stamp: Path, options: str, inputs: list[str]) -> int:
    """Compare with the last run, note the beginning of this one, and return what is to be done (see module)."""
    made_from = fingerprint(options, inputs)
    finished, begun_file = read_stamp(stamp), stamp.with_name(stamp.name + ".begun")
    if finished is not None and not changed(finished, made_from):
        if finished.get(CODE) != made_from[CODE]:
            print(f"stage {stamp.name}: made by another version, {finished.get(CODE, 'an older one')}, of this code")
        return DONE
    begun = read_stamp(begun_file) or finished
    stamp.unlink(missing_ok=True)
    with atomic_write(begun_file) as stream:
        json.dump(made_from, stream, indent=1, sort_keys=True)
    if begun is not None and changed(begun, made_from):
        print(f"stage {stamp.name}: changed since it was last run: {', '.join(changed(begun, made_from))}")
        return STALE
    return TO_DO


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("begin", "finish"))
    parser.add_argument("stamp", type=Path, help="the stage's stamp file, such as exp/.stages/10")
    parser.add_argument("inputs", nargs="*", help="files that the stage reads")
    parser.add_argument("--options", default="", help="options of the stage, as one string")
    args = parser.parse_intermixed_args(argv)
    if args.action == "begin":
        sys.exit(begin(args.stamp, args.options, args.inputs))
    begun = args.stamp.with_name(args.stamp.name + ".begun")
    if not begun.is_file():
        raise UserError(f"{begun}: not found; a stage is finished only after it was begun")
    os.replace(begun, args.stamp)


if __name__ == "__main__":
    main()
