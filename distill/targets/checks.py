"""Are stored targets complete, undamaged, and those of this teacher, this audio and this denominator graph?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.audio import read_wav_scp
from distill.checkpoints.load import model_checksum
from distill.errors import UserError
from distill.files import sha256
from distill.targets.store import (
    audio_checksum,
    audio_list_checksum,
    file_crc,
    joined_scp,
    read_done,
    read_manifest,
    read_two_columns,
)


def find_damage(shard: str | Path, contents: bool) -> str | None:
    """What is damaged or missing among the files of a shard, in words; None if nothing is.

    With ``contents`` every byte is read, otherwise files are compared by size.
    """
    shard = Path(shard)
    done = read_done(shard)
    if done is None:
        return f"{shard}: not complete"
    for name, (size, crc) in done["files"].items():
        path = shard / name
        actual = path.stat().st_size if path.is_file() else -1
        if actual != size:
            return f"{path}: {'missing' if actual < 0 else f'{actual} bytes'} instead of {size} bytes"
        if contents and (seen := file_crc(path)) != crc:
            return f"{path}: its bytes are not those that were written (CRC-32 {seen:08x} instead of {crc:08x})"
    return None


def find_change(shard: str | Path, about: Mapping[str, Any], audio: Mapping[str, str]) -> str | None:
    """What differs between a complete shard's done.json and ``about``, in words; None if nothing does.

    ``audio`` holds the present checksums of the shard's utterances; the data set's audio.sha256 those at extraction.
    """
    shard = Path(shard)
    done = read_done(shard) or {}
    key = next((key for key, value in about.items() if done.get(key) != value), None)
    if key is None:
        return None
    if key == "audio":
        listed = shard.parents[1] / "audio.sha256"
        before = read_two_columns(listed) if listed.is_file() else {}
        other = [utterance for utterance in audio if before.get(utterance, audio[utterance]) != audio[utterance]]
        return f"{shard}: " + (f"the audio of {other[0]} has changed" if other else "made of other utterances or audio")
    then, now = done.get(key), about[key]
    if key in ("teacher", "graph"):  # checksums, or None
        then, now = str(then)[:12], str(now)[:12]
    return f"{shard}: made with {key} {then} instead of {now}"


def find_loose_ends(
    directory: str | Path, names: Sequence[str], manifest: Mapping[str, Any], audio: Mapping[str, str]
) -> str | None:
    """The first file of :func:`merge` that does not match its shards, in words; None if all do.

    The arguments are those that a new merge would be given.
    """
    directory = Path(directory)
    try:
        if read_manifest(directory) != manifest:
            return f"{directory / 'manifest.json'}: not that of these shards"
        if read_two_columns(directory / "audio.sha256") != audio:
            return f"{directory / 'audio.sha256'}: not the audio of these shards"
        for stream in manifest["streams"]:
            if read_two_columns(directory / f"{stream}.scp") != joined_scp(directory, names, stream):
                return f"{directory / f'{stream}.scp'}: not the lines of these shards"
    except UserError as error:
        return str(error).partition("; extract")[0]
    return None


def check_manifest(
    directory: str | Path, teacher: str | Path, wav_scp: str | Path, graph: str | Path | None = None
) -> dict[str, Any]:
    """Read a manifest, refusing targets of another teacher, of other audio, or of another denominator graph.

    ``wav_scp`` may name fewer utterances than the targets, but none that they lack or whose audio differs.
    """
    directory = Path(directory)
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
    stored = read_two_columns(directory / "audio.sha256")
    if audio_list_checksum(stored) != manifest["audio"]:
        raise UserError(
            f"{directory / 'audio.sha256'}: not the list the manifest was made with; extract again (stage 8)"
        )
    for utterance, location in read_wav_scp(wav_scp).items():
        if utterance not in stored:
            raise UserError(f"{path}: no targets of {utterance}, which is in {wav_scp}; extract again (stage 8)")
        if stored[utterance] != audio_checksum(location):
            raise UserError(f"{path}: the audio of {utterance} in {wav_scp} has changed; extract again (stage 8)")
    return manifest
