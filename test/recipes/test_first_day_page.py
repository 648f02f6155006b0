"""docs/first-day.md: exactly its commands, in order, on a small corpus of Kaldi directories and with tiny networks."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from test_kaldi_page import write_data
from tiny_recipe import ROOT, make_recipe

# Networks of test/recipes/conf in place of conf/from_scratch, which recognise nothing, and data that needs leave
TINY = "--student '' --teacher_init_config '' --allow_bad_teacher true --allow_pipes true --token_type char"
TINY += " --nj 2 --latencies '160 480'"


def page_commands() -> list[str]:
    """The page's blocks of commands."""
    blocks = re.findall(r"(?ms)^```bash\n(.*?)^```$", (ROOT / "docs/first-day.md").read_text(encoding="utf-8"))
    assert len(blocks) == 7 and sum(block.count("./run.sh ") for block in blocks) == 6
    return blocks


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kaldi directories train, of two speakers, and test."""
    root = tmp_path_factory.mktemp("corpus")
    write_data(root, {"train": 24, "test": 4})
    lines = (root / "data/train/utt2spk").read_text().splitlines()
    for table in ("utt2spk", "text", "segments"):
        text = (root / "data/train" / table).read_text().splitlines()
        second = [line.replace("ann-", "bob-").replace(" ann", " bob") for line in text[20:]]
        (root / "data/train" / table).write_text("\n".join(text[:20] + second) + "\n")
    assert len(lines) == 24
    (root / "data/train/spk2utt").unlink()
    return root / "data"


def test_the_pages_commands(corpus: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "egs2/kaldi_dir/asr_distill1"
    make_recipe(recipe, "kaldi_dir")
    shutil.copy(corpus.parent / "test.wav", recipe / "some.wav")
    for block in page_commands():
        commands = block.replace("cd egs2/kaldi_dir/asr_distill1\n", "").replace("/corpus/", f"{corpus}/")
        commands = commands.replace("--from_scratch small", TINY).replace("$(cat options.txt)", '"${options[@]}"')
        commands = f'if [ -e options.txt ]; then eval "options=($(cat options.txt))"; fi\n{commands}'
        commands = commands.replace("> options.txt\n", '> options.txt\neval "options=($(cat options.txt))"\n')
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{commands}"],
            cwd=recipe,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, (commands, done.stdout[-3000:])
    assert (recipe / "exp/RESULTS.md").is_file() and (recipe / "exp/report/index.html").is_file()
    members = zipfile.ZipFile(recipe / "exp/student_stream.zip").namelist()
    assert any(name.endswith("sherpa_480ms.onnx") for name in members)
