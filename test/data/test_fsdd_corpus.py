"""Connected digits from a made-up FSDD of tones: splits share no recording, bytes depend on the seed alone."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.bin.check_data import main as check_data
from distill.bin.prepare_fsdd import main as prepare_fsdd
from distill.data import fsdd, write_dir

SPEAKERS = ("ann", "bob", "cyd")
SIZES = ["--num_train", "12", "--num_valid", "4", "--num_test", "6", "--heldout_speaker", "cyd"]
SETS = ("train", "valid", "test", "test_isolated", "test_unseen")


@pytest.fixture(scope="module")
def fsdd_dir(tmp_path_factory) -> Path:
    """50 recordings of each digit by each speaker, 60 ms each."""
    directory = tmp_path_factory.mktemp("fsdd")
    (directory / "recordings").mkdir()
    time = np.arange(480) / 8000
    for n, speaker in enumerate(SPEAKERS):
        for digit in range(10):
            tone = 0.3 * np.sin(2 * np.pi * (150 + 80 * digit + 20 * n) * time)
            for take in range(50):
                soundfile.write(directory / "recordings" / f"{digit}_{speaker}_{take}.wav", tone, 8000)
    return directory


def make(fsdd_dir: Path, directory: Path, monkeypatch, *options: str) -> dict[str, bytes]:
    """Make the corpus; its files' contents by relative path."""
    directory.mkdir()
    monkeypatch.chdir(directory)
    prepare_fsdd(["--fsdd_dir", str(fsdd_dir), *SIZES, *options])
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_same_seed_same_bytes(fsdd_dir, tmp_path, monkeypatch):
    first = make(fsdd_dir, tmp_path / "1", monkeypatch)
    assert first == make(fsdd_dir, tmp_path / "2", monkeypatch)
    other = make(fsdd_dir, tmp_path / "3", monkeypatch, "--seed", "1")
    changed = {name for name in first if first[name] != other.get(name)}
    assert {f"data/{name}/text" for name in ("train", "valid", "test", "test_unseen")} <= changed
    assert "data/test_isolated/text" not in changed


def test_what_is_made_is_good_data(fsdd_dir, tmp_path, monkeypatch, capsys):
    files = make(fsdd_dir, tmp_path / "1", monkeypatch)
    check_data(["--data", *(f"data/{name}" for name in SETS)])
    counts = {name: files[f"data/{name}/wav.scp"].count(b"\n") for name in SETS}
    assert counts == {"train": 12, "valid": 4, "test": 6, "test_isolated": 2 * 10 * 5, "test_unseen": 6}
    for name in SETS:
        speakers = set(files[f"data/{name}/spk2utt"].decode().split("\n"))
        assert {row.split()[0] for row in speakers if row} == ({"cyd"} if name == "test_unseen" else {"ann", "bob"})
        for row in files[f"data/{name}/text"].decode().splitlines():
            words = row.split()[1:]
            assert 1 <= len(words) <= 7 and set(words) <= set(fsdd.DIGITS)


def test_no_set_hears_another_sets_recordings(fsdd_dir, tmp_path, monkeypatch):
    taken: set[tuple[str, int, int]] = set()

    class Watched(dict):
        def __getitem__(self, key):
            taken.add(key)
            return super().__getitem__(key)

    recorded: dict[str, set[tuple[str, int, int]]] = defaultdict(set)

    def listen(directory, wav_dir, utterances) -> int:
        taken.clear()
        count = sum(1 for _ in utterances)
        recorded[directory.name] |= taken
        return count

    recordings = Watched(fsdd.read_recordings(fsdd_dir))
    monkeypatch.setattr(fsdd, "read_recordings", lambda directory: recordings)
    monkeypatch.setattr(write_dir, "write_data_dir", listen)
    prepare_fsdd(["--fsdd_dir", "x", "--num_train", "400", "--num_valid", "90", "--num_test", "90", *SIZES[-2:]])
    assert {take for _, _, take in recorded["train"]} == set(range(5, 45))
    assert {take for _, _, take in recorded["valid"]} == set(range(45, 50))
    assert {take for _, _, take in recorded["test"]} == set(range(5))
    assert {speaker for speaker, _, _ in recorded["train"] | recorded["valid"] | recorded["test"]} == {"ann", "bob"}
    assert {speaker for speaker, _, _ in recorded["test_unseen"]} == {"cyd"}


def test_isolated_recordings_are_left_as_they_are(fsdd_dir, tmp_path, monkeypatch):
    make(fsdd_dir, tmp_path / "1", monkeypatch)
    row = Path("data/test_isolated/wav.scp").read_text().splitlines()[0]
    key, path = row.split()
    samples, rate = soundfile.read(path)
    assert rate == 16000 and len(samples) == 960 and key == "ann-test_isolated-0-00"
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(960)))
    assert abs(spectrum.argmax() * 16000 / 960 - 150) < 17


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fsdd_dir", "/nowhere"], "/nowhere: holds no recordings"),
        (["--heldout_speaker", "zoe"], "must be one of ann, bob, cyd"),
    ],
)
def test_bad_options(fsdd_dir, tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        prepare_fsdd(["--fsdd_dir", str(fsdd_dir), *SIZES, *options])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and expected in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda path: path.unlink(), "not found"),
        (lambda path: path.write_bytes(b"no audio"), "cannot be read as audio"),
        (lambda path: soundfile.write(path, np.zeros(480), 16000), "16000 Hz"),
    ],
)
def test_a_damaged_copy_of_fsdd(tmp_path, fsdd_dir, capsys, break_it, expected):
    copy = tmp_path / "fsdd" / "recordings"
    copy.mkdir(parents=True)
    for path in (fsdd_dir / "recordings").iterdir():
        if path.name != "3_bob_7.wav":
            (copy / path.name).symlink_to(path)
    broken = copy / "3_bob_7.wav"
    soundfile.write(broken, np.zeros(480), 8000)
    break_it(broken)
    with pytest.raises(SystemExit):
        prepare_fsdd(["--fsdd_dir", str(copy.parent), *SIZES, "--data", str(tmp_path / "data")])
    message = capsys.readouterr().err
    assert str(broken) in message and expected in message and not (tmp_path / "data").exists()
