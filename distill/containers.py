"""Whether an audio file is whole: the lengths that its container gives, against the file itself.

libsndfile reads what is there of a truncated file, mostly without a word, and believes a header whose length is wrong.
Formats that do not say where their audio ends are refused by :func:`check_format`.
"""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn, TypeAlias

from distill.errors import UserError

# Lengths in the header of a file that was written to a pipe, where the real length was not known yet.
UNKNOWN_SIZES = range(0x7FFFF000, 0x100000000)
FOREIGN = 128  # bytes behind the audio that are no chunk, as some programs leave there; with more, a length is wrong
W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of the identifiers of its chunks, after four letters
Order: TypeAlias = Literal["little", "big"]
Chunk: TypeAlias = tuple[bytes, int, int]  # identifier, length of the content, and where it begins


def check_whole(path: Path) -> None:
    """Refuse an audio file that is truncated, has a gap, or whose header gives another length than it has.

    :func:`check_format` refuses the formats for which this knows no way.
    Of MP3 the number of samples is checked in reading alone, as far as its header has it.

    Raises:
        UserError: it is not whole.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(16)
        for magic, check in CHECKS.items():
            if re.match(magic, start, re.DOTALL):
                check(path, stream, size)


def _cut_off(path: Path, there: int, promised: int) -> NoReturn:
    raise UserError(f"{path}: is cut off, {max(0, there)} of {promised} bytes of audio; copy it again")


def _no_audio(path: Path) -> NoReturn:
    raise UserError(f"{path}: is cut off within its header, there is no audio data; copy it again")


def _too_long(path: Path, length: int, more: int) -> NoReturn:
    raise UserError(f"{path}: its header gives {length} bytes of audio, but {more} more follow; write the file again")


def _chunks(
    stream: BinaryIO, begin: int, name: int, count: int, order: Order, align: int, header: int = 0, long: int = 0
) -> Iterator[Chunk]:
    """Chunks of a file.

    Args:
        begin: where the first one is.
        name, count: bytes of a chunk's identifier and of its length, in this byte ``order``.
        align: chunks begin at multiples of this.
        header: bytes of the length that are the chunk's header.
        long: length of ``data`` where its own says that it does not fit there.
    """
    stream.seek(begin)
    while len(head := stream.read(name + count)) == name + count:
        length = int.from_bytes(head[name:], order) - header
        if long and head[:name] == b"data" and length == 0xFFFFFFFF:
            length = long
        here = stream.tell()
        yield head[:name], max(0, length), here
        if length < 0:
            return
        stream.seek(here + length + -length % align)


def _check_data(
    path: Path, chunks: Iterator[Chunk], size: int, data: bytes, plain: bytes, unknown: range | None
) -> None:
    """Check that the chunk ``data`` is within the file, and that what follows it are chunks.

    Args:
        plain: pattern of the identifiers of chunks.
        unknown: lengths of ``data`` that mean: to the end of the file.
    """
    audio: tuple[int, int] | None = None
    for name, length, here in chunks:
        if audio is not None and not re.fullmatch(plain, name, re.DOTALL):
            if (more := size - sum(audio)) > FOREIGN:
                _too_long(path, audio[0], more)
            return
        if name == data:
            if unknown is not None and length in unknown:
                return
            if here + length > size:
                _cut_off(path, size - here, length)
            audio = length, here
    if audio is None:
        _no_audio(path)


def _riff(path: Path, stream: BinaryIO, size: int) -> None:
    stream.seek(0)
    order: Order = "big" if stream.read(4) == b"RIFX" else "little"
    _check_data(path, _chunks(stream, 12, 4, 4, order, 2), size, b"data", rb"[ -~]{4}", UNKNOWN_SIZES)


def _rf64(path: Path, stream: BinaryIO, size: int) -> None:
    """RIFF whose length, where it does not fit into 32 bits, is in a chunk before."""
    stream.seek(12)
    head = stream.read(32)
    if len(head) < 32 or head[:4] != b"ds64":
        _no_audio(path)
    length = int.from_bytes(head[16:24], "little")
    _check_data(path, _chunks(stream, 12, 4, 4, "little", 2, long=length), size, b"data", rb"[ -~]{4}", None)


def _w64(path: Path, stream: BinaryIO, size: int) -> None:
    chunks = _chunks(stream, 40, 16, 8, "little", 8, 24)
    _check_data(path, chunks, size, b"data" + W64_TAIL, rb"[ -~]{4}.{12}", None)


def _aiff(path: Path, stream: BinaryIO, size: int) -> None:
    _check_data(path, _chunks(stream, 12, 4, 4, "big", 2), size, b"SSND", rb"[ -~]{4}", None)
    sizes: dict[bytes, tuple[int, bytes]] = {}
    for name, length, here in _chunks(stream, 12, 4, 4, "big", 2):
        if name in (b"COMM", b"SSND"):
            stream.seek(here)
            sizes[name] = length, stream.read(min(26, length))
    if b"COMM" not in sizes or len(sizes[b"COMM"][1]) < 8:
        _no_audio(path)
    common, (there, _) = sizes[b"COMM"][1], sizes[b"SSND"]
    channels, frames, bits = (int.from_bytes(common[a:b], "big") for a, b in ((0, 2), (2, 6), (6, 8)))
    plain = common[18:22] in (
        b"",
        b"NONE",
        b"twos",
        b"sowt",
        b"fl32",
        b"FL32",
        b"fl64",
        b"FL64",
        b"raw ",
        b"in24",
        b"in32",
    )
    promised = channels * frames * -(-bits // 8)
    if plain and promised != there - 8:
        (_cut_off if promised > there - 8 else _too_long)(path, *sorted((there - 8, promised)))


def _caf(path: Path, stream: BinaryIO, size: int) -> None:
    _check_data(path, _chunks(stream, 8, 4, 8, "big", 1), size, b"data", rb"[ -~]{4}", None)


def _au(path: Path, stream: BinaryIO, size: int) -> None:
    stream.seek(0)
    order: Order = "big" if stream.read(4) == b".snd" else "little"
    offset, length = (int.from_bytes(stream.read(4), order) for _ in range(2))
    if size < 24 or offset < 24:
        _no_audio(path)
    if length == 0xFFFFFFFF:  # written to a pipe
        return
    if offset + length > size:
        _cut_off(path, size - offset, length)
    if offset + length + FOREIGN < size:
        _too_long(path, length, size - offset - length)


def _nist(path: Path, stream: BinaryIO, size: int) -> None:
    """NIST's SPHERE, as far as it is not compressed; what has no lengths is no audio, as libsndfile says."""
    stream.seek(0)
    text = stream.read(1024).decode("latin-1")
    fields = {m[1]: m[2] for m in re.finditer(r"^(\w+) -\w+ (\S+)$", text, re.MULTILINE)}
    names = ("sample_count", "channel_count", "sample_n_bytes")
    numbers = [text[8:16].strip(), *(fields.get(name, "") for name in names)]
    plain = fields.get("sample_coding", "pcm") in ("pcm", "ulaw", "mu-law", "alaw")
    if plain and all(number.isdecimal() and len(number) < 16 for number in numbers):
        header, count, channels, width = map(int, numbers)
        if header + count * channels * width > size:
            _cut_off(path, size - header, count * channels * width)


