"""NIST sclite: where it is installed, and the error counts of its report."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from distill.errors import UserError
from distill.files import atomic_write
from distill.scoring.counts import Counts

DEBIAN_SCLITE = Path("/usr/lib/sctk/bin/sclite")  # of Debian's package sctk
UTTERANCE = re.compile(r"id: \(utt-(\d+)\)\s.*?Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", re.S)


def find_sclite() -> list[str] | None:
    """Return the command that runs sclite on this machine, or None if it is not installed."""
    if shutil.which("sclite"):
        return ["sclite"]
    if DEBIAN_SCLITE.exists():
        return [str(DEBIAN_SCLITE)]
    return ["sctk", "sclite"] if shutil.which("sctk") else None


def run_sclite(command: list[str], ref: Path, hyp: Path, report: Path) -> list[Counts]:
    """Score a trn file against another, write sclite's report, and return the counts of each utterance in order.

    Raises:
        UserError: sclite fails, or its report has no scores.
    """
    options = ["-i", "rm", "-e", "utf-8", "-o", "all", "stdout"]
    with tempfile.TemporaryDirectory() as folder:  # sclite writes beside its input
        copies = [shutil.copy(path, folder) for path in (ref, hyp)]
        run = subprocess.run(
            [*command, "-r", copies[0], "trn", "-h", copies[1], "trn", *options],
            capture_output=True,
            text=True,
            errors="replace",
        )
    if run.returncode != 0 or "Scores:" not in run.stdout:
        last_line = (run.stderr or run.stdout).strip().splitlines()[-1:]
        raise UserError(f"{ref}: sclite failed: {last_line}; run it by hand on this file and {hyp}")
    with atomic_write(report) as stream:
        stream.write(run.stdout)
    by_position: dict[int, Counts] = {}
    for block in UTTERANCE.finditer(run.stdout):
        position, correct, substituted, deleted, inserted = map(int, block.groups())
        by_position[position] = Counts(correct + substituted + deleted, substituted, deleted, inserted)
    return [by_position[position] for position in sorted(by_position)]
