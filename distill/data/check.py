"""Find what is wrong with a Kaldi data directory before anything is made from it."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import soundfile
from tqdm import tqdm

from distill.audio import check_riff, read_audio
from distill.errors import UserError

SAMPLE_RATE = 16000
MIN_SAMPLES = 400  # at 16 kHz: what the first 20 ms frame sees
SEGMENT_SLACK_S = 0.5  # Kaldi too lets a segment end a little after its recording
MAX_ID_BYTES = 200  # an id becomes a file name: 255 bytes with what is added to it
ODD_ID = re.compile(r"[/\\\x00-\x1f]|[^\S ]")
# Spaces that Python splits at and awk and cut do not, and marks that nobody sees
ODD_SPACE = re.compile(r"[^\S ]|[\u200b\u2060\ufeff]")
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
RESERVED = ("<blank>", "<sos/eos>", "<unk>", "<space>")

Table = dict[str, tuple[int, str]]  # id -> (line number, rest of the line)


class Repairs:
    """What was repaired while a directory was read: each kind of fault of each file, its first line, and how many."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[str]] = {}

    def add(self, file: Path, number: int | None, fault: str, repair: str) -> None:
        where = f"{file}" if number is None else f"{file}:{number}"
        self.found.setdefault((str(file), repair), []).append(f"{where}: {fault}")

    def lines(self) -> list[str]:
        """One line for each kind: FILE:LINE: what it is; how it was repaired, how many."""
        return [
            f"{told[0]}; {repair}{f' ({len(told)} in all)' if len(told) > 1 else ''}"
            for (_, repair), told in self.found.items()
        ]


class DataDir(NamedTuple):
    """The tables of a data directory, by utterance but ``recordings``, which is by recording where there are segments.

    ``text`` is None for unlabelled data; ``segments`` holds (line number, recording, start, end) in seconds, None where
    wav.scp has an utterance in each line. An end of -1 is the recording's.
    """

    path: Path
    recordings: Table
    speakers: Table
    text: Table | None
    segments: dict[str, tuple[int, str, float, float]] | None


