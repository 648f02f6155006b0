"""What sclite counts in hyp.ctm against ref.stm."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from distill.scoring.sclite import find_sclite


def ctm_sums(score_dir: Path) -> dict[str, int]:
    """Utterances, words and errors by kind, by sclite's own sums over a score_wer directory."""
    files = ["-r", score_dir / "ref.stm", "stm", "-h", score_dir / "hyp.ctm", "ctm"]
    command = [*(find_sclite() or []), *files, "-e", "utf-8", "-o", "rsum", "stdout"]
    output = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
    total = re.search(r"\| *Sum *\|(.*)", output)
    assert total is not None, output
    utterances, words, _, sub, deleted, inserted, *_ = map(int, re.findall(r"-?\d+", total[1]))
    return {"utterances": utterances, "words": words, "sub": sub, "del": deleted, "ins": inserted}
