"""Stored targets: a teacher's outputs, which students are trained on instead of running it.

Layout of a directory such as dump/targets/train (one data set):

    hidden_02.scp, ..., logits.scp   utterance -> ark:offset, float matrices (frames, dimension); written by the merge
    manifest.json                    teacher, audio and format of the targets; written last
    audio.sha256                     utterance -> checksum of its audio
    audio.cache                      size and times of the audio files when their checksums were computed
    data/0001.ark                    a shard: for each utterance a matrix of every stream, one after the other
    data/0001.idx                    what it was made from, its checksum and where its matrices are; written last

and beside the data sets codebooks.npz, if hidden layers and logits are stored as codes, see
:mod:`distill.targets.codebooks`.

A shard's index begins with a line of JSON. Each further line is an utterance, the offset of its matrix of every stream
in the order of ``streams``, and the offset where they end. The streams of an utterance are adjacent, so that a training
reads a shard in few long pieces.

Arks are read and written by kaldiio where it is installed and else by omniio; each reads the other's files. Codes are
no Kaldi matrices: a byte for the bytes of a frame, four for the number of frames, and the frames.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.files import atomic_write, json_object, naming, text_lines

try:
    from kaldiio import save_ark
    from kaldiio.matio import read_kaldi as read_matrix
except ImportError:
    from omniio.kaldi import read_object as read_matrix
    from omniio.kaldi import save_ark

# float16 takes 2 bytes a value as Kaldi's 16-bit codes between a matrix's extremes (kTwoByteAuto), since Kaldi's format
# knows no half precision; compressed takes 1 byte as codes between quantiles of a column (kSpeechFeature), as do the
# posteriors beside the codes of codebook.
COMPRESSION: dict[str, int | None] = {"float32": None, "float16": 3, "compressed": 2, "codebook": 2}
NEVER_COMPRESSED = ("posterior_ids", "nbest")
CODES = struct.Struct("<BI")  # bytes of a frame and frames; a Kaldi matrix begins with a byte of 0
CODEBOOKS = "codebooks.npz"
VERSION = 3  # of the layout, in manifest.json
OPEN_ARKS = 64  # shards that a reader keeps open


def hidden_stream(layer: int) -> str:
    """Name of the stream that holds a teacher layer's output, as in hidden_02.scp; layers count from 1."""
    return f"hidden_{layer:02d}"


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
        with naming(self.name):
            return self._file.write(content)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def finish(self) -> list[int]:
        """Put the file on the disk and close it; its size and checksum."""
        with naming(self.name):
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
            self._file.close()
        return [size, self.crc]


def ark_path(shard: Path) -> Path:
    """File of a shard's matrices; ``shard`` is a path such as data/0001."""
    return shard.with_name(f"{shard.name}.ark")


def index_path(shard: Path) -> Path:
    """File of a shard's index."""
    return shard.with_name(f"{shard.name}.idx")


class TargetWriter:
    """Write one shard: matrices of several streams for each utterance.

    Used as a context manager. The shard's index appears when the block ends without an error; until then the shard
    counts as missing and is written again.

    Args:
        shard: such as dump/targets/train/data/0001; its files are replaced.
        dtype: float32, float16, compressed or codebook (see COMPRESSION).
        about: noted in the index, for :func:`shard_done`.
    """

    def __init__(self, shard: str | Path, dtype: str, about: Mapping[str, Any]) -> None:
        self.shard = Path(shard)
        self.compression = COMPRESSION[dtype]
        self.about = dict(about)
        self.streams: list[str] = []
        self.offsets: dict[str, list[int]] = {}

    def __enter__(self) -> TargetWriter:
        self.shard.parent.mkdir(parents=True, exist_ok=True)
        index_path(self.shard).unlink(missing_ok=True)
        self._ark = Ark(ark_path(self.shard))
        return self

    def write(self, utterance: str, matrices: Mapping[str, np.ndarray]) -> None:
        """Add an utterance's (frames, dimension) matrix of every stream; each utterance has the same streams.

        Codes are matrices of uint8 with at least one column.
        """
        self.streams = self.streams or list(matrices)
        offsets = self.offsets[utterance] = []
        for stream in self.streams:
            if matrices[stream].dtype == np.uint8:
                frames, width = matrices[stream].shape
                offsets.append(self._ark.tell())
                self._ark.write(CODES.pack(width, frames) + matrices[stream].tobytes())
                continue
            key = f"{utterance}/{stream}"
            offsets.append(self._ark.tell() + len(key.encode()) + 1)
            matrix = np.ascontiguousarray(matrices[stream], dtype=np.float32)
            method = None if stream in NEVER_COMPRESSED else self.compression
            save_ark(self._ark, {key: matrix}, compression_method=method)
        offsets.append(self._ark.tell())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ark = self._ark.finish()
        if kind is not None:
            return
        lines = (f"{u} {' '.join(map(str, self.offsets[u]))}\n" for u in sorted(self.offsets, key=str.encode))
        body = "".join(lines).encode()
        index = [len(body), zlib.crc32(body)]
        header = json.dumps({**self.about, "streams": self.streams, "ark": ark, "index": index}, sort_keys=True)
        with atomic_write(index_path(self.shard), "wb") as stream:
            stream.write(header.encode() + b"\n" + body)


