"""Are stored targets complete, undamaged, and those of this teacher, this audio and this denominator graph?"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.audio import read_wav_scp
from distill.checkpoints.load import model_checksum
from distill.errors import UserError
from distill.files import sha256
from distill.targets.audio_checksums import AudioChecksums
from distill.targets.store import (
    StoredTargets,
    ark_path,
    file_crc,
    read_header,
    read_index,
    read_manifest,
    shards_checksum,
)

CACHE = "audio.cache"  # beside the manifest


def find_damage(shard: str | Path, contents: bool) -> str | None:
    """What is damaged or missing among the files of a shard, such as data/0001, in words; None if nothing is.

    With ``contents`` every byte is read, otherwise only the index is, and the ark is judged by its size.
    """
    shard = Path(shard)
    header = read_header(shard)
    if header is None:
        return f"{shard}: not complete"
    try:
        read_index(shard)
    except UserError as error:
        return str(error).partition("; extract")[0]
    path, (size, crc) = ark_path(shard), header["ark"]
    actual = path.stat().st_size if path.is_file() else -1
    if actual != size:
        return f"{path}: {'missing' if actual < 0 else f'{actual} bytes'} instead of {size} bytes"
    if contents and (seen := file_crc(path)) != crc:
        return f"{path}: its bytes are not those that were written (CRC-32 {seen:08x} instead of {crc:08x})"
    return None


def find_change(shard: str | Path, about: Mapping[str, Any], audio: Mapping[str, str]) -> str | None:
    """What differs between a complete shard's index and ``about``, in words; None if nothing does.

    ``audio`` holds the present checksums of the shard's utterances; the index those at extraction.

    Raises:
        UserError: the index is damaged.
    """
    shard = Path(shard)
    header = read_header(shard) or {}
    key = next((key for key, value in about.items() if header.get(key) != value), None)
    if key is None:
        return None
    if key == "audio":
        index = read_index(shard)
        before = {u: f"{checksum:016x}" for u, checksum in zip(index.utterances, index.audio.tolist(), strict=True)}
        other = [utterance for utterance in audio if before.get(utterance, audio[utterance]) != audio[utterance]]
        return f"{shard}: " + (f"the audio of {other[0]} has changed" if other else "made of other utterances or audio")
    then, now = header.get(key), about[key]
    if key in ("teacher", "graph"):  # checksums, or None
        then, now = str(then)[:12], str(now)[:12]
    return f"{shard}: made with {key} {then} instead of {now}"


def find_loose_ends(directory: str | Path, names: Sequence[str], manifest: Mapping[str, Any]) -> str | None:
    """The first file of a merge that does not match its shards, in words; None if all do.

    The arguments are those that a new merge would be given.
    """
    directory = Path(directory)
    try:
        written = read_manifest(directory)
    except UserError as error:
        return str(error).partition("; extract")[0]
    merged = written.pop("merged", None)
    files = merged.get("files") if isinstance(merged, dict) else None
    if written != dict(manifest) or not isinstance(files, dict):
        return f"{directory / 'manifest.json'}: not that of these shards"
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            return f"{path}: not found"
        if [path.stat().st_size, file_crc(path)] != expected:
            return f"{path}: not the lines of these shards"
    if merged.get("shards") != shards_checksum(directory, names):
        return f"{directory / 'manifest.json'}: not that of these shards"
    return None


def check_manifest(
    targets: StoredTargets, teacher: str | Path, wav_scp: str | Path, graph: str | Path | None = None
) -> dict[str, Any]:
    """Read a manifest, refusing targets of another teacher, of other audio, or of another denominator graph.

    ``wav_scp`` may name fewer utterances than the targets, but none that they lack or whose audio differs. Audio files
    are opened only if their size, times or inode are not those in the cache, which is then updated.
    """
    directory = targets.directory
    path = directory / "manifest.json"
    manifest = read_manifest(directory)
    checksum = model_checksum(teacher)
    if manifest["teacher"] != checksum:
        raise UserError(
            f"{path}: targets of another teacher (checksum {manifest['teacher'][:12]}, but {teacher} has "
            f"{checksum[:12]}); extract them again (stage 8)"
        )
    if manifest.get("graph") and graph and manifest["graph"] != sha256(graph):
        raise UserError(f"{path}: posteriors under another denominator graph than {graph}; extract again (stage 8)")
    merged = manifest.get("merged")
    if not isinstance(merged, dict) or merged.get("shards") != shards_checksum(directory, targets.shards):
        raise UserError(f"{path}: not that of these shards; extract again (stage 8)")
    audio = read_wav_scp(wav_scp)
    if lacking := next((utterance for utterance in audio if utterance not in targets.rows), None):
        raise UserError(f"{path}: no targets of {lacking}, which is in {wav_scp}; extract again (stage 8)")
    checksums = AudioChecksums(directory / CACHE)
    for utterance, checksum in checksums.of(audio).items():
        if int(targets.audio[targets.rows[utterance]]) != int(checksum, 16):
            raise UserError(f"{path}: the audio of {utterance} in {wav_scp} has changed; extract again (stage 8)")
    if checksums.changed:
        with contextlib.suppress(OSError):  # the targets may be read-only
            checksums.save(directory / CACHE)
    return manifest
