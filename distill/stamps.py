"""Remember what a stage was made from: it is skipped while nothing has changed, and run again when something has.

A stage's stamp is a JSON file with its options, the SHA-256 of each input file, and the version of the code. The stamp
``exp/.stages/10.begun`` describes the run that was begun last, ``exp/.stages/10`` the last one that was finished.
Inputs that are stamps of earlier stages chain the stages: a changed data set makes the teacher, the targets and the
students stale. Code that has changed makes nothing stale by itself, but is mentioned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path

import distill
from distill.errors import UserError
from distill.files import atomic_write, sha256

DONE, TO_DO, STALE = 0, 3, 4
CODE = "code"  # key of a stamp: the version of the code


def fingerprint(options: str, inputs: list[str]) -> dict[str, str]:
    """The content of a stamp: options of the stage, checksum of each input file by its name, version of the code.

    Raises:
        UserError: an input file does not exist.
    """
    content = {"options": options, CODE: code_version()}
    for name in inputs:
        if not Path(name).is_file():
            if match := re.fullmatch(r"(.*)/\.stages/(\d+)\w*", name):
                raise UserError(f"stage {match[2]} has not been run in {match[1]}; begin with --stage {match[2]}")
            raise UserError(f"{name}: not found, but this stage reads it; run the stage that makes it first")
        content[name] = sha256(name)
    return content


def read_stamp(path: Path) -> dict[str, str] | None:
    """The fingerprint in a stamp file; None if there is none or it cannot be read."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return stamp if isinstance(stamp, dict) else None


def code_version() -> str:
    """Version of this package and a checksum of its source files."""
    package = Path(distill.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{distill.__version__}+{digest.hexdigest()[:8]}"


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Keys in which two fingerprints differ, the version of the code excepted."""
    return sorted(name for name in (old.keys() | new.keys()) - {CODE} if old.get(name) != new.get(name))


def title(stamp: Path) -> str:
    """How a stage is called in messages: ``stage 7 (valid)`` for the stamp 7_valid."""
    number, _, part = stamp.name.partition("_")
    return f"stage {number} ({part.replace('_', ' ')})" if part else f"stage {number}"


def _begun(stamp: Path) -> Path:
    return stamp.with_name(stamp.name + ".begun")


def begin(stamp: Path, options: str, inputs: list[str], output: Path | None = None, force: bool = False) -> int:
    """Compare a stage with its last run, and note that this run begins.

    Args:
        stamp: the stage's stamp file.
        options: of the stage, as one string.
        inputs: files that the stage reads.
        output: file or directory that the stage makes; what is there is renamed if it is stale.
        force: run the stage in any case, from its beginning.

    Returns:
        DONE if it was finished with the same options and inputs; TO_DO if it is to be run and may continue what an
        earlier run left; STALE if it is to be run and what an earlier run left was made from something else.

    Raises:
        UserError: an input file does not exist.
    """
    current = fingerprint(options, inputs)
    finished, begun = (None, None) if force else (read_stamp(stamp), read_stamp(_begun(stamp)))
    if finished is not None and not changed(finished, current):
        if finished.get(CODE) != current[CODE]:
            print(f"{title(stamp)}: made by another version, {finished.get(CODE, 'an older one')}, of this code")
        return DONE
    previous = begun or finished
    stamp.unlink(missing_ok=True)
    with atomic_write(_begun(stamp)) as stream:
        json.dump(current, stream, indent=1, sort_keys=True)
    if not force and (previous is None or not changed(previous, current)):
        return TO_DO
    if previous is not None:
        causes = [
            (title(Path(name)) if Path(name).parent.name == ".stages" else name)
            + ("" if name in current else " (no longer used)")
            + ("" if name in previous else " (new)")
            for name in changed(previous, current)
        ]
        print(f"{title(stamp)}: changed since it was last run: {', '.join(causes)}")
    if output is not None and os.path.lexists(output):
        aside = output.with_name(f"{output.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        os.rename(output, aside)
        print(f"{title(stamp)}: the output of the earlier run is now in {aside}")
    return STALE


def finish(stamp: Path) -> None:
    """Note that the run which was begun last has been finished.

    Raises:
        UserError: none was begun.
    """
    if not _begun(stamp).is_file():
        raise UserError(f"{_begun(stamp)}: not found; a stage is finished only after it was begun")
    os.replace(_begun(stamp), stamp)
