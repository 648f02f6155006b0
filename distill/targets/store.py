"""Teacher targets on disk: Kaldi arks of a bounded size, one sorted scp for each stream, and a manifest.

Layout of DIR (one data set):

    hidden_02.scp, ..., logits.scp   utterance -> ark:offset, float matrices (frames, dimension); written by the merge
    manifest.json                    teacher, audio and format of the targets; written last
    audio.sha256                     utterance -> checksum of its audio
    data/0001/                       a shard: its arks, their scps and done.json, written last, with their checksums

Arks are read and written by kaldiio where it is installed and else by omniio; each reads the other's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.files import atomic_write, json_object, text_lines

try:
    from kaldiio import load_scp, save_ark
except ImportError:
    from omniio.kaldi import load_scp, save_ark

# float16 takes 2 bytes a value as Kaldi's 16-bit codes between a matrix's extremes (kTwoByteAuto), since Kaldi's format
# knows no half precision; compressed takes 1 byte as codes between quantiles of a column (kSpeechFeature).
COMPRESSION: dict[str, int | None] = {"float32": None, "float16": 3, "compressed": 2}
NEVER_COMPRESSED = ("posterior_ids", "nbest")
SHARD_UTTERANCES = 64
ARK_BYTES = 1 << 30
CHECKED_BYTES = 1 << 16


def hidden_stream(layer: int) -> str:
    """Name of the stream that holds a teacher layer's output, as in hidden_02.scp; layers count from 1."""
    return f"hidden_{layer:02d}"


def audio_checksum(location: str) -> str:
    """SHA-256 (16 hexadecimal digits) of an audio file's size, first and last 64 KiB.

    Its name and time do not count, so copied data still match. ``FILE:OFFSET`` means 64 KiB of an ark from there on.
    """
    path, offset = location, 0
    if not os.path.exists(path) and ":" in path:
        path, _, digits = location.rpartition(":")
        offset = int(digits) if digits.isdigit() else 0
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(offset)
            digest.update(stream.read(CHECKED_BYTES))
            if offset == 0 and size > CHECKED_BYTES:
                stream.seek(max(CHECKED_BYTES, size - CHECKED_BYTES))
                digest.update(stream.read())
                digest.update(str(size).encode())
    except OSError as error:
        raise UserError(f"{path}: audio cannot be read ({error.strerror}); correct wav.scp") from error
    return digest.hexdigest()[:16]


def read_two_columns(path: str | Path) -> dict[str, str]:
    """A Kaldi file of a key and a value on each line."""
    pairs: dict[str, str] = {}
    for number, line in text_lines(path, "expected lines of an utterance id and a value"):
        fields = line.strip().split(maxsplit=1)
        if len(fields) != 2:
            raise UserError(f"{path}:{number}: expected an utterance id and a value")
        if fields[0] in pairs:
            raise UserError(f"{path}:{number}: {fields[0]} is there twice; keep one")
        pairs[fields[0]] = fields[1]
    return pairs


def write_two_columns(path: str | Path, pairs: Mapping[str, str]) -> None:
    """Write a Kaldi file of two columns, sorted by key as in the C locale (``sort``'s order under LC_ALL=C)."""
    with atomic_write(path) as stream:
        for key in sorted(pairs, key=str.encode):
            stream.write(f"{key} {pairs[key]}\n")


class Ark:
    """A binary file for writing that keeps the CRC-32 of its content."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.crc = 0
        self._file = open(path, "wb")

    def write(self, content: bytes) -> int:
        """Append."""
        self.crc = zlib.crc32(content, self.crc)
        return self._file.write(content)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def finish(self) -> list[int]:
        """Put the file on the disk and close it; its size and checksum."""
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        return [size, self.crc]


class TargetWriter:
    """Write one shard: matrices of several streams for each utterance.

    Used as a context manager. The shard's done.json appears when the block ends without an error; until then the shard
    counts as missing and is written again.

    Args:
        directory: of the shard, such as dump/targets/train/data/0001; its content is replaced.
        dtype: float32, float16 or compressed (see COMPRESSION).
        about: noted in done.json, for :func:`shard_done`.
        ark_bytes: a stream goes on in a further ark file when its ark has reached this size.
    """

    def __init__(self, directory: str | Path, dtype: str, about: Mapping[str, Any], ark_bytes: int = ARK_BYTES) -> None:
        self.directory = Path(directory)
        self.compression = COMPRESSION[dtype]
        self.about = dict(about)
        self.ark_bytes = ark_bytes
        self.arks: dict[str, Ark] = {}
        self.finished: dict[str, list[int]] = {}
        self.numbers: dict[str, int] = {}
        self.scps: dict[str, dict[str, str]] = {}

    def __enter__(self) -> TargetWriter:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        return self

    def write(self, utterance: str, matrices: Mapping[str, np.ndarray]) -> None:
        """Add an utterance's (frames, dimension) matrix of every stream."""
        for stream, matrix in matrices.items():
            ark = self.arks.get(stream)
            if ark is None or ark.tell() >= self.ark_bytes:
                if ark is not None:
                    self._finish(ark)
                self.numbers[stream] = self.numbers.get(stream, 0) + 1
                ark = Ark(self.directory / f"{stream}.{self.numbers[stream]}.ark")
                self.arks[stream] = ark
            offset = ark.tell() + len(utterance.encode()) + 1
            matrix = np.ascontiguousarray(matrix, dtype=np.float32)
            method = None if stream in NEVER_COMPRESSED else self.compression
            save_ark(ark, {utterance: matrix}, compression_method=method)
            self.scps.setdefault(stream, {})[utterance] = f"{ark.name}:{offset}"

    def _finish(self, ark: Ark) -> None:
        self.finished[Path(ark.name).name] = ark.finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ark in self.arks.values():
            self._finish(ark)
        if kind is not None:
            return
        for stream, scp in self.scps.items():
            path = self.directory / f"{stream}.scp"
            write_two_columns(path, scp)
            self.finished[path.name] = [path.stat().st_size, file_crc(path)]
        with atomic_write(self.directory / "done.json") as done:
            content = {**self.about, "streams": sorted(self.scps), "files": self.finished}
            json.dump(content, done, indent=1, sort_keys=True)


