"""Damage with one reading is repaired and told; whatever else is refused, and nothing is lost from a test set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.bin.import_data import main
from distill.data.check import check_data_dir

RATE = 16000
SPEAKERS = ("ann", "bob", "cyd", "dan")


def make(directory: Path, speakers: tuple[str, ...] = SPEAKERS) -> Path:
    """Two utterances of each speaker, of 0.1 s; ann-2 is line 2 of every file."""
    directory.mkdir(parents=True)
    keys = [f"{speaker}-{number}" for speaker in speakers for number in (1, 2)]
    rng = np.random.default_rng(len(directory.name))
    for key in keys:
        soundfile.write(directory / f"{key}.wav", 0.1 * rng.standard_normal(1600), RATE)
    (directory / "wav.scp").write_text("".join(f"{key} {directory}/{key}.wav\n" for key in keys))
    (directory / "text").write_text("".join(f"{key} café {key[-1:]}\n" for key in keys))
    (directory / "utt2spk").write_text("".join(f"{key} {key[:3]}\n" for key in keys))
    return directory


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories train, dev and test; the working directory is an empty recipe."""
    make(tmp_path / "train")
    make(tmp_path / "dev", ("eve", "fay"))
    make(tmp_path / "test", ("gus",))
    (tmp_path / "recipe").mkdir()
    monkeypatch.chdir(tmp_path / "recipe")
    return tmp_path


def imported(corpus: Path, *options: str, valid: bool = True) -> None:
    validation = ["--valid", str(corpus / "dev")] if valid else []
    main(["--train", str(corpus / "train"), *validation, "--test", str(corpus / "test"), *options])


def tables(name: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(Path("data", name).iterdir())}


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        content = (directory / name).read_text()
        assert old in content
        (directory / name).write_bytes(content.replace(old, new).encode())

    return change


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content.encode())


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def test_a_good_corpus_comes_out_as_it_is(corpus, capsys):
    imported(corpus)
    for name, source in (("train", "train"), ("valid", "dev"), ("test", "test")):
        made = tables(name)
        assert made.pop("spk2utt").split("\n")[0].split()[1:] == made["utt2spk"].split()[::2][:2]
        assert made == {table: (corpus / source / table).read_text() for table in ("text", "utt2spk", "wav.scp")}
        assert check_data_dir(Path("data", name))[0] == 2 * len(made["utt2spk"].split()) // 4
    assert "repaired" not in capsys.readouterr().out


def shuffled(directory: Path) -> None:
    lines = (directory / "text").read_text().splitlines(keepends=True)
    (directory / "text").write_text("".join(lines[::-1]))


@pytest.mark.parametrize(
    ("damage", "where", "expected"),
    [
        (shuffled, "text:2", "sorted"),
        (replace("utt2spk", "\n", "\r\n"), "utt2spk:1", "Windows line end; removed (8 in all)"),
        (replace("text", "ann-2", "\n  \nann-2"), "text:2", "empty line; left out (2 in all)"),
        (replace("text", "ann-1", "\ufeffann-1"), "text:1", "byte order mark; removed"),
        (replace("text", "ann-2 café 2\n", 2 * "ann-2 café 2\n"), "text:3", "line 2 again; left out"),
        (replace("text", "café 2", "café\u00a02\u200b"), "text:2", "odd space '\\xa0'; made a plain space (4 in all)"),
        (replace("text", "café", "cafe\u0301"), "text:1", "composed (NFC) (8 in all)"),
        (write("spk2utt", "ann ann-1\nbob ann-2\n"), "spk2utt", "made again from utt2spk"),
        (remove("utt2spk"), "utt2spk", "every utterance is taken as a speaker of its own"),
        (write("utt2dur", "ann-1 99\n"), None, None),
        (write("cmvn.scp", "ann-1 nowhere.ark:7\n"), None, None),
    ],
)
def test_what_is_repaired(corpus, capsys, damage, where, expected):
    damage(corpus / "train")
    imported(corpus)
    output = [line for line in capsys.readouterr().out.splitlines() if line.startswith("repaired: ")]
    if expected is None:
        assert not output
    else:
        assert [line for line in output if f"train/{where}: " in line and expected in line], output
    assert tables("train")["text"] == "".join(f"{s}-{n} café {n}\n" for s in SPEAKERS for n in (1, 2))
    assert check_data_dir(Path("data/train"))[0] == 8
    assert not {"utt2dur", "cmvn.scp"} & tables("train").keys()


def test_speakers_are_taken_from_spk2utt_if_that_is_all(corpus, capsys):
    (corpus / "train/utt2spk").unlink()
    (corpus / "train/spk2utt").write_text("".join(f"{s} {s}-1 {s}-2\n" for s in SPEAKERS))
    imported(corpus)
    assert "utt2spk: not found; made from spk2utt" in capsys.readouterr().out
    assert tables("train")["utt2spk"].split()[:4] == ["ann-1", "ann", "ann-2", "ann"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (replace("text", "ann-2 café 2\n", ""), "ann-2 is not in"),
        (replace("text", "ann-2 café 2\n", "ann-2\n"), "or empty there"),
        (replace("utt2spk", "ann-2 ann\n", ""), "utt2spk, or empty"),
        (replace("wav.scp", "ann-2", "ann-3"), "ann-3 is not in"),
    ],
)
def test_incomplete_utterances_leave_a_training_but_no_test_set(corpus, tmp_path, capsys, damage, expected):
    damage(corpus / "train")
    imported(corpus)
    assert expected in capsys.readouterr().out
    assert check_data_dir(Path("data/train"))[0] == 7
    (corpus / "test").rename(corpus / "was_test")
    (corpus / "train").rename(corpus / "test")
    make(corpus / "train", ("hal", "ida"))
    with pytest.raises(SystemExit) as stopped:
        imported(corpus)
    assert stopped.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and "ann-" in output and ";" in output and output.count("\n") == 1


