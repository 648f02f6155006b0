"""A good data directory passes; each fault is one line that names the file, the line and a cure, with exit status 2."""

import gzip
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.bin.check_data import main
from distill.data.check_audio import check_audio
from distill.errors import UserError

RATE = 16000
TONE = (0.3 * np.sin(np.arange(1600) / 5)).astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three utterances of two speakers; utterance ann-2 is line 2 of every file."""
    directory = tmp_path / "set"
    directory.mkdir()
    keys = ("ann-1", "ann-2", "bob-1")
    for key in keys:
        soundfile.write(tmp_path / f"{key}.wav", TONE, RATE)
    (directory / "wav.scp").write_text("".join(f"{key} {tmp_path}/{key}.wav\n" for key in keys))
    (directory / "text").write_text("ann-1 one two\nann-2 two\nbob-1 one\n")
    (directory / "utt2spk").write_text("ann-1 ann\nann-2 ann\nbob-1 bob\n")
    return directory


def refused(capsys, *argv: object) -> str:
    """What the command says when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in argv])
    assert stopped.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and output.count("\n") == 1 and ";" in output, output
    return output


def audio(samples: np.ndarray, rate: int = RATE, **options: str) -> Callable[[Path], None]:
    """A change of ann-2's audio."""
    return lambda data: soundfile.write(data.parent / "ann-2.wav", samples, rate, **options)


def line(name: str, old: str, new: str) -> Callable[[Path], None]:
    """A change of one of the directory's tables."""

    def change(data: Path) -> None:
        content = (data / name).read_bytes()
        assert old.encode() in content
        (data / name).write_bytes(content.replace(old.encode(), new.encode("latin-1")))

    return change


def raw(name: str, content: bytes | None, renamed: str | None = None) -> Callable[[Path], None]:
    """Another content of a table, or another name."""

    def change(data: Path) -> None:
        if content is not None:
            (data / name).write_bytes(content)
        if renamed is not None:
            (data / name).rename(data / renamed)

    return change


