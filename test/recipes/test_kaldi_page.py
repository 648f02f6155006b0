"""docs/kaldi.md: exactly its commands, in order, in a recipe of Kaldi's kind that has nothing of this project.

The cluster is run.pl under the name of queue.pl. decode-faster is a program of the same usage around kaldi-decoder, the
Python package of Kaldi's FasterDecoder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from distill.decode.estimate_lm import write_arpa

ROOT = Path(__file__).parents[2]
RATE = 16000
LEXICON = {"zero": "Z IH R OW", "one": "W AH N", "two": "T UW", "three": "TH R IY"}
DECODE_FASTER = f"""\
#!{sys.executable}
import sys
import kaldi_decoder, kaldifst, kaldiio
beam, scale, graph, posteriors, words = sys.argv[1:]
assert (beam, scale, posteriors) == ("--beam=16", "--acoustic-scale=1.0", "ark:-") and words.startswith("ark,t:")
fst = kaldifst.StdVectorFst.read(graph)  # the decoder does not keep it alive
decoder = kaldi_decoder.FasterDecoder(fst, kaldi_decoder.FasterDecoderOptions(beam=16))
with open(words[6:], "w") as output:
    for utterance, matrix in kaldiio.load_ark(sys.stdin.buffer):
        decoder.decode(kaldi_decoder.DecodableCtc(matrix))
        path = decoder.get_best_path(use_final_probs=True)[1]
        print(utterance, *kaldifst.get_linear_symbol_sequence(path)[2], file=output)
"""


def write_data(directory: Path, sets: dict[str, int]) -> None:
    """Data directories of segments from one recording a set, which a pipe reads; a word or two for each utterance."""
    generator = np.random.default_rng(0)
    words = list(LEXICON)
    for name, count in sets.items():
        data = directory / "data" / name
        data.mkdir(parents=True)
        audio = 0.1 * generator.standard_normal(count * RATE) * (1 + np.sin(np.arange(count * RATE) / 900))
        soundfile.write(directory / f"{name}.wav", audio, RATE)
        tables: dict[str, list[str]] = {"segments": [], "text": [], "utt2spk": [], "spk2utt": []}
        keys = [f"ann-{name}-{number:02d}" for number in range(count)]
        for number, key in enumerate(keys):
            tables["segments"].append(f"{key} {name} {number} {number + 0.9}")
            tables["text"].append(f"{key} {words[number % 4]} {words[number % 3]}")
            tables["utt2spk"].append(f"{key} ann")
        tables["spk2utt"].append(f"ann {' '.join(keys)}")
        tables["wav.scp"] = [f"{name} cat {directory / f'{name}.wav'} |"]
        for table, lines in tables.items():
            (data / table).write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data, lexicon, n-gram and configurations, and programs/ to be put on PATH."""
    directory = tmp_path_factory.mktemp("kaldi") / "s5"
    write_data(directory, {"train": 12, "dev": 4, "test": 3})
    (directory / "data/local/dict").mkdir(parents=True)
    (directory / "data/local/dict/lexicon.txt").write_text("".join(f"{w} {p}\n" for w, p in LEXICON.items()))
    write_arpa([["zero", "one"], ["two", "three", "zero"], ["one"], ["two"]], 2, directory / "data/local/lm.arpa")
    shutil.copytree(ROOT / "test/recipes/conf", directory / "conf")
    programs = directory / "programs"
    programs.mkdir()
    espnet = subprocess.run([ROOT / "utils/get_espnet.sh"], capture_output=True, text=True, check=True).stdout.strip()
    shutil.copy(Path(espnet) / "egs2/TEMPLATE/asr1/utils/run.pl", programs / "queue.pl")
    (programs / "decode-faster").write_text(DECODE_FASTER)
    for program in programs.iterdir():
        program.chmod(0o755)
    return directory


def page_commands() -> str:
    """The page's blocks, with the clone's path in place of the page's."""
    blocks = re.findall(r"(?ms)^```bash\n(.*?)^```$", (ROOT / "docs/kaldi.md").read_text(encoding="utf-8"))
    commands = "".join(blocks)
    assert commands.count("distill=/path/to/clone\n") == 1 and commands.count("$distill/local/") >= 12
    return commands.replace("distill=/path/to/clone", f"distill={ROOT}")


def run(recipe: Path, commands: str) -> str:
    environment = {**os.environ, "PATH": f"{recipe / 'programs'}:{os.environ['PATH']}"}
    for name in ("DISTILL_READY", "DISTILL_ROOT", "ESPNET_ROOT", "PYTHONPATH"):
        environment.pop(name, None)
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{commands}"],
        cwd=recipe,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def table(path: Path) -> dict[str, str]:
    return dict((*line.split(maxsplit=1), "")[:2] for line in path.read_text().splitlines())


