"""Stored targets: a teacher's outputs, which students are trained on instead of running it.

Layout of a directory such as dump/targets/train (one data set):

    data/0001.ark                    a shard: for each utterance a matrix of every stream, one after the other
    data/0001.idx                    what it was made from, its checksum and what is in it; written last
    audio.cache                      size and times of the audio files when their checksums were computed
    hidden_02.scp, ..., logits.scp   utterance -> ark:offset, for Kaldi's tools; written by the merge
    manifest.json                    teacher and format of the targets; written last

and, if hidden layers and logits are stored as codes, no scps, but codebooks.npz beside the data sets, see
:mod:`distill.targets.codebooks`.

A shard's index begins with a line of JSON. The rest is compressed by zlib: a line for every utterance, in the order of
the ark, of its id, the checksum of its audio, and the bytes of the ark that each of ``streams`` takes. The streams of
an utterance are adjacent, so that a training reads a shard in few long pieces.

Before a Kaldi matrix stands its key, ``UTTERANCE/STREAM`` and a space. Arks are read and written by kaldiio where it is
installed and else by omniio; each reads the other's files. Codes are bytes without a key, frame by frame; ``widths`` in
the line of JSON are the bytes of a frame of each stream, 0 for Kaldi matrices.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

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
CODEBOOKS = "codebooks.npz"
VERSION = 4  # of the layout, in manifest.json
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


def key_of(utterance: str, stream: str) -> str:
    """What stands before a Kaldi matrix, but for the space after it."""
    return f"{utterance}/{stream}"


class TargetWriter:
    """Write one shard: matrices of several streams for each utterance.

    Used as a context manager. The shard's index appears when the block ends without an error; until then the shard
    counts as missing and is written again.

    Args:
        shard: such as dump/targets/train/data/0001; its files are replaced.
        dtype: float32, float16, compressed or codebook (see COMPRESSION).
        about: noted in the index, for :func:`shard_done`.
        audio: checksum of every utterance's audio, 16 hexadecimal digits.
    """

    def __init__(self, shard: str | Path, dtype: str, about: Mapping[str, Any], audio: Mapping[str, str]) -> None:
        self.shard = Path(shard)
        self.compression = COMPRESSION[dtype]
        self.about, self.audio = dict(about), audio
        self.streams: list[str] = []
        self.widths: list[int] = []
        self.lines: list[str] = []

    def __enter__(self) -> TargetWriter:
        self.shard.parent.mkdir(parents=True, exist_ok=True)
        index_path(self.shard).unlink(missing_ok=True)
        self._ark = Ark(ark_path(self.shard))
        return self

    def write(self, utterance: str, matrices: Mapping[str, np.ndarray]) -> None:
        """Add an utterance's (frames, dimension) matrix of every stream; each utterance has the same streams.

        Codes are matrices of uint8 with at least one column, as many for each utterance.
        """
        widths = [matrix.shape[1] if matrix.dtype == np.uint8 else 0 for matrix in matrices.values()]
        if not self.lines:
            self.streams, self.widths = list(matrices), widths
        if (list(matrices), widths) != (self.streams, self.widths):
            raise ValueError(f"{self.shard}: {utterance} has other streams than the utterances before")
        sizes = []
        for stream, matrix in matrices.items():
            start = self._ark.tell()
            if matrix.dtype == np.uint8:
                self._ark.write(matrix.tobytes())
            else:
                method = None if stream in NEVER_COMPRESSED else self.compression
                contiguous = np.ascontiguousarray(matrix, dtype=np.float32)
                save_ark(self._ark, {key_of(utterance, stream): contiguous}, compression_method=method)
            sizes.append(self._ark.tell() - start)
        self.lines.append(f"{utterance} {self.audio[utterance]} {' '.join(map(str, sizes))}\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ark = self._ark.finish()
        if kind is not None:
            return
        body = zlib.compress("".join(self.lines).encode(), 9)
        contents = {"streams": self.streams, "widths": self.widths, "ark": ark, "index": [len(body), zlib.crc32(body)]}
        with atomic_write(index_path(self.shard), "wb") as stream:
            stream.write(json.dumps({**self.about, **contents}, sort_keys=True).encode() + b"\n" + body)


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
    if not isinstance(header, dict):
        return None
    for name in ("ark", "index", "widths"):
        numbers = header.get(name)
        if not isinstance(numbers, list) or not all(isinstance(x, int) and 0 <= x < 1 << 63 for x in numbers):
            return None
    if not isinstance(header.get("streams"), list) or len(header["streams"]) != len(header["widths"]):
        return None
    return header if len(header["ark"]) == len(header["index"]) == 2 else None


class Index(NamedTuple):
    """What a shard holds.

    Attributes:
        streams: names, in the order of an utterance's matrices.
        widths: bytes of a frame of each stream of codes, 0 of Kaldi matrices.
        utterances: N ids, in the order of the ark.
        audio: (N,) uint64, the checksums of their audio.
        starts: (N,) int64, where their bytes begin in the ark.
        sizes: (N, streams) bytes that each stream takes there, those of a key included, in the narrowest type.
    """

    streams: list[str]
    widths: list[int]
    utterances: list[str]
    audio: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def read_index(shard: Path) -> Index:
    """What a complete shard holds.

    Raises:
        UserError: the index is damaged.
    """
    path, header = index_path(shard), read_header(shard)
    if header is None:
        raise UserError(f"{path}: missing or damaged; extract again (stage 8)")
    with open(path, "rb") as stream:
        stream.readline()
        body = stream.read()
    damaged = UserError(f"{path}: not the lines that were written; extract again (stage 8)")
    if [len(body), zlib.crc32(body)] != header["index"]:
        raise damaged
    streams, widths = header["streams"], header["widths"]
    try:
        fields = zlib.decompress(body).split()
        columns = 2 + len(streams)
        utterances = b" ".join(fields[::columns]).decode().split(" ") if fields else []
        audio = np.frombuffer(bytes.fromhex(b"".join(fields[1::columns]).decode()), ">u8").astype(np.uint64)
        del fields[::columns], fields[:: columns - 1]
        sizes = np.array(fields, np.int64).reshape(len(utterances), len(streams))
    except (zlib.error, ValueError, OverflowError):
        raise damaged from None
    whole_frames = not (sizes % np.maximum(widths, 1)).any()
    if len(audio) != len(utterances) or (sizes < 0).any() or sizes.sum() != header["ark"][0] or not whole_frames:
        raise damaged
    totals = sizes.sum(1)
    narrow = sizes.astype(np.min_scalar_type(sizes.max(initial=0)))
    return Index(streams, widths, utterances, audio, totals.cumsum() - totals, narrow)


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
        directory: of the data set.
        shards: names of the shards, sorted.
        streams: names of the streams.
        widths: bytes of a frame of each stream of codes, 0 of Kaldi matrices.
        rows: number of each utterance's row in the tables that follow.
        shard: (N,) number of an utterance's shard, from 0.
        audio: (N,) uint64, the checksum of its audio.
        starts: (N,) where its matrices begin in the shard's ark.
        sizes: (N, streams) bytes that each takes there, see :class:`Index`.
        read_ahead: whether a shard that is opened will soon be needed whole.

    Raises:
        UserError: there are no targets, or an index is damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.shards = sorted(index.stem for index in (self.directory / "data").glob("*.idx"))
        if not self.shards:
            raise UserError(f"{directory}: no targets; extract them first (stage 8)")
        self.rows: dict[str, int] = {}
        numbers, audio, starts, sizes = [], [], [], []
        for number, name in enumerate(self.shards):
            shard = self.directory / "data" / name
            index = read_index(shard)
            if number == 0:
                self.streams, self.widths = index.streams, index.widths
            if (index.streams, index.widths) != (self.streams, self.widths):
                raise UserError(f"{index_path(shard)}: other streams than the other shards; extract again (stage 8)")
            for utterance in index.utterances:
                self.rows[utterance] = len(self.rows)
            numbers.append(np.full(len(index.utterances), number, np.int32))
            audio.append(index.audio)
            starts.append(index.starts)
            sizes.append(index.sizes)
        self.shard, self.audio = np.concatenate(numbers), np.concatenate(audio)
        self.starts, self.sizes = np.concatenate(starts), np.concatenate(sizes)
        self.read_ahead = False
        self._arks = [ark_path(self.directory / "data" / name) for name in self.shards]
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
        width, shard = self.widths[stream], int(self.shard[row])
        *before, size = self.sizes[row, : stream + 1].tolist()
        start = int(self.starts[row]) + sum(before)
        end = start + size
        if not width:
            start += len(key_of(utterance, self.streams[stream]).encode()) + 1
        data = os.pread(self._descriptor(shard), end - start, start)
        if len(data) < end - start:
            raise UserError(f"{self._arks[shard]}: cut off; extract again (stage 8)")
        return (
            np.frombuffer(data, np.uint8).reshape(-1, width).astype(np.int16)
            if width
            else read_matrix(io.BytesIO(data))
        )


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
    targets = targets or StoredTargets(directory)
    if stream not in targets.streams:
        raise UserError(f"{directory}: the shards have no stream {stream}; extract again (stage 8)")
    return StoredStream(targets, stream)


def shards_checksum(directory: Path, names: Iterable[str]) -> str:
    """SHA-256 of what complete shards hold, by the checksums in their indexes."""
    headers = ((name, read_header(directory / "data" / name)) for name in names)
    contents = [[name, header and [header["ark"], header["index"]]] for name, header in headers]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def merge(
    directory: str | Path, names: Sequence[str], manifest: Mapping[str, Any], utterances: Collection[str]
) -> None:
    """Write the scps of complete shards in one pass, check that every utterance is there, and write the manifest last.

    Codes are no Kaldi matrices, so that there are no scps of them.

    Args:
        names: of the shards, whose utterances are sorted from one to the next.
        manifest: its content but for ``merged``, the checksums of what is written here and of the shards.
        utterances: of the data set.
    """
    directory = Path(directory)
    (directory / "manifest.json").unlink(missing_ok=True)
    for entry in (directory / "data").iterdir():
        if entry.is_dir():  # of an earlier layout
            shutil.rmtree(entry)
        elif entry.suffix in (".ark", ".idx") and entry.stem not in names:  # of an earlier, larger data set
            entry.unlink()
    streams = [] if manifest["dtype"] == "codebook" else list(manifest["streams"])
    for old in (*directory.glob("*.scp"), directory / "audio.sha256"):  # the latter is of an earlier layout
        if old.stem not in streams:
            old.unlink(missing_ok=True)
    lacking = set(utterances)
    with ExitStack() as stack:
        scps = {stream: stack.enter_context(atomic_write(directory / f"{stream}.scp")) for stream in streams}
        for name in names:
            shard = directory / "data" / name
            index = read_index(shard)
            lacking.difference_update(index.utterances)
            rows = sorted(range(len(index.utterances)), key=lambda row: index.utterances[row].encode()) if scps else []
            for stream, scp in scps.items():
                before = index.sizes[:, : index.streams.index(stream)].sum(1, dtype=np.int64)
                starts, ark = (index.starts + before).tolist(), ark_path(shard)
                for row in rows:
                    utterance = index.utterances[row]
                    place = starts[row] + len(key_of(utterance, stream).encode()) + 1
                    scp.write(f"{utterance} {ark}:{place}\n")
        if lacking:
            raise UserError(
                f"{directory}: lacks {len(lacking)} utterances such as {min(lacking)}; extract again (stage 8)"
            )
    paths = [directory / f"{stream}.scp" for stream in streams]
    files = {path.name: [path.stat().st_size, file_crc(path)] for path in paths}
    merged = {"files": files, "shards": shards_checksum(directory, names)}
    with atomic_write(directory / "manifest.json") as stream_out:
        json.dump({**manifest, "merged": merged}, stream_out, indent=1, sort_keys=True)


def audio_list_checksum(audio: Mapping[str, str]) -> str:
    """SHA-256 of utterances and the checksums of their audio."""
    lines = "".join(f"{key} {audio[key]}\n" for key in sorted(audio, key=str.encode))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """A data set's manifest.json."""
    path = Path(directory) / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path}: not found; extract the targets first (stage 8)")
    cure = "extract the targets again (stage 8)"
    manifest = json_object(path.read_text(encoding="utf-8", errors="replace"), str(path), cure)
    kinds = {"teacher": str, "streams": dict | list}
    if wrong := [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]:
        raise UserError(f"{path}: not a manifest, {wrong[0]} is missing or damaged; {cure}")
    if manifest.get("version") != VERSION:
        raise UserError(f"{path}: targets in the layout of another version; {cure}")
    return manifest
