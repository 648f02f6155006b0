"""LibriSpeech's tree: what is taken, and what is refused by name."""

from pathlib import Path

import pytest

from distill.bin.prepare_librispeech import main

PARTS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two utterances in each of five parts; the audio is not looked at here."""
    for number, part in enumerate(PARTS):
        chapter = tmp_path / "LibriSpeech" / part / f"{number}0" / "77"
        chapter.mkdir(parents=True)
        keys = [f"{number}0-77-{n:04d}" for n in range(2)]
        for key in keys:
            (chapter / f"{key}.flac").touch()
        (chapter / f"{number}0-77.trans.txt").write_text("".join(f"{key} A {part.upper()}\n" for key in keys))
    return tmp_path


def prepare(corpus: Path) -> None:
    data = str(corpus / "data")
    main(["--librispeech", str(corpus), "--train_parts", "train-clean-100", "--data", data])


def test_sets(corpus):
    prepare(corpus)
    flac = corpus / "LibriSpeech/dev-other/20/77/20-77-0001.flac"
    assert (corpus / "data/dev_other/wav.scp").read_text().splitlines()[1] == f"20-77-0001 {flac}"
    assert (corpus / "data/train/utt2spk").read_text() == "00-77-0000 00\n00-77-0001 00\n"
    assert len((corpus / "data/valid/text").read_text().splitlines()) == 4
    assert (corpus / "data/test_other/text").read_text().splitlines()[0] == "40-77-0000 A TEST-OTHER"


def unpack_less(corpus: Path) -> None:
    for path in (corpus / "LibriSpeech/test-other").rglob("*.trans.txt"):
        path.unlink()


def lose_audio(corpus: Path) -> None:
    (corpus / "LibriSpeech/train-clean-100/00/77/00-77-0001.flac").unlink()


def lose_a_line(corpus: Path) -> None:
    (corpus / "LibriSpeech/train-clean-100/00/77/00-77.trans.txt").write_text("00-77-0000 A\n")


def strange_line(corpus: Path) -> None:
    (corpus / "LibriSpeech/train-clean-100/00/77/00-77.trans.txt").write_text("00-77-0000 A\n00-78-0001 B\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unpack_less, "test-other: holds no SPEAKER/CHAPTER"),
        (lose_audio, "00-77.trans.txt:2: 00-77-0001.flac is not beside it"),
        (lose_a_line, "00-77.trans.txt: has no line for 00-77-0001.flac"),
        (strange_line, "00-77.trans.txt:2: '00-78-0001 B'; expected: 00-77-NUMBER TEXT"),
    ],
)
def test_faults(corpus, capsys, damage, message):
    damage(corpus)
    with pytest.raises(SystemExit) as stopped:
        prepare(corpus)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