def _ogg(path: Path, stream: BinaryIO, size: int) -> None:
    """Pages of Ogg: each whole and undamaged, none missing, times that do not fall, and at the end a last one."""
    open_streams: dict[bytes, tuple[int, int]] = {}  # number and time of the last page, by serial number
    stream.seek(0)
    while head := stream.read(27):
        if head[:4] != b"OggS" or len(head) < 27 or len(table := stream.read(head[26])) < head[26]:
            raise UserError(f"{path}: is cut off or damaged, an Ogg page is not whole; copy it again")
        body = stream.read(sum(table))
        if len(body) < sum(table):
            raise UserError(f"{path}: is cut off within an Ogg page; copy it again")
        time, serial, number = int.from_bytes(head[6:14], "little", signed=True), head[14:18], head[18:22]
        page = int.from_bytes(number, "little")
        if ogg_checksum(head[:22] + bytes(4) + head[26:] + table + body) != int.from_bytes(head[22:26], "little"):
            raise UserError(f"{path}: Ogg page {page} is damaged; copy it again")
        before, earliest = open_streams.get(serial, (page - 1, 0))
        if page != before + 1 or (time >= 0 and time < earliest):
            raise UserError(f"{path}: Ogg page {page} does not follow page {before}; copy it again")
        if head[5] & 4:  # the last page of this stream
            open_streams.pop(serial, None)
        else:
            open_streams[serial] = page, max(earliest, time)
    if open_streams:
        raise UserError(f"{path}: is cut off, its last Ogg page is missing; copy it again")


REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # bits of each byte in the other order


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of an Ogg page: zlib's, but with the bits of bytes in the other order and no inversion (RFC 3533)."""
    crc = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(REVERSED), "big")


def crc_of(data: bytes, polynomial: int, bits: int) -> int:
    """CRC with these ``bits``, most significant bit first, that begins with 0, as FLAC has them."""
    crc, top, all_bits = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1 ^ (polynomial if crc & top else 0)) & all_bits
    return crc


def _flac(path: Path, stream: BinaryIO, size: int) -> None:
    """The last frame of FLAC (RFC 9639) ends where the header says that the audio ends.

    A file that does not end with a frame, such as one with tags after the audio, is not judged.
    """
    stream.seek(8)
    info = stream.read(34)
    if len(info) < 34:
        _no_audio(path)
    block, longest = int.from_bytes(info[2:4], "big"), int.from_bytes(info[7:10], "big")
    fixed, total = info[:2] == info[2:4], int.from_bytes(info[13:18], "big") & ((1 << 36) - 1)
    stream.seek(max(0, size - (longest or 1 << 16) - 16))
    end = stream.read()
    for at in reversed([found.start() for found in re.finditer(rb"\xff[\xf8\xf9]", end)]):
        frame = end[at:]
        parsed = flac_frame(frame)
        # So rarely is something else taken for a frame's header that its whole checksum need not be computed often.
        if parsed is None or (fixed and parsed[1] > block):
            continue
        number, samples = parsed
        last = (number * block if frame[1] == 0xF8 else number) + samples
        if last > total and len(frame) <= 1 << 18 and crc_of(frame, 0x8005, 16) == 0:
            raise UserError(f"{path}: its header gives {total} samples, but it has {last}; write the file again")
        return


def flac_frame(frame: bytes) -> tuple[int, int] | None:
    """Number (of the frame, or of its first sample) and samples in the header of a FLAC frame; None: it is none."""
    if len(frame) < 16 or frame[3] & 1 or frame[2] >> 4 == 0 or frame[2] & 15 == 15 or frame[3] >> 4 > 10:
        return None
    code, first = frame[2] >> 4, frame[4]
    more = 0 if first < 0x80 else next((n for n in range(1, 7) if not first << n & 0x40), 7)
    if first & 0xC0 == 0x80 or more > 6:
        return None
    number = first & (0x7F >> (more + 1 if more else 0))
    for byte in frame[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    at = 5 + more
    extra = {6: 1, 7: 2}.get(code, 0)
    samples = int.from_bytes(frame[at : at + extra], "big") + 1
    if not extra:
        samples = 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)
    at += extra + {12: 1, 13: 2, 14: 2}.get(frame[2] & 15, 0)
    return (number, samples) if len(frame) > at and crc_of(frame[: at + 1], 0x07, 8) == 0 else None


def check_format(path: Path, name: str) -> None:
    """Refuse a file in one of the formats (libsndfile's name) that have no check here."""
    if name not in FORMATS:
        raise UserError(
            f"{path}: is {name}, in which a truncated file looks like a whole one; convert it: "
            f"sox {shlex.quote(str(path))} OUT.flac"
        )


# By the beginning of a file
CHECKS: dict[bytes, Callable[[Path, BinaryIO, int], None]] = {
    rb"RIF[FX]....WAVE": _riff,
    rb"RF64....WAVE": _rf64,
    rb"riff.{12}": _w64,
    rb"FORM....AIF[FC]": _aiff,
    rb"caff": _caf,
    rb"\.snd|dns\.": _au,
    rb"NIST_1A\n": _nist,
    rb"OggS": _ogg,
    rb"fLaC": _flac,
}
FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "NIST", "OGG", "FLAC", "MP3", "HTK")
