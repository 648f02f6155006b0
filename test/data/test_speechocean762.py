"""speechocean762's sets: its own train and test, and speakers of train held out."""

from pathlib import Path

import pytest

from distill.data.speechocean762 import VALID_SPEAKERS, prepare
from distill.errors import UserError


def make_set(root: Path, name: str, speakers: list[str]) -> None:
    """One utterance of each speaker, its fields separated by tabs as in the corpus."""
    (root / name).mkdir(parents=True)
    tables = {"wav.scp": "", "text": "", "utt2spk": ""}
    for speaker in speakers:
        key, wav = f"{speaker}00", f"WAVE/SPEAKER{speaker}/{speaker}00.WAV"
        (root / wav).parent.mkdir(parents=True)
        (root / wav).touch()
        tables["wav.scp"] += f"{key}\t{wav}\n"
        tables["text"] += f"{key}\tMARK  IS GOING\n"
        tables["utt2spk"] += f"{key} {speaker}\n"
    for table, lines in tables.items():
        (root / name / table).write_text(lines)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "speechocean762"
    make_set(root, "train", [f"{n:04d}" for n in range(1, VALID_SPEAKERS + 4)])
    make_set(root, "test", ["9001", "9002"])
    return root


def test_sets(corpus, tmp_path):
    assert prepare(tmp_path, tmp_path / "data") == {"train": 3, "valid": VALID_SPEAKERS, "test": 2}
    assert (tmp_path / "data/train/text").read_text().splitlines()[0] == "0001-000100 MARK IS GOING"
    wav = corpus.resolve() / "WAVE/SPEAKER9001/900100.WAV"
    assert (tmp_path / "data/test/wav.scp").read_text().splitlines()[0] == f"9001-900100 {wav}"
    assert (tmp_path / "data/valid/utt2spk").read_text().splitlines()[0] == "0004-000400 0004"


def test_audio_that_is_missing_is_named(corpus, tmp_path):
    (corpus / "WAVE/SPEAKER9001/900100.WAV").unlink()
    with pytest.raises(UserError, match=r"test/wav.scp:1: .*900100.WAV is not there"):
        prepare(corpus, tmp_path / "data")


def test_a_table_without_an_utterance_is_named(corpus, tmp_path):
    (corpus / "test/text").write_text("900100\tA\n")
    with pytest.raises(UserError, match="test/text: no line for 900200 of wav.scp"):
        prepare(corpus, tmp_path / "data")


def test_a_training_set_with_too_few_speakers_is_refused(corpus, tmp_path):
    for table in ("wav.scp", "text", "utt2spk"):
        path = corpus / "train" / table
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(UserError, match="only 5 speakers"):
        prepare(corpus, tmp_path / "data")