def shard_done(directory: str | Path, about: Mapping[str, Any]) -> bool:
    """Whether a shard is complete and its done.json agrees with ``about``."""
    done = read_done(Path(directory))
    return done is not None and all(done.get(key) == value for key, value in about.items())


def read_done(shard: Path) -> dict[str, Any] | None:
    """Content of a shard's done.json; None if there is none or it cannot be read."""
    try:
        done = json.loads((shard / "done.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    files = done.get("files") if isinstance(done, dict) else None
    if not isinstance(files, dict):
        return None
    numbers = [entry if isinstance(entry, list) else [] for entry in files.values()]
    return done if all(len(pair) == 2 and all(isinstance(x, int) for x in pair) for pair in numbers) else None


def file_crc(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def read_targets(directory: str | Path, stream: str) -> Mapping[str, np.ndarray]:
    """A stream's matrices by utterance, (frames, dimension) float32, each read when it is asked for."""
    path = Path(directory) / f"{stream}.scp"
    if not path.is_file():
        raise UserError(f"{path}: not found; extract the targets first (stage 8)")
    return load_scp(str(path))


def shards(utterances: Iterable[str], size: int = SHARD_UTTERANCES) -> list[list[str]]:
    """Cut sorted utterances into shards, the same ones whatever the number of jobs."""
    ordered = sorted(utterances, key=str.encode)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def joined_scp(directory: Path, names: Iterable[str], stream: str) -> dict[str, str]:
    """A stream's utterances and places in the arks of these shards."""
    joined: dict[str, str] = {}
    for name in names:
        joined.update(read_two_columns(directory / "data" / name / f"{stream}.scp"))
    return joined


def merge(directory: str | Path, names: Sequence[str], manifest: Mapping[str, Any], audio: Mapping[str, str]) -> None:
    """Join the scps of complete shards, check that every utterance is there, and write the manifest last."""
    directory = Path(directory)
    (directory / "manifest.json").unlink(missing_ok=True)
    for shard in (directory / "data").iterdir():
        if shard.name not in names:  # of an earlier, larger data set
            shutil.rmtree(shard)
    for old in directory.glob("*.scp"):
        if old.stem not in manifest["streams"]:
            old.unlink()
    for stream in manifest["streams"]:
        joined = joined_scp(directory, names, stream)
        if joined.keys() != audio.keys():
            lacking = sorted(audio.keys() - joined.keys())
            raise UserError(f"{directory}: {stream} lacks {len(lacking)} utterances; extract them again (stage 8)")
        write_two_columns(directory / f"{stream}.scp", joined)
    write_two_columns(directory / "audio.sha256", audio)
    with atomic_write(directory / "manifest.json") as stream_out:
        json.dump(manifest, stream_out, indent=1, sort_keys=True)


def audio_list_checksum(audio: Mapping[str, str]) -> str:
    """SHA-256 of a whole data set's utterances and audio checksums."""
    lines = "".join(f"{key} {audio[key]}\n" for key in sorted(audio, key=str.encode))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """A data set's manifest.json."""
    path = Path(directory) / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path}: not found; extract the targets first (stage 8)")
    cure = "extract the targets again (stage 8)"
    manifest = json_object(path.read_text(encoding="utf-8", errors="replace"), str(path), cure)
    kinds = {"teacher": str, "audio": str, "streams": dict | list}
    if wrong := [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]:
        raise UserError(f"{path}: not a manifest, {wrong[0]} is missing or damaged; {cure}")
    return manifest