def read_table(path: Path, empty_values: bool = False, repairs: Repairs | None = None) -> Table:
    """A Kaldi table as id -> (line number, rest of the line); refuses what Kaldi's and ESPnet's tools stumble over.

    With ``repairs`` whatever has only one reading is repaired and told there: byte order mark, Windows line ends, empty
    lines, repeated lines, odd spaces, order.

    Raises:
        UserError: missing, empty, compressed or not UTF-8; an empty line or value, an id twice, out of order
            (``LC_ALL=C``), too long or with a character that is no good in a file name; control characters.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which is not there; mend the link")
    if not path.is_file():
        raise UserError(f"{path}: not found; a data directory needs wav.scp, text and utt2spk")
    table: Table = {}
    previous, unsorted = "", False

    def fault(number: int, what: str, cure: str, repaired: str) -> None:
        if repairs is None:
            raise UserError(f"{path}:{number}: {what}; {cure}")
        repairs.add(path, number, what, repaired)

    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            where = f"{path}:{number}"
            if number == 1:
                if raw.startswith(b"\x1f\x8b"):
                    raise UserError(f"{where}: compressed; unpack it: gunzip < {path}")
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{where}: UTF-16; convert it: iconv -f utf-16 -t utf-8 {path}")
                if raw.startswith(b"\xef\xbb\xbf"):
                    fault(1, "a byte order mark", f"remove it: sed -i '1s/^\\xef\\xbb\\xbf//' {path}", "removed")
                    raw = raw[3:]
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 (byte {error.start}); convert it: iconv -t utf-8 {path}") from None
            if not line:
                fault(number, "empty line", "remove it", "left out")
                continue
            if raw.endswith(b"\r\n"):
                fault(number, "a Windows line end", f"remove them: sed -i 's/\\r$//' {path}", "removed")
            if control := CONTROL.search(line):
                raise UserError(f"{where}: the control character {control[0]!r}; the line is damaged, write it again")
            key, *rest = re.split("[ \t]+", line, maxsplit=1)
            value = rest[0] if rest else ""
            if ODD_ID.search(key) or ODD_SPACE.search(key) or key in (".", ".."):
                raise UserError(f"{where}: {key!r} holds a character that is no good in a file name; rename it")
            if len(key.encode()) > MAX_ID_BYTES:
                raise UserError(f"{where}: an id of {len(key.encode())} bytes; shorten it to {MAX_ID_BYTES}")
            if odd := ODD_SPACE.search(line):
                fault(number, f"the odd space {odd[0]!r}", "write a plain space", "made a plain space")
                value = ODD_SPACE.sub(lambda found: "" if found[0] in "\u2060\ufeff" else " ", value).strip()
            if key in table:
                first = table[key][0]
                if repairs is None or table[key][1] != value:
                    raise UserError(f"{where}: {key} is there already in line {first}; ids are unique, rename one")
                repairs.add(path, number, f"line {first} again", "left out")
                continue
            if key.encode() < previous.encode() and not unsorted:
                fault(
                    number, f"{key} comes after {previous}", f"sort the file: LC_ALL=C sort -o {path} {path}", "sorted"
                )
                unsorted = True
            if not value and not empty_values:
                raise UserError(f"{where}: {key} has nothing after its id; complete or remove the line")
            table[key] = (number, value)
            previous = key
    if not table:
        raise UserError(f"{path}: empty; expected lines of: ID VALUE")
    return dict(sorted(table.items(), key=lambda item: item[0].encode())) if unsorted else table


def same_keys(path: Path, table: Iterable[str], other_path: Path, other: Iterable[str]) -> None:
    """Refuse two tables that do not hold the same ids."""
    for lacking, has, missing in (
        (path, other_path, sorted(set(other) - set(table))),
        (other_path, path, sorted(set(table) - set(other))),
    ):
        if missing:
            raise UserError(f"{lacking}: lacks {len(missing)} of {has}'s ids, such as {missing[0]}; make the two agree")


def check_audio(path: str, resample: bool) -> float:
    """Refuse an audio file that cannot be trained on or scored; its seconds.

    Headers tell most. Compressed files are decoded, as their end is not in the header, and floating-point ones read, as
    they may hold what is no number.
    """
    file = Path(path)
    if re.search(r"\.ark:\d+$", path):
        return len(read_audio(path, SAMPLE_RATE)) / SAMPLE_RATE
    if file.is_dir():
        raise UserError(f"{path}: a directory, not an audio file; correct the path")
    if not file.is_file():
        words = path.split()
        if len(words) > 1 and Path(words[-1]).is_file():
            hint = "if it is a command, end the line with |; if the id has a space, rename it"
        else:
            hint = "correct the path"
        raise UserError(f"{path}: no such audio file; {hint}")
    check_riff(file)
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError):
        raise UserError(f"{path}: cannot be read as audio; {_how_to_read(file)}") from None
    if info.channels != 1:
        raise UserError(f"{path}: {info.channels} channels; convert it: sox {shlex.quote(path)} -c 1 OUT.wav")
    if info.samplerate != SAMPLE_RATE and not resample:
        raise UserError(
            f"{path}: {info.samplerate} Hz instead of {SAMPLE_RATE}; convert it: sox {shlex.quote(path)} "
            f"-r {SAMPLE_RATE} OUT.wav, or give --resample true"
        )
    if info.frames == 0:
        raise UserError(f"{path}: no samples; record it again or remove the utterance")
    if info.format != "WAV" or not info.subtype.startswith("PCM"):
        read_audio(path, info.samplerate)
    return info.frames / info.samplerate


def _how_to_read(file: Path) -> str:
    """What to do with a file that libsndfile refuses, told from its first bytes."""
    with open(file, "rb") as stream:
        start = stream.read(1024)
    if start.startswith(b"NIST_1A") and b"shorten" in start:
        return f"it is compressed with shorten, write this command: sph2pipe -f wav {shlex.quote(str(file))} |"
    if start[4:8] == b"ftyp" or start.startswith(b"\x1a\x45\xdf\xa3"):
        return f"it is MP4 or Matroska, convert it: ffmpeg -i {shlex.quote(str(file))} -ac 1 -ar {SAMPLE_RATE} OUT.flac"
    return "it is cut off or no audio file, copy it again"


def check_command(command: str, resample: bool) -> float:
    """Run a wav.scp command (ends with ``|``), and refuse it or the audio that it prints; the audio's seconds."""
    with tempfile.NamedTemporaryFile(suffix=".audio") as output:
        done = subprocess.run(command.rstrip("| \t"), shell=True, stdout=output, stderr=subprocess.PIPE)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
            raise UserError(f"the command fails ({said[-1]}); mend it: {command}")
        try:
            return check_audio(output.name, resample)
        except UserError as error:
            raise UserError(f"what the command prints is refused, {error}") from None


def check_tokens(path: Path, text: Table, token_list: Path, token_type: str) -> None:
    """Refuse a transcript with a word or character that is not in the token list (bpe spells every word)."""
    tokens = set(token_list.read_text(encoding="utf-8").split("\n"))
    for number, line in text.values():
        for token in line.split() if token_type == "word" else line.replace(" ", ""):
            if token_type != "bpe" and token not in tokens:
                raise UserError(
                    f"{path}:{number}: {token!r} is not in {token_list}; add it to the training text and make the list "
                    "again (stage 5), or remove the utterance"
                )