def dangling(name: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        (data / name).unlink()
        (data / name).symlink_to(data / "lost")

    return change


def audio_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda data: (data.parent / "ann-2.wav").write_bytes(content)


def cut_off(data: Path) -> None:
    path = data.parent / "ann-2.wav"
    path.write_bytes(path.read_bytes()[:-500])


def test_good_data_passes(data, capsys):
    main(["--data", str(data)])
    assert "3 utterances" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "where", "expected"),
    [
        (lambda data: (data / "text").unlink(), "text", "not found"),
        (lambda data: (data / "wav.scp").unlink(), "wav.scp", "not found"),
        (lambda data: (data / "utt2spk").unlink(), "utt2spk", "not found"),
        (lambda data: (data / "text").write_text(""), "text", "empty"),
        (line("text", "ann-2 two", "ann-2"), "text:2", "nothing after its id"),
        (line("text", "ann-2 two", "ann-2 \t "), "text:2", "nothing after its id"),
        (line("text", "ann-2 two\n", "\n"), "text:2", "empty line"),
        (line("text", "ann-2 two", "ann-1 two"), "text:2", "ann-1 is there already in line 1"),
        (line("text", "ann-2 two", "ann-0 two"), "text:2", "LC_ALL=C sort"),
        (line("text", "ann-2 two", "ann-2 \xfcber"), "text:2", "not UTF-8"),
        (line("text", "ann-2 two\n", "ann-2 two\r\n"), "text:2", "Windows line end"),
        (line("text", "ann-2 two\n", ""), "text", "lacks 1 of"),
        (line("wav.scp", "bob-1", "cyd-1"), "wav.scp", "bob-1"),
        (line("wav.scp", "ann-2 ", "ann/2 "), "wav.scp:2", "file name"),
        (line("wav.scp", "ann-2.wav", "ann-3.wav"), "wav.scp:2", "no such audio file"),
        (line("wav.scp", "ann-2.wav", "ann-2.wav -c 1 |"), "wav.scp:2", "--allow_pipes true"),
        (line("utt2spk", "ann-2 ann", "ann-2 zoe"), "utt2spk:3", "begin each utterance's id with its speaker's"),
        (cut_off, "wav.scp:2", "cut off"),
        (lambda data: (data.parent / "ann-2.wav").write_bytes(b""), "wav.scp:2", "cannot be read as audio"),
        (lambda data: (data.parent / "ann-2.wav").write_text("no audio" * 99), "wav.scp:2", "cannot be read as audio"),
        (audio(np.stack([TONE, TONE], 1)), "wav.scp:2", "2 channels"),
        (audio(TONE, 44100), "wav.scp:2", "--resample true"),
        (audio(TONE, 8000), "wav.scp:2", "sox .* -r 16000"),
        (audio(TONE[:0]), "wav.scp:2", "no samples"),
        (audio(TONE[:399]), "wav.scp:2", "shorter than one frame"),
        (audio(np.append(TONE, np.nan), subtype="FLOAT"), "wav.scp:2", "not a finite number"),
        (raw("text", gzip.compress(b"ann-1 one two")), "text:1", "gunzip"),
        (raw("text", "ann-1 one two".encode("utf-16")), "text:1", "iconv -f utf-16"),
        (raw("text", b"\xef\xbb\xbfann-1 one\n"), "text:1", "byte order mark"),
        (line("text", "ann-2 two", "ann-2 t\x00o"), "text:2", "control character '.x00'"),
        (raw("text", "ann-1 one\nann-2 two\u00a0one\n".encode()), "text:2", "odd space"),
        (raw("text", "ann-1 one\nann-2\u00a0two\n".encode()), "text:2", "file name"),
        (line("text", "ann-2 two", "ann-2 <blank> two"), "text:2", "<blank> is a token that ESPnet reserves"),
        (line("text", "ann-2", "ann-" + 200 * "2"), "text:2", "204 bytes; shorten"),
        (raw("wav.scp", None, "feats.scp"), "wav.scp", "only feats.scp"),
        (dangling("text"), "text", "a link to .*lost"),
        (line("wav.scp", "ann-2.wav", ""), "wav.scp:2", "a directory"),
        (lambda data: line("wav.scp", "ann-2 ", "ann-2 b ")(data), "wav.scp:2", "if the id has a space, rename it"),
        (lambda data: line("wav.scp", "ann-2 ", "ann-2 sph2pipe -f wav ")(data), "wav.scp:2", "end the line with |"),
        (audio_bytes(b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\n"), "wav.scp:2", "sph2pipe"),
        (audio_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(99)), "wav.scp:2", "ffmpeg"),
        (audio_bytes(b"\x1a\x45\xdf\xa3" + bytes(99)), "wav.scp:2", "ffmpeg"),
        (line("utt2spk", "ann-2 ann", "ann-2 ann b"), "utt2spk:2", "expected: ID SPEAKER"),
        (raw("spk2utt", b"ann ann-1\nbob ann-2 bob-1\n"), "spk2utt", "differs from utt2spk"),
        (raw("spk2utt", b"ann ann-1 ann-2\nbob ann-2 bob-1\n"), "spk2utt:2", "ann-2 belongs to ann as well"),
        (raw("utt2dur", b"ann-1 0.1\nann-2 7.5\nbob-1 0.1\n"), "utt2dur:2", "has 0.10 s"),
        (raw("utt2dur", b"ann-1 0.1\nann-2 0,1\n"), "utt2dur:2", "expected: ID SECONDS"),
    ],
)
def test_each_fault_is_named(data, capsys, change, where, expected):
    change(data)
    message = refused(capsys, "--data", data)
    assert f"{data}/{where}: " in message and re.search(expected, message), message


def test_missing_directory(tmp_path, capsys):
    assert f"{tmp_path}/nowhere: no such data directory" in refused(capsys, "--data", tmp_path / "nowhere")


def test_one_frame_is_enough(data):
    audio(TONE[:400])(data)
    main(["--data", str(data)])


def test_other_rates_pass_when_they_are_to_be_resampled(data):
    audio(TONE, 44100)(data)
    main(["--data", str(data), "--resample", "true"])


def test_length_counts_in_time_when_resampled(data, capsys):
    audio(TONE[:600], 44100)(data)  # 600 samples, but only 13.6 ms
    assert "shorter than one frame" in refused(capsys, "--data", data, "--resample", "true")


def test_a_cut_off_flac_is_found(data, capsys):
    path = data.parent / "ann-2.flac"
    soundfile.write(path, np.random.default_rng(0).normal(size=9000) / 9, RATE)
    path.write_bytes(path.read_bytes()[:-3000])
    line("wav.scp", "ann-2.wav", "ann-2.flac")(data)
    assert "wav.scp:2: " in refused(capsys, "--data", data)


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "OPUS"), ("FLAC", "PCM_16"), ("WAV", "FLOAT")])
def test_a_long_recording_is_decoded_in_pieces(tmp_path, form, subtype):
    path, seconds = tmp_path / "long.audio", 200
    samples = np.tile(TONE, 10 * seconds)
    with soundfile.SoundFile(path, "w", RATE, 1, format=form, subtype=subtype) as stream:
        for start in range(0, len(samples), RATE):  # libsndfile's Opus encoder fails on long blocks
            stream.write(samples[start : start + RATE])
    tracemalloc.start()
    assert check_audio(str(path), resample=False) == seconds
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < samples.nbytes / 4


