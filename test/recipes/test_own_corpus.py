"""What docs/own-corpus.md says to do with a corpus of one's own, up to the denominator graph."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.lfmmi import DenominatorGraph

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Kaldi directories with 44.1 kHz audio, made by hand: nothing in them but what it asks for."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("dev", 2), ("test", 2)):
        directory = tmp_path / "corpus" / part
        directory.mkdir(parents=True)
        tables: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
        for number in range(count):
            utterance = f"ann-{part}{number}"
            soundfile.write(directory / f"{number}.wav", 0.1 * rng.standard_normal(44100), 44100)
            tables["wav.scp"].append(f"{utterance} {directory / f'{number}.wav'}")
            tables["text"].append(f"{utterance} a cab bad")
            tables["utt2spk"].append(f"{utterance} ann")
        for name, lines in tables.items():
            (directory / name).write_text("\n".join(lines) + "\n")
    return tmp_path / "corpus"


def test_from_setup_to_the_denominator_graph(corpus: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "egs2" / "mycorpus" / "asr_distill1"
    subprocess.run([ROOT / "egs2/TEMPLATE/asr_distill1/setup.sh", recipe], check=True)
    data = f"--train {corpus}/train --valid {corpus}/dev --test test={corpus}/test"
    command = ["./run.sh", "--stop_stage", "6", "--token_type", "char", "--local_data_opts", data]
    refused = subprocess.run(command, cwd=recipe, capture_output=True, text=True)
    assert refused.returncode == 2
    (error,) = [line for line in refused.stderr.splitlines() if line.startswith("error:")]
    assert "44100" in error and "--resample true" in error
    done = subprocess.run([*command, "--resample", "true"], cwd=recipe, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    formatted = (recipe / "dump/raw/train/wav.scp").read_text().split()[1]
    assert soundfile.info(recipe / formatted).samplerate == 16000
    tokens = (recipe / "data/token_list/char/tokens.txt").read_text().splitlines()
    assert DenominatorGraph.load(recipe / "exp/graph/den.npz").vocab_size == len(tokens)
