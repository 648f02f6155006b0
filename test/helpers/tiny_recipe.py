"""Recipes with networks so small that all stages take a minute or two, and sizes of FSDD's corpus to match.

Tests of recipes use the fixture ``digits_made``, which synthesises recordings where FSDD's are not at hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from spoken_digits import digits_dir

ROOT = Path(__file__).parents[2]
FSDD = ROOT / "egs2/fsdd/asr_distill1"
FSDD_DIR = digits_dir()
SIZES = f"--num_train 80 --num_valid 8 --num_test 10 --seed 3 --fsdd_dir {FSDD_DIR}"


def make_recipe(path: Path, corpus: str = "fsdd") -> None:
    """A recipe directory made as a user makes one, with a corpus's run.sh and data preparation and tiny networks."""
    subprocess.run([ROOT / "egs2/TEMPLATE/asr_distill1/setup.sh", path], check=True)
    own = ROOT / "egs2" / corpus / "asr_distill1"
    shutil.copytree(own / "local", path / "local", dirs_exist_ok=True)
    shutil.copy(own / "run.sh", path / "run.sh")
    for config in (ROOT / "test/recipes/conf").glob("*.yaml"):
        shutil.copy(config, path / "conf")


def run_recipe(recipe: Path, *options: str, status: int = 0, **variables: str) -> str:
    """Run it; its output. A wrong exit status fails the test with the end of what it printed."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        ["./run.sh", "--allow_bad_teacher", "true", *options],  # networks as small as these recognise nothing
        cwd=recipe,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout
