"""Find what is wrong with a Kaldi data directory before anything is made from it."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from tqdm import tqdm

from distill.audio import check_riff, read_audio
from distill.errors import UserError

SAMPLE_RATE = 16000
MIN_SAMPLES = 400  # at 16 kHz: what the first 20 ms frame sees
ODD_ID = re.compile(r"[/\\\x00-\x1f]")


def read_table(path: Path, empty_values: bool = False) -> dict[str, tuple[int, str]]:
    """A Kaldi table as id -> (line number, rest of the line); refuses what Kaldi's and ESPnet's tools stumble over.

    Raises:
        UserError: missing, empty or not UTF-8; an empty line or value, an id twice, out of order (``LC_ALL=C``) or with
            a character that is no good in a file name.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; a data directory needs wav.scp, text and utt2spk")
    table: dict[str, tuple[int, str]] = {}
    previous = ""
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 (byte {error.start}); convert it: iconv -t utf-8 {path}") from None
            if not line:
                raise UserError(f"{where}: empty line; remove it")
            if raw.endswith(b"\r\n"):
                raise UserError(f"{where}: a Windows line end; remove them: sed -i 's/\\r$//' {path}")
            key, *rest = line.split(maxsplit=1)
            if key in table:
                raise UserError(f"{where}: {key} is there already in line {table[key][0]}; ids are unique, rename one")
            if ODD_ID.search(key) or key in (".", ".."):
                raise UserError(f"{where}: {key!r} holds a character that is no good in a file name; rename it")
            if key.encode() < previous.encode():
                raise UserError(f"{where}: {key} comes after {previous}; sort the file: LC_ALL=C sort -o {path} {path}")
            if not rest and not empty_values:
                raise UserError(f"{where}: {key} has nothing after its id; complete or remove the line")
            table[key] = (number, rest[0] if rest else "")
            previous = key
    if not table:
        raise UserError(f"{path}: empty; expected lines of: ID VALUE")
    return table


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
    if not file.is_file():
        raise UserError(f"{path}: no such audio file; correct the path")
    check_riff(file)
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError):
        raise UserError(f"{path}: cannot be read as audio; it is cut off or no audio file, copy it again") from None
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


def check_tokens(path: Path, text: dict[str, tuple[int, str]], token_list: Path, token_type: str) -> None:
    """Refuse a transcript with a word or character that is not in the token list (bpe spells every word)."""
    tokens = set(token_list.read_text(encoding="utf-8").split("\n"))
    for number, line in text.values():
        for token in line.split() if token_type == "word" else line.replace(" ", ""):
            if token_type != "bpe" and token not in tokens:
                raise UserError(
                    f"{path}:{number}: {token!r} is not in {token_list}; add it to the training text and make the list "
                    "again (stage 5), or remove the utterance"
                )


def check_data_dir(directory: Path, resample: bool = False, allow_pipes: bool = False) -> tuple[int, float]:
    """Check a whole data directory; (utterances, hours of audio). See the functions above for what is refused.

    ``segments`` (id recording start end) may cut utterances from the recordings of wav.scp. A wav.scp entry that is a
    command (ends with ``|``) is refused unless ``allow_pipes``, which runs it, as formatting the data will.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such data directory; make it first (stage 1)")
    wav_scp, text_file, utt2spk = directory / "wav.scp", directory / "text", directory / "utt2spk"
    recordings, text, speakers = read_table(wav_scp), read_table(text_file), read_table(utt2spk)
    same_keys(utt2spk, speakers, text_file, text)
    previous = b"", b""
    for key, (number, speaker) in speakers.items():
        if (speaker.encode(), key.encode()) < previous:
            raise UserError(
                f"{utt2spk}:{number}: speaker {speaker} comes after {previous[0].decode()}, though the ids are sorted; "
                "begin each utterance's id with its speaker's, or give every utterance its own id as its speaker"
            )
        previous = speaker.encode(), key.encode()

    def one(item: tuple[str, tuple[int, str]]) -> tuple[str, float]:
        key, (number, entry) = item
        try:
            if not entry.endswith("|"):
                return key, check_audio(entry, resample)
            if allow_pipes:
                return key, check_command(entry, resample)
        except UserError as error:
            raise UserError(f"{wav_scp}:{number}: {error}") from None
        raise UserError(f"{wav_scp}:{number}: a command; give --allow_pipes true if it may be run")

    segments_file = directory / "segments"
    if not segments_file.exists():
        same_keys(wav_scp, recordings, text_file, text)
    seconds: dict[str, float] = {}
    with ThreadPoolExecutor() as pool:
        checked = pool.map(one, recordings.items())
        for key, duration in tqdm(checked, total=len(recordings), desc=f"checking {directory}", unit="file", delay=2):
            seconds[key] = duration
    if segments_file.exists():
        cut_by, lines = segments_file, read_table(segments_file)
        lengths: dict[str, float] = {}
        for key, (number, line) in lines.items():
            where, fields = f"{segments_file}:{number}", line.split()
            try:
                recording, start, end = fields[0], float(fields[1]), float(fields[2])
            except (IndexError, ValueError):
                raise UserError(f"{where}: {line!r}; expected: ID RECORDING START END") from None
            if recording not in seconds:
                raise UserError(f"{where}: recording {recording} is not in {wav_scp}; add it or remove the line")
            if not 0 <= start < end <= seconds[recording] + 0.5:
                whole = f"{seconds[recording]:.2f} s"
                raise UserError(f"{where}: {start} to {end} s is not within the recording's {whole}; correct the line")
            lengths[key] = end - start
        same_keys(segments_file, lengths, text_file, text)
    else:
        cut_by, lines, lengths = wav_scp, recordings, seconds
    for key, length in lengths.items():
        if length < MIN_SAMPLES / SAMPLE_RATE:
            raise UserError(
                f"{cut_by}:{lines[key][0]}: {key} is {length * 1000:.1f} ms long, "
                f"shorter than one frame ({MIN_SAMPLES * 1000 // SAMPLE_RATE} ms); remove the utterance"
            )
    return len(lengths), sum(lengths.values()) / 3600