def test_relative_paths_are_looked_for_where_the_recipe_was(corpus, capsys):
    train = corpus / "s5/data/train"
    make(train)
    (corpus / "s5/wav").mkdir()
    for path in train.glob("*.wav"):
        path.rename(corpus / "s5/wav" / path.name)
    (train / "wav.scp").write_text((train / "wav.scp").read_text().replace(f"{train}/", "wav/"))
    main(["--train", str(train), "--valid", str(corpus / "dev"), "--test", str(corpus / "test")])
    assert (
        f"wav.scp:1: wav/ann-1.wav is relative; taken as relative to {corpus}/s5 (8 in all)" in capsys.readouterr().out
    )
    assert check_data_dir(Path("data/train"))[0] == 8


def test_missing_audio_is_named_in_the_table_that_was_given(corpus, capsys):
    train = corpus / "s5/data/train"
    make(train)
    table = (train / "wav.scp").read_text()
    (train / "wav.scp").write_text(table.replace(f"{train}/", "elsewhere/"))
    with pytest.raises(SystemExit) as stopped:
        main(["--train", str(train), "--valid", str(corpus / "dev"), "--test", str(corpus / "test")])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count("\n") == 1
    assert message.startswith(f"error: {train}/wav.scp:1: elsewhere/ann-1.wav: no such audio file, neither from ")
    assert message.endswith("(8 such lines in all); correct the path\n")


def test_segments_to_the_end_and_unused_recordings(corpus, capsys):
    train = corpus / "train"
    (train / "wav.scp").write_text(f"tape {train}/ann-1.wav\nunused {train}/ann-2.wav\n")
    cuts = [f"{s}-{n} tape {n / 100} {'-1' if n == 2 else n / 100 + 0.03}\n" for s in SPEAKERS for n in (1, 2)]
    (train / "segments").write_text("".join(cuts))
    imported(corpus)
    output = capsys.readouterr().out
    assert "segments:2: an end of -1; taken as the recording's end (4 in all)" in output
    assert "wav.scp:2: a recording that no segment is cut from; left out" in output
    assert tables("train")["segments"].startswith("ann-1 tape 0.01 0.04\nann-2 tape 0.02 0.1\n")
    assert check_data_dir(Path("data/train"))[0] == 8


def refused(capsys: pytest.CaptureFixture, corpus: Path, *options: str, valid: bool = True) -> str:
    with pytest.raises(SystemExit) as stopped:
        imported(corpus, *options, valid=valid)
    assert stopped.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and output.count("\n") == 1 and ";" in output, output
    return output


def test_a_set_that_shares_utterances_or_audio_with_the_training_is_refused(corpus, capsys):
    (corpus / "test").rename(corpus / "old_test")
    make(corpus / "test", ("ann",))
    assert "test/utt2spk:" in (output := refused(capsys, corpus)) and "is in" in output
    audio = corpus / "train/ann-1.wav"
    replace("wav.scp", f"{corpus}/dev/eve-1.wav", str(audio))(corpus / "dev")
    (corpus / "test").rename(corpus / "shared_test")
    (corpus / "old_test").rename(corpus / "test")
    assert "eve-1 is the audio of ann-1" in refused(capsys, corpus)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replace("text", "ann-2 café", "ann-1 café"), "ann-1 is there already in line 1"),
        (lambda d: (d / "text").write_bytes("ann-1 café\n".encode("latin-1")), "text:1: not UTF-8"),
        (replace("utt2spk", "ann-2 ann", "ann-2 zoe"), "begin each utterance's id with its speaker's"),
        (replace("utt2spk", "ann-2 ann", "ann-2 b ann"), "expected: ID SPEAKER"),
        (write("text", "x-1 one\n"), "make the two agree"),
        (write("segments", "ann-1 ann-1 0.0 x\n"), "segments:1: "),
    ],
)
def test_what_has_two_readings_is_refused(corpus, capsys, damage, message):
    damage(corpus / "train")
    assert message in refused(capsys, corpus)
    assert not Path("data").exists()


def test_valid_is_made_of_whole_speakers(corpus, capsys):
    imported(corpus, "--valid_share", "0.2", valid=False)
    speakers = {name: set(tables(name)["utt2spk"].split()[1::2]) for name in ("train", "valid")}
    assert speakers["train"] | speakers["valid"] == set(SPEAKERS) and not speakers["train"] & speakers["valid"]
    assert len(speakers["valid"]) == 1
    before = tables("valid")
    imported(corpus, "--valid_share", "0.2", valid=False)
    assert tables("valid") == before


def test_one_speaker_cannot_be_split(corpus, capsys):
    (corpus / "train").rename(corpus / "many")
    make(corpus / "train", ("solo",))
    assert "one speaker only" in refused(capsys, corpus, valid=False)


def test_unlabelled_training_data(corpus, capsys):
    (corpus / "train/text").unlink()
    assert "text: not found" in refused(capsys, corpus)
    imported(corpus, "--unlabelled", "true")
    assert "text" not in tables("train") and "text" in tables("valid")
    assert "needs text" in refused(capsys, corpus, "--unlabelled", "true", valid=False)


def test_two_test_sets_of_one_name(corpus, capsys):
    make(corpus / "b/test", ("kim",))
    assert "NAME=" in refused(capsys, corpus, "--test", str(corpus / "test"), str(corpus / "b/test"))
    imported(corpus, "--test", str(corpus / "test"), f"noisy={corpus}/b/test")
    assert tables("noisy")["utt2spk"].startswith("kim-1 kim")