def read_data_dir(
    directory: Path, repairs: Repairs | None = None, labelled: bool = True, may_drop: bool = False
) -> DataDir:
    """The tables of a data directory, made to agree with each other; audio is not looked at.

    With ``repairs`` what has only one reading is repaired and told there: what :func:`read_table` repairs, and also
    spk2utt, a missing utt2spk, recordings that no segment is cut from, and Unicode that is spelt in two ways. With
    ``may_drop`` utterances that lack something are left out: right for a training, wrong for a test set.
    Not ``labelled``: text is neither needed nor read.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such data directory; make it first (stage 1)")
    wav_scp, text_file, utt2spk = directory / "wav.scp", directory / "text", directory / "utt2spk"
    spk2utt, segments_file = directory / "spk2utt", directory / "segments"
    if not wav_scp.exists() and (directory / "feats.scp").exists():
        raise UserError(f"{wav_scp}: not found, only feats.scp; wav2vec 2.0 hears audio, so give the wav.scp as well")
    recordings = read_table(wav_scp, repairs=repairs)
    text = read_table(text_file, empty_values=may_drop, repairs=repairs) if labelled else None
    segments = _read_segments(segments_file, recordings, wav_scp, repairs) if segments_file.exists() else None
    cut_by, cut = (wav_scp, set(recordings)) if segments is None else (segments_file, set(segments))
    for key, (number, words) in (text or {}).items():
        for word in words.split():
            if word in RESERVED:
                raise UserError(f"{text_file}:{number}: {word} is a name of ESPnet's; remove or rename the word")
        if repairs is not None and (composed := unicodedata.normalize("NFC", words)) != words:
            repairs.add(text_file, number, "letters with separate accents", "composed (NFC)")
            text[key] = (number, composed)  # type: ignore[index]

    speakers = _read_speakers(utt2spk, spk2utt, cut, repairs)
    previous = b"", b""
    for key, (number, speaker) in speakers.items():
        if (speaker.encode(), key.encode()) < previous:
            raise UserError(
                f"{utt2spk}:{number}: speaker {speaker} comes after {previous[0].decode()}, though the ids are sorted; "
                "begin each utterance's id with its speaker's, or give every utterance its own id as its speaker"
            )
        previous = speaker.encode(), key.encode()

    tables: list[tuple[Path, set[str]]] = [(cut_by, cut), (utt2spk, set(speakers))]
    if text is not None:
        tables.append((text_file, {key for key, (_, words) in text.items() if words}))
    common = set.intersection(*(keys for _, keys in tables))
    if not may_drop or repairs is None:
        for path, keys in tables[:-1]:
            same_keys(path, keys, *tables[-1])
    elif not common:
        same_keys(cut_by, cut, *tables[-1])
    else:
        for path, keys in tables:
            for key in sorted(keys - common):
                lacking = next(other for other, has in tables if key not in has)
                repairs.add(path, None, f"{key} is not in {lacking}, or empty there", "left out")
    used = common if segments is None else {segments[key][1] for key in common}
    if repairs is not None:
        for key in recordings.keys() - used if segments is not None else ():
            repairs.add(wav_scp, recordings[key][0], "a recording that no segment is cut from", "left out")
        recordings = {key: row for key, row in recordings.items() if key in used}
    return DataDir(
        directory,
        recordings,
        {key: row for key, row in speakers.items() if key in common},
        None if text is None else {key: row for key, row in text.items() if key in common},
        None if segments is None else {key: row for key, row in segments.items() if key in common},
    )


def _read_segments(
    path: Path, recordings: Table, wav_scp: Path, repairs: Repairs | None
) -> dict[str, tuple[int, str, float, float]]:
    """Line number, recording, start and end (s, -1 for the recording's) of every utterance."""
    segments: dict[str, tuple[int, str, float, float]] = {}
    for key, (number, line) in read_table(path, repairs=repairs).items():
        where = f"{path}:{number}"
        try:
            recording, *times = line.split()
            start, end = (float(time) for time in times)
        except ValueError:
            why = ", with times in seconds such as 1.25" if "," in line else ""
            raise UserError(f"{where}: {line!r}; expected: ID RECORDING START END{why}") from None
        if recording not in recordings:
            raise UserError(f"{where}: recording {recording} is not in {wav_scp}; add it or remove the line")
        if end == -1 and repairs is not None:  # as Kaldi writes "up to the end"
            repairs.add(path, number, "an end of -1", "taken as the recording's end")
        elif not 0 <= start < end:
            raise UserError(f"{where}: {start} to {end} s is not within the recording; correct the line")
        segments[key] = number, recording, start, end
    return segments


def _read_speakers(utt2spk: Path, spk2utt: Path, utterances: Iterable[str], repairs: Repairs | None) -> Table:
    """utt2spk, held against spk2utt, or made from it if only that is there."""
    inverse: dict[str, str] = {}
    if spk2utt.exists():
        for speaker, (number, keys) in read_table(spk2utt, repairs=repairs).items():
            for key in keys.split():
                if inverse.setdefault(key, speaker) != speaker:
                    raise UserError(f"{spk2utt}:{number}: {key} is {inverse[key]}'s as well; give it one speaker")
    if not utt2spk.exists() and repairs is not None:
        if inverse:
            repairs.add(utt2spk, None, "not found", "made from spk2utt")
            return {key: (0, inverse[key]) for key in sorted(inverse, key=str.encode)}
        repairs.add(utt2spk, None, "not found", "every utterance is taken as a speaker of its own")
        return {key: (0, key) for key in sorted(utterances, key=str.encode)}
    speakers = read_table(utt2spk, repairs=repairs)
    for key, (number, speaker) in speakers.items():
        if len(speaker.split()) > 1:
            raise UserError(f"{utt2spk}:{number}: {key} {speaker}; expected: ID SPEAKER, without spaces in either")
    if inverse and inverse != {key: speaker for key, (_, speaker) in speakers.items()}:
        if repairs is None:
            raise UserError(f"{spk2utt}: says other speakers than utt2spk; remove it, it is made from utt2spk")
        repairs.add(spk2utt, None, "says other speakers than utt2spk", "made again from utt2spk")
    return speakers


def check_data_dir(
    directory: Path, resample: bool = False, allow_pipes: bool = False, labelled: bool = True
) -> tuple[int, float]:
    """Check a whole data directory, audio and all; (utterances, hours). See the functions above for what is refused.

    ``segments`` (id recording start end) may cut utterances from the recordings of wav.scp. A wav.scp entry that is a
    command (ends with ``|``) is refused unless ``allow_pipes``, which runs it, as formatting the data will.
    """
    data = read_data_dir(directory, labelled=labelled)
    wav_scp, segments_file = directory / "wav.scp", directory / "segments"

    def one(item: tuple[str, tuple[int, str]]) -> tuple[str, float]:
        key, (number, entry) = item
        try:
            return key, recording_seconds(entry, resample, allow_pipes)
        except UserError as error:
            raise UserError(f"{wav_scp}:{number}: {error}") from None

    seconds: dict[str, float] = {}
    recordings = data.recordings
    with ThreadPoolExecutor() as pool:
        checked = pool.map(one, recordings.items())
        for key, duration in tqdm(checked, total=len(recordings), desc=f"checking {directory}", unit="file", delay=2):
            seconds[key] = duration
    if data.segments is None:
        cut_by, lengths = wav_scp, seconds
        lines = {key: number for key, (number, _) in recordings.items()}
    else:
        cut_by, lengths, lines = segments_file, {}, {}
        for key, (number, recording, start, end) in data.segments.items():
            if end > seconds[recording] + SEGMENT_SLACK_S:
                whole = f"{seconds[recording]:.2f} s"
                raise UserError(
                    f"{segments_file}:{number}: {start} to {end} s is not within the recording's {whole}; correct the "
                    "line (times are in seconds)"
                )
            lengths[key], lines[key] = min(end, seconds[recording]) - start, number
    for key, length in lengths.items():
        if length < MIN_SAMPLES / SAMPLE_RATE:
            raise UserError(
                f"{cut_by}:{lines[key]}: {key} is {length * 1000:.1f} ms long, "
                f"shorter than one frame ({MIN_SAMPLES * 1000 // SAMPLE_RATE} ms); remove the utterance"
            )
    _check_durations(directory / "utt2dur", lengths)
    return len(lengths), sum(lengths.values()) / 3600


def recording_seconds(entry: str, resample: bool, allow_pipes: bool) -> float:
    """Seconds of a wav.scp entry, a path or a command; see :func:`check_audio` and :func:`check_command`."""
    if not entry.endswith("|"):
        return check_audio(entry, resample)
    if not allow_pipes:
        raise UserError("a command; give --allow_pipes true if it may be run")
    return check_command(entry, resample)


def _check_durations(utt2dur: Path, lengths: dict[str, float]) -> None:
    """Refuse a utt2dur that tells other lengths than the audio has: one of the two is of another corpus."""
    if not utt2dur.exists():
        return
    for key, (number, told) in read_table(utt2dur).items():
        try:
            differs = key in lengths and abs(float(told) - lengths[key]) > max(SEGMENT_SLACK_S, 0.05 * lengths[key])
        except ValueError:
            raise UserError(f"{utt2dur}:{number}: {told!r}; expected: ID SECONDS") from None
        if differs:
            raise UserError(
                f"{utt2dur}:{number}: {key} is {told} s there, but its audio has {lengths[key]:.2f} s; see which is "
                "right, and correct the audio's path or remove utt2dur"
            )


def true_or_false(value: str) -> bool:
    """``true`` or ``false``, as the options of a recipe are spelt."""
    if value not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{value!r} is neither true nor false")
    return value == "true"