def test_a_sample_that_is_not_finite_is_found_behind_the_first_piece(tmp_path):
    samples = np.zeros(300_000, np.float32)
    samples[290_000] = np.nan
    soundfile.write(tmp_path / "long.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(UserError, match="sample 290000 is not a finite number"):
        check_audio(str(tmp_path / "long.wav"), resample=False)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("cat {} |", None),
        ("exit 3 |", "the command fails"),
        ("echo oh no >&2; false |", "oh no"),
        ("head -c 500 {} |", "cut off"),
        ("true |", "cannot be read as audio"),
    ],
)
def test_commands_run_when_allowed(data, capsys, command, expected):
    wav = f"{data.parent}/ann-2.wav"
    line("wav.scp", wav, command.format(wav))(data)
    argv = ("--data", str(data), "--allow_pipes", "true")
    if expected is None:
        main(list(argv))
    else:
        message = refused(capsys, *argv)
        assert expected in message and "wav.scp:2: " in message


def cut_into_segments(data: Path, segments: str) -> None:
    (data / "wav.scp").write_text(f"tape {data.parent}/ann-1.wav\n")
    (data / "segments").write_text(segments)


def test_segments(data, capsys):
    cut_into_segments(data, "ann-1 tape 0 0.03\nann-2 tape 0.03 0.06\nbob-1 tape 0.06 0.1\n")
    main(["--data", str(data)])
    assert "3 utterances" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("ann-2 tape 0.03", "expected: ID RECORDING START END"),
        ("ann-2 tape x 0.06", "expected: ID RECORDING START END"),
        ("ann-2 tape 0,03 0,06", "seconds such as 1.25"),
        ("ann-2 tape 0.03 0.06 1", "expected: ID RECORDING START END"),
        ("ann-2 tape 30 60", "times are in seconds"),
        ("ann-2 tape -0.03 0.06", "not within"),
        ("ann-2 tape 0.03 -1", "not within"),
        ("ann-2 reel 0.03 0.06", "recording reel is not in"),
        ("ann-2 tape 0.06 0.03", "not within"),
        ("ann-2 tape 0.03 9", "not within"),
        ("ann-2 tape nan 0.06", "not within"),
        ("ann-2 tape 0.03 0.04", "shorter than one frame"),
    ],
)
def test_bad_segments(data, capsys, second, expected):
    cut_into_segments(data, f"ann-1 tape 0 0.03\n{second}\nbob-1 tape 0.06 0.1\n")
    message = refused(capsys, "--data", data)
    assert f"{data}/segments:2: " in message and expected in message


@pytest.mark.parametrize(
    ("token_type", "tokens", "expected"),
    [
        ("word", "one two", None),
        ("word", "one", "'two'"),
        ("char", "o n e t w", None),
        ("char", "o n e t", "'w'"),
        ("bpe", "_o n e", None),
    ],
)
def test_tokens_outside_the_list(data, tmp_path, capsys, token_type, tokens, expected):
    tokens_file = tmp_path / "tokens.txt"
    tokens_file.write_text("\n".join(["<blank>", *tokens.split(), "<sos/eos>"]) + "\n")
    argv = ("--data", str(data), "--token_list", str(tokens_file), "--token_type", token_type)
    if expected is None:
        main(list(argv))
    else:
        message = refused(capsys, *argv)
        assert f"{data}/text:1: {expected} is not in {tokens_file}" in message


def test_a_missing_token_list(data, capsys):
    message = refused(capsys, "--data", data, "--token_list", data / "tokens.txt", "--token_type", "word")
    assert "tokens.txt" in message


def test_thousands_of_files_take_seconds(tmp_path):
    directory = tmp_path / "many"
    directory.mkdir()
    keys = [f"u{n:04d}" for n in range(2000)]
    for key in keys:
        soundfile.write(tmp_path / f"{key}.wav", TONE, RATE)
    (directory / "wav.scp").write_text("".join(f"{key} {tmp_path}/{key}.wav\n" for key in keys))
    for name in ("text", "utt2spk"):
        (directory / name).write_text("".join(f"{key} {key}\n" for key in keys))
    start = time.perf_counter()
    main(["--data", str(directory)])
    assert time.perf_counter() - start < 10  # under a second on an idle machine
