"""What goes to a GPU machine without network: wheels that cover the imports, recordings, and the experiment there."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import gpu_data
import gpu_experiment
import numpy as np
import pytest
import soundfile
import torch

from distill.checkpoints.load import load_network
from distill.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "utils/gpu_offline.sh"
# What images with PyTorch hold, each with all that it requires
PRESENT = """torch torchaudio triton transformers numpy scipy scikit-learn numba joblib lazy-loader msgpack einops
    psutil pyyaml tqdm packaging pytest hypothesis tensorboard matplotlib onnxruntime
    sentencepiece setuptools""".split()
# Some of what these require is not in every such image
NOT_EVERYWHERE = {"annotated-types", "pydantic", "pydantic-core", "typing-inspection"}
IMPORTED = """distill.training.distill_task distill.streaming distill.recognition.decode distill.targets.extract
    distill.scoring.score distill.bench.gpu gpu_experiment""".split()
# Imports modules where all others than these cannot be found
IMPORTER = """
import importlib, sys
allowed = set(sys.argv[1].split()) | set(sys.stdlib_module_names) | set(sys.builtin_module_names)
def only_allowed(finder):
    find_spec = finder.find_spec
    def find(name, path=None, target=None):
        top = name.split(".")[0]
        return find_spec(name, path, target) if top in allowed or top.startswith("_sysconfigdata") else None
    return find
