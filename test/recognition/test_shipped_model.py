"""The model that comes with the toolkit recognises the recording beside it, by the command of its page."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_model_in_models_recognises_its_example():
    command = ["-m", "distill", "transcribe", "--model", "models/digits.zip", "models/digits.wav"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = (ROOT / "models/digits.txt").read_text().strip()
    assert done.stdout.strip().endswith(expected) and len(expected.split()) > 3
    assert (ROOT / "models/digits.zip").stat().st_size <= 2_000_000
    assert " ".join(["distill", *command[2:]]) in (ROOT / "models/README.md").read_text()