def shard_done(shard: str | Path, about: Mapping[str, Any]) -> bool:
    """Whether a shard is complete and its index agrees with ``about``."""
    header = read_header(Path(shard))
    return header is not None and all(header.get(key) == value for key, value in about.items())


def read_header(shard: Path) -> dict[str, Any] | None:
    """First line of a shard's index; None if there is none or it cannot be read."""
    try:
        with open(index_path(shard), "rb") as stream:
            header = json.loads(stream.readline())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(header, dict) or not isinstance(header.get("streams"), list):
        return None
    pairs = [header.get(name) for name in ("ark", "index")]
    numbers = [pair if isinstance(pair, list) else [] for pair in pairs]
    return header if all(len(pair) == 2 and all(isinstance(x, int) for x in pair) for pair in numbers) else None


def read_index(shard: Path) -> tuple[list[str], list[bytes]]:
    """Streams of a complete shard and the lines of its index, sorted by utterance.

    Raises:
        UserError: the index is damaged.
    """
    path, header = index_path(shard), read_header(shard)
    if header is None:
        raise UserError(f"{path}: missing or damaged; extract again (stage 8)")
    with open(path, "rb") as stream:
        stream.readline()
        body = stream.read()
    if [len(body), zlib.crc32(body)] != header["index"]:
        raise UserError(f"{path}: not the lines that were written; extract again (stage 8)")
    return header["streams"], body.splitlines()


def file_crc(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


class StoredTargets:
    """Reads the matrices of a data set's shards.

    Args:
        directory: such as dump/targets/train.

    Attributes:
        streams: names of the streams.
        rows: number of each utterance's row in the tables of places.
        shard: (N,) number of an utterance's shard, from 0 in the order of their names.
        offsets: (N, streams + 1) where its matrices begin in the shard's ark, and where the last one ends.
        read_ahead: whether a shard that is opened will soon be needed whole.

    Raises:
        UserError: there are no targets, or an index is damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        shards = sorted(index.with_suffix("") for index in (Path(directory) / "data").glob("*.idx"))
        if not shards:
            raise UserError(f"{directory}: no targets; extract them first (stage 8)")
        self.streams: list[str] = []
        self.rows: dict[str, int] = {}
        numbers, offsets = [], []
        for number, shard in enumerate(shards):
            streams, lines = read_index(shard)
            if streams != (self.streams or streams):
                raise UserError(f"{index_path(shard)}: other streams than the other shards; extract again (stage 8)")
            self.streams = streams
            fields = [line.split() for line in lines]
            for line in fields:
                self.rows[line[0].decode()] = len(self.rows)
            numbers.append(np.full(len(fields), number, np.int32))
            offsets.append(np.array([line[1:] for line in fields], np.int64).reshape(-1, len(streams) + 1))
        self.shard, self.offsets = np.concatenate(numbers), np.concatenate(offsets)
        self.read_ahead = False
        self._arks = [ark_path(shard) for shard in shards]
        self._open: OrderedDict[int, int] = OrderedDict()  # file descriptor by shard, the last used at the end

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the interpreter's end os may be gone
        for descriptor in getattr(self, "_open", {}).values():
            close(descriptor)

    def size(self) -> int:
        """Bytes of all shards."""
        return sum(ark.stat().st_size for ark in self._arks if ark.is_file())

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            if len(self._open) >= OPEN_ARKS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self._arks[shard], os.O_RDONLY)
            if self.read_ahead:
                os.posix_fadvise(self._open[shard], 0, 0, os.POSIX_FADV_WILLNEED)
        self._open.move_to_end(shard)
        return self._open[shard]

    def read(self, utterance: str, stream: int) -> np.ndarray:
        """An utterance's (frames, dimension) matrix of the stream with this number, float32, or int16 of codes."""
        row = self.rows[utterance]
        start, end = self.offsets[row, stream : stream + 2].tolist()
        shard = int(self.shard[row])
        data = os.pread(self._descriptor(shard), end - start, start)
        if len(data) < end - start:
            raise UserError(f"{self._arks[shard]}: cut off; extract again (stage 8)")
        if data[0]:
            width, frames = CODES.unpack_from(data)
            codes = np.frombuffer(data, np.uint8, width * frames, CODES.size)
            return codes.reshape(frames, width).astype(np.int16)
        return read_matrix(io.BytesIO(data))


class StoredStream(Mapping[str, np.ndarray]):
    """A stream's matrices by utterance, (frames, dimension), each read when it is asked for."""

    def __init__(self, targets: StoredTargets, stream: str) -> None:
        self._targets, self._stream = targets, targets.streams.index(stream)

    def __getitem__(self, utterance: str) -> np.ndarray:
        return self._targets.read(utterance, self._stream)

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets.rows)

    def __len__(self) -> int:
        return len(self._targets.rows)