for finder in sys.meta_path:
    finder.find_spec = only_allowed(finder)
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_requirements(names: list[str]) -> set[str]:
    """Distributions of these names, and those they require without extras."""
    found: set[str] = set()
    waiting = [normal(name) for name in names]
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # one for another system
            continue
        found.add(name)
        waiting += [normal(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in needed if "extra ==" not in each]
    return found


def packed() -> list[str]:
    """The packages whose wheels are copied."""
    return re.search(r"(?s)^packages=\((.*?)\)", SCRIPT.read_text(), re.M)[1].split()


def try_imports(packages: set[str]) -> subprocess.CompletedProcess:
    """Import what runs there, where only the modules of these packages are found."""
    modules = [m for m, owners in packages_distributions().items() if any(normal(o) in packages for o in owners)]
    extra = ["distill", "gpu_data", "gpu_experiment", "distutils"]
    extra += ["jaraco", "more_itertools", "backports"]  # within setuptools
    command = [sys.executable, "-c", IMPORTER, " ".join([*modules, *extra]), *IMPORTED]
    path = f"{ROOT}:{ROOT}/utils"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "HOME": "/tmp", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_wheels_cover_what_is_imported_there():
    done = try_imports(with_requirements(PRESENT) - NOT_EVERYWHERE | {normal(name) for name in packed()})
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("missing", ["torch-complex", "pydantic", "pydantic-core", "typing-inspection"])
def test_a_wheel_that_is_missing_is_noticed(missing):
    left = {normal(name) for name in packed() if name != missing}
    done = try_imports(with_requirements(PRESENT) - NOT_EVERYWHERE | left)
    assert done.returncode != 0 and missing.replace("-", "_") in done.stderr


def test_every_wheel_is_pinned():
    pins = {
        normal(line.split("==")[0]) for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line
    }
    assert {normal(name) for name in packed()} <= pins


def write_tone(path: Path, number: int) -> int:
    """A tone of its own length; returns its samples."""
    samples = 9600 + 320 * number
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.1 * np.sin(np.arange(samples) * (0.1 + 0.01 * number))
    soundfile.write(path, tone, 16000, format="FLAC" if path.suffix == ".flac" else "WAV")
    return samples


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """Both corpora with few and short utterances."""
    root = tmp_path_factory.mktemp("corpora")
    number = 0
    for part, speaker in (("test-clean", "121"), ("test-clean", "1580"), ("train-clean-100", "4088")):
        chapter = root / "librispeech/LibriSpeech" / part / speaker / "1"
        lines = []
        for n in range(3):
            write_tone(chapter / f"{speaker}-1-000{n}.flac", number := number + 1)
            lines.append(f"{speaker}-1-000{n} IT'S A TONE\n")
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
    for part, speakers in (("train", range(100, 122)), ("test", range(200, 202))):
        tables: dict[str, list[str]] = {"text": [], "wav.scp": [], "utt2spk": []}
        for speaker in speakers:
            name = f"WAVE/SPEAKER{speaker}/{speaker}001.WAV"
            write_tone(root / "speechocean762" / name, number := number + 1)
            for table, value in zip(tables.values(), ("HIGH AND LOW", name, str(speaker)), strict=True):
                table.append(f"{speaker}001\t{value}\n")
        (root / "speechocean762" / part).mkdir(parents=True)
        for table_name, lines in tables.items():
            (root / "speechocean762" / part / table_name).write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def archives(corpora, tmp_path_factory) -> list[Path]:
    output = tmp_path_factory.mktemp("packed")
    gpu_data.main([str(corpora), str(output), "--limits", "0.06", "0.06", "1"])
    return sorted(output.glob("data-*/corpus.zip"))


def test_recordings_in_archives(corpora, archives):
    assert len(archives) >= 2 and archives[0].stat().st_size <= 60_000
    sets = gpu_data.load(archives, 2)
    assert {name: len(r.keys) for name, r in sets.items()} == {
        **{"librispeech_train": 3, "librispeech_valid": 3, "librispeech_test": 3},
        **{"speechocean_train": 2, "speechocean_valid": 20, "speechocean_test": 2},
    }
    assert sets["librispeech_test"].keys == [f"121-1-000{n}" for n in range(3)]
    assert set(sets["librispeech_test"].texts) == {"IT'S A TONE"}
    assert [len(x) for x in sets["librispeech_test"].audio] == [9600 + 320 * n for n in (1, 2, 3)]
    original, _ = soundfile.read(corpora / "librispeech/LibriSpeech/test-clean/121/1/121-1-0000.flac", dtype="int16")
    difference = sets["librispeech_test"].audio[0].astype(float) - original
    assert np.sqrt(np.mean(difference[1000:-1000] ** 2)) < 0.2 * original.std()
    assert all(len(r.keys) == 2 for name, r in gpu_data.load(archives, 2, limit=2).items())


def test_the_first_archives_hold_the_test_sets(archives):
    held_out = {name for name in gpu_data.load(archives[:1], 2) if not name.endswith("_train")}
    assert "librispeech_test" in held_out


def test_limits_that_are_too_low(corpora, tmp_path):
    utterances = list(gpu_data.librispeech(corpora / "librispeech/LibriSpeech"))
    with pytest.raises(UserError, match="too low, 9 of 9 utterances are left"):
        gpu_data.pack(utterances, tmp_path, [500])


def test_a_bank_gives_utterances_at_their_speeds():
    rng = np.random.default_rng(0)
    audio = [(3000 * rng.standard_normal(n)).astype(np.int16) for n in (9000, 18000)]
    bank = gpu_experiment.Bank(audio, [[1, 2], [3]], torch.device("cpu"), [0.9, 1.0, 1.1])
    assert bank.lengths.tolist() == [10000, 20000, 9000, 18000, 8182, 16364]
    batch = bank.batch([1, 2])
    assert batch["speech"].shape == (2, 20000) and batch["speech_lengths"].tolist() == [20000, 9000]
    assert batch["text"].tolist() == [[3, -1], [1, 2]] and batch["text_lengths"].tolist() == [1, 2]
    np.testing.assert_array_equal(batch["speech"][1, :9000].numpy(), audio[0].astype(np.float32) / 32768)
    assert not batch["speech"][1, 9000:].any()
    epochs = bank.epochs(1e9, seed=0, first_sorted=True)
    drawn = [tuple(sorted(row % 2 for row in next(epochs))) for _ in range(4)]
    assert drawn == [(0, 1)] * 4


def test_the_learning_rate_rises_and_falls():
    values = [gpu_experiment.rise_and_fall(p / 100) for p in range(101)]
    assert values[0] <= 0.01 and max(values) == 1.0 and values[-1] <= 0.01
    assert values.index(1.0) < 10 and values[39] == 1.0 and values == sorted(values[:9]) + values[9:]


def test_the_experiment_ends_in_a_report_and_goes_on_where_it_was(archives, tmp_path, monkeypatch):
    work, output = tmp_path / "work", tmp_path / "output"
    options = ["--data", *map(str, archives), "--work", str(work), "--output", str(output), "--threads", "2"]
    options += ["--device", "cpu", "--dry_run"]
    stopped = gpu_experiment.TRAININGS[2].name
    train = gpu_experiment.Experiment.train

    def train_or_stop(self, training, seconds):
        if training.name == stopped:
            raise KeyboardInterrupt
        train(self, training, seconds)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(gpu_experiment.Experiment, "train", train_or_stop)
        gpu_experiment.main(options)
    before = (work / "student_f/model.pth").stat().st_mtime_ns
    gpu_experiment.main(options)
    assert (work / "student_f/model.pth").stat().st_mtime_ns == before
    rows = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    latencies: dict[str, list] = {}
    for row in rows:
        latencies.setdefault(f"{row['system']} {row['test_set']}", []).append(row["latency_ms"])
    streams = [160, 320, 480, 640, 960, None]
    assert latencies == {
        f"{system} {test_set}": streams if system.endswith("stream") else [None]
        for system in (training.name for training in gpu_experiment.TRAININGS)
        for test_set in ("librispeech_test", "speechocean_test")
    }
    streamed = [row["streamed_identical"] for row in rows if "streamed_identical" in row]
    assert len(streamed) == 4 and set(streamed) == {"3/3", "2/2"}
    report = (output / "experiment.md").read_text()
    assert report.count("| student_s5_stream | 480 |") == 2 and "| teacher | full |" in report
    full, half = (load_network(work / f"student_f_stream{suffix}").network for suffix in ("", ".float16"))
    for a, b in zip(full.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    sizes = [(work / f"student_f_stream{suffix}/model.pth").stat().st_size for suffix in ("", ".float16")]
    assert sizes[1] < 0.7 * sizes[0]


def test_a_training_goes_on_from_its_checkpoint(archives, tmp_path, monkeypatch, capsys):
    """Stopped at its second validation, its steps go on after those of its last checkpoint."""
    options = ["--data", *map(str, archives), "--work", str(tmp_path / "w"), "--output", str(tmp_path / "o")]
    options += ["--device", "cpu", "--dry_run", "--threads", "2"]
    validate, calls = gpu_experiment.Experiment.validate, []

    def validate_or_stop(self, model):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(self, model)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(gpu_experiment.Experiment, "validate", validate_or_stop)
        gpu_experiment.main(options)
    saved = torch.load(tmp_path / "w/teacher/checkpoint.pth", weights_only=True)
    capsys.readouterr()
    monkeypatch.setattr(gpu_experiment, "TRAININGS", gpu_experiment.TRAININGS[:1])
    gpu_experiment.main(options)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.endswith("}")]
    (finished,) = [row for row in said if "finished" in row]
    first = next(row for row in said if row.get("training") == "teacher")
    assert saved["step"] > 0 and finished["steps"] > saved["step"] and first["step"] >= saved["step"]
    assert not (tmp_path / "w/teacher/checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "give pack or run"), (("run", "test"), "test is no step and no option"), (("pack",), "give the directory")],
)
def test_bad_arguments_of_the_script(arguments, message):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stderr and done.stderr.count("\n") == 1


def test_its_help_names_what_to_copy():
    text = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    assert "tools/gpu/wheels, tools/gpu/data-1, tools/gpu/data-2, tools/gpu/data-3" in text