def test_the_pages_commands(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe, page_commands())
    lengths = table(recipe / "data_16k/test/utt2num_samples")
    assert set(lengths.values()) == {str(int(0.9 * RATE))}  # the segments' length
    assert table(recipe / "data_16k/train/text.phn")["ann-train-00"].strip() == "Z IH R OW Z IH R OW"
    assert "2/2epoch started" in (recipe / "exp/student_stream/train.log").read_text()
    assert json.loads((recipe / "exp/targets/train/manifest.json").read_text())["utterances"] == 12
    decoded = recipe / "exp/student_stream/decode_480ms_wfst/test"
    scores = json.loads((decoded / "score_wer/score.json").read_text())
    assert scores["words"] == 6
    # Kaldi's decoder finds in the posteriors what decode.sh recognised
    words = [line.split()[0] for line in (recipe / "exp/tlg/words.txt").read_text().splitlines()]
    kaldi = {key: " ".join(words[int(i)] for i in ids.split()) for key, ids in table(recipe / "exp/test.tra").items()}
    assert kaldi == {key: text.strip() for key, text in table(decoded / "text").items()}
    priors = np.array((recipe / "exp/student_stream/priors.vec").read_text().strip(" []\n").split(), float)
    tokens = (recipe / "data/phones/tokens.txt").read_text().splitlines()
    assert len(priors) == len(tokens) and priors.sum() == pytest.approx(1)
    monkeypatch.chdir(recipe)  # for the relative names in the scp files
    shapes = {}
    for job in (1, 2):
        shapes |= {key: m.shape for key, m in kaldiio.load_scp(f"exp/loglik.{job}.scp").items()}
    assert shapes.keys() == lengths.keys() and {columns for _, columns in shapes.values()} == {len(tokens)}


def decode_command(recipe: Path) -> str:
    """The page's command that decodes, with the definitions it uses."""
    (command,) = re.findall(r"(?m)^\$distill/local/decode.sh.*$", page_commands())
    return f'distill={ROOT}\nqueue="queue.pl --mem 4G"\n{command}\n'


def test_decoding_again_does_only_what_is_missing_or_stale(recipe: Path) -> None:
    first, second = (recipe / f"exp/student_stream/decode_480ms_wfst/test/hyp.{job}.jsonl" for job in (1, 2))
    times = first.stat().st_mtime_ns
    second.unlink()
    run(recipe, decode_command(recipe))
    assert second.is_file() and first.stat().st_mtime_ns == times
    lm = recipe / "data/local/lm.arpa"
    lm.write_text(lm.read_text() + "\n")
    shown = run(recipe, decode_command(recipe))
    assert "decode_480ms_wfst/test: the model, the data or the options changed" in shown
    assert first.stat().st_mtime_ns != times


def test_formatting_again_is_skipped_until_the_data_change(recipe: Path) -> None:
    command = f"{ROOT}/local/format_data.sh --allow-pipes true --nj 1 data/dev data_16k/dev"
    assert "done before and unchanged, skipped" in run(recipe, command)
    text = recipe / "data/dev/text"
    text.write_text(text.read_text().replace("three", "one"))
    assert "skipped" not in run(recipe, command)
    assert (recipe / "data_16k/dev/text").read_text() == text.read_text()


SCRIPTS = [path for path in sorted((ROOT / "local").glob("*.sh")) if os.access(path, os.X_OK)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_begins_with_the_usage_and_names_every_option(script: Path) -> None:
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert shown.returncode == 0, shown.stderr
    assert re.match(rf"Usage: local/{re.escape(script.name)} (\[options\] )?<", shown.stdout)
    before = script.read_text().split("options.sh")[0].split('"\n\n')[1]  # from the help to the reading of options
    defaults = re.findall(r"(?m)^(\w+)=", before)
    options = {name.replace("_", "-") for name in defaults if name != "here"}
    listed = set(re.findall(r"--([a-z0-9-]+)", shown.stdout.split("\n\n", 1)[1]))
    assert options <= listed, options - listed


def test_wrong_arguments_are_one_line(recipe: Path) -> None:
    for words in (["decode.sh", "data/test"], ["train.sh", "a", "b", "c", "d"], ["score.sh"], ["score.sh", "x", "y"]):
        script, *arguments = words
        done = subprocess.run([ROOT / "local" / script, *arguments], cwd=recipe, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