def read_targets(directory: str | Path, stream: str, targets: StoredTargets | None = None) -> StoredStream:
    """A stream of a data set; ``targets`` are those of the same directory, if they were opened before."""
    if not (Path(directory) / f"{stream}.scp").is_file():
        raise UserError(f"{Path(directory) / f'{stream}.scp'}: not found; extract the targets first (stage 8)")
    targets = targets or StoredTargets(directory)
    if stream not in targets.streams:
        raise UserError(f"{directory}: the shards have no stream {stream}; extract again (stage 8)")
    return StoredStream(targets, stream)


def shards_checksum(directory: Path, names: Iterable[str]) -> str:
    """SHA-256 of what complete shards hold, by the checksums in their indexes."""
    headers = ((name, read_header(directory / "data" / name)) for name in names)
    contents = [[name, header and [header["ark"], header["index"]]] for name, header in headers]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def merge(directory: str | Path, names: Sequence[str], manifest: Mapping[str, Any], audio: Mapping[str, str]) -> None:
    """Write the scps of complete shards in one pass, check that every utterance is there, and write the manifest last.

    Args:
        names: of the shards, whose utterances are sorted, within a shard and from one to the next.
        manifest: its content but for ``merged``, the checksums of what is written here.
        audio: checksum of every utterance's audio.
    """
    directory = Path(directory)
    (directory / "manifest.json").unlink(missing_ok=True)
    for entry in (directory / "data").iterdir():
        if entry.is_dir():  # of an earlier layout
            shutil.rmtree(entry)
        elif entry.suffix in (".ark", ".idx") and entry.stem not in names:  # of an earlier, larger data set
            entry.unlink()
    for old in directory.glob("*.scp"):
        if old.stem not in manifest["streams"]:
            old.unlink()
    files: dict[str, list[int]] = {}
    written: set[str] = set()
    with ExitStack() as stack:
        scps = {s: stack.enter_context(atomic_write(directory / f"{s}.scp")) for s in manifest["streams"]}
        for name in names:
            shard = directory / "data" / name
            streams, lines = read_index(shard)
            rows = [line.decode().split() for line in lines]
            written.update(row[0] for row in rows)
            for stream, scp in scps.items():
                column, ark = streams.index(stream) + 1, ark_path(shard)
                scp.write("".join(f"{row[0]} {ark}:{row[column]}\n" for row in rows))
        if lacking := sorted(audio.keys() - written):
            raise UserError(
                f"{directory}: lacks {len(lacking)} utterances such as {lacking[0]}; extract again (stage 8)"
            )
    write_two_columns(directory / "audio.sha256", audio)
    for name in (*(f"{stream}.scp" for stream in manifest["streams"]), "audio.sha256"):
        files[name] = [(directory / name).stat().st_size, file_crc(directory / name)]
    merged = {"files": files, "shards": shards_checksum(directory, names)}
    with atomic_write(directory / "manifest.json") as stream_out:
        json.dump({**manifest, "merged": merged}, stream_out, indent=1, sort_keys=True)


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
    if manifest.get("version") != VERSION:
        raise UserError(f"{path}: targets in the layout of another version; {cure}")
    return manifest
