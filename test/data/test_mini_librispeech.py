"""Mini LibriSpeech's sets, official and cut by speaker."""

from pathlib import Path

import pytest

from distill.bin.prepare_mini_librispeech import main
from distill.data.mini_librispeech import prepare
from distill.data.speaker_split import read_split, split_speakers
from distill.errors import UserError


def make_part(root: Path, part: str, speakers: list[str]) -> None:
    """Two utterances of each speaker in LibriSpeech's layout; the audio is empty, as nobody reads it here."""
    for speaker in speakers:
        chapter = root / part / speaker / "7"
        chapter.mkdir(parents=True)
        keys = [f"{speaker}-7-{n:04d}" for n in range(2)]
        for key in keys:
            (chapter / f"{key}.flac").touch()
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(f"{key} {part.upper()}\n" for key in keys))


def speakers_of(data: Path, name: str) -> set[str]:
    return {line.split()[1] for line in (data / name / "utt2spk").read_text().splitlines()}


def test_the_official_parts_are_train_and_test_and_two_readers_are_held_out(tmp_path):
    make_part(tmp_path / "LibriSpeech", "train-clean-5", ["9", "10", "100", "11"])
    make_part(tmp_path / "LibriSpeech", "dev-clean-2", ["1000"])
    assert prepare(tmp_path, tmp_path / "data") == {"train": 4, "valid": 4, "test": 2}
    sets = {name: speakers_of(tmp_path / "data", name) for name in ("train", "valid", "test")}
    assert sets == {"train": {"9", "10"}, "valid": {"11", "100"}, "test": {"1000"}}
    assert (tmp_path / "data/test/text").read_text().startswith("1000-7-0000 DEV-CLEAN-2\n")


def test_a_cut_divides_all_parts_by_speaker(tmp_path):
    make_part(tmp_path, "test-clean", ["1", "2", "3"])
    make_part(tmp_path, "train-clean-100", ["4"])
    cut = tmp_path / "cut.txt"
    cut.write_text("# readers\n1 test\n\n2 valid\n* train\n")
    assert prepare(tmp_path, tmp_path / "data", cut) == {"train": 4, "valid": 2, "test": 2}
    assert speakers_of(tmp_path / "data", "train") == {"3", "4"}


def test_other_parts_need_a_cut(tmp_path, capsys):
    make_part(tmp_path, "test-clean", ["1"])
    with pytest.raises(SystemExit) as end:
        main(["--corpus", str(tmp_path), "--data", str(tmp_path / "data")])
    assert end.value.code == 2 and "divide other parts by speaker with --cut FILE" in capsys.readouterr().err


def test_a_directory_without_transcripts_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no PART/SPEAKER/CHAPTER"):
        prepare(tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 test\n1 valid\n* train\n", "cut.txt:2: speaker 1 is in the file twice"),
        ("1 test\n2\n", "cut.txt:2: '2'; expected: SPEAKER SET"),
        ("# nobody\n", "names no speaker"),
        ("8 test\n* train\n", "speaker 8 is not in the corpus"),
        ("1 test\n", "puts speaker 2 in no set"),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(tmp_path, text, message):
    cut = tmp_path / "cut.txt"
    cut.write_text(text)
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        split_speakers({"1", "2"}, read_split(cut), cut)


def test_a_cut_without_one_of_the_sets_is_refused(tmp_path):
    make_part(tmp_path, "test-clean", ["1", "2"])
    cut = tmp_path / "cut.txt"
    cut.write_text("1 test\n* train\n")
    with pytest.raises(UserError, match="no speaker for valid"):
        prepare(tmp_path, tmp_path / "data", cut)
