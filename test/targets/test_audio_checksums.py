"""Checksums of audio are taken from a cache for files that have not changed, and for no others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from distill.errors import UserError
from distill.targets import audio_checksums, checks, store
from distill.targets.audio_checksums import AudioChecksums, audio_checksum


@pytest.fixture
def audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Five files, one of them an ark of two utterances; what is written in a test counts as old at once."""
    monkeypatch.setattr(audio_checksums, "RECENT_NS", -(10**12))
    locations = {}
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(bytes([number]) * 1000)
        locations[f"u{number}"] = str(path)
    (tmp_path / "x.ark").write_bytes(os.urandom(300_000))
    return locations | {"v1": f"{tmp_path}/x.ark:7", "v2": f"{tmp_path}/x.ark:70000"}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Locations whose audio was read."""
    locations: list[str] = []
    real = audio_checksum
    monkeypatch.setattr(
        audio_checksums, "audio_checksum", lambda location: locations.append(location) or real(location)
    )
    return locations


def cached(audio: dict[str, str], path: Path, *others: Path) -> dict[str, str]:
    """Checksums by the cache in a file, which is written again if any was computed."""
    checksums = AudioChecksums(path, *others)
    result = checksums.of(audio)
    if checksums.changed:
        checksums.save(path)
    return result


def test_unchanged_files_are_not_read_again(audio, read, tmp_path):
    expected = {utterance: audio_checksum(location) for utterance, location in audio.items()}
    assert cached(audio, tmp_path / "cache") == expected and sorted(read) == sorted(audio.values())
    read.clear()
    assert cached(audio, tmp_path / "cache") == expected and read == []


def same_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def same_size_and_time(path: Path) -> None:
    status = path.stat()
    same_size(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def another_file(path: Path) -> None:
    status = path.stat()
    other = path.with_suffix(".other")
    other.write_bytes(b"x" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [same_size, same_size_and_time, another_file])
def test_a_changed_file_is_read_and_no_other(audio, read, tmp_path, change):
    before = cached(audio, tmp_path / "cache")
    read.clear()
    change(Path(audio["u2"]))
    after = cached(audio, tmp_path / "cache")
    assert {utterance for utterance in audio if after[utterance] != before[utterance]} == {"u2"}
    assert read == [audio["u2"]]
    read.clear()
    assert cached(audio, tmp_path / "cache") == after and read == []


def test_another_place_in_the_same_ark_is_read(audio, read, tmp_path):
    before = cached(audio, tmp_path / "cache")
    read.clear()
    after = cached({**audio, "v1": audio["v2"]}, tmp_path / "cache")
    assert after["v1"] == after["v2"] == before["v2"] and read == [audio["v2"]]


def test_a_file_that_is_new_is_read_again(audio, read, tmp_path, monkeypatch):
    """It could change within the resolution of its time."""
    monkeypatch.setattr(audio_checksums, "RECENT_NS", 10**12)
    cached(audio, tmp_path / "cache")
    read.clear()
    same_size_and_time(Path(audio["u0"]))
    assert cached(audio, tmp_path / "cache")["u0"] == audio_checksum(audio["u0"])
    assert len(read) == len(audio)


def test_caches_of_several_jobs_are_one(audio, read, tmp_path):
    halves = [dict(list(audio.items())[:3]), dict(list(audio.items())[3:])]
    for number, half in enumerate(halves):
        cached(half, tmp_path / f"cache.{number}")
    read.clear()
    cached(audio, tmp_path / "cache", tmp_path / "cache.0", tmp_path / "cache.1")
    assert read == []


def other_middle(data: bytes) -> bytes:
    return (
        data[: len(data) // 3]
        + bytes(byte ^ 8 for byte in data[len(data) // 3 : len(data) // 2])
        + data[len(data) // 2 :]
    )


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 5000, other_middle]
)
def test_a_damaged_cache_is_none(audio, read, tmp_path, damage):
    expected = cached(audio, tmp_path / "cache")
    (tmp_path / "cache").write_bytes(damage((tmp_path / "cache").read_bytes()))
    read.clear()
    assert cached(audio, tmp_path / "cache") == expected and len(read) == len(audio)


def test_a_cache_is_compressed_and_one_that_is_not_is_read(audio, read, tmp_path):
    audio |= {f"w{number:03d}": audio["v1"] for number in range(500)}
    expected = cached(audio, tmp_path / "cache")
    with np.load(tmp_path / "cache", allow_pickle=False) as saved:
        arrays = {name: np.ascontiguousarray(saved[name]) for name in saved.files}
    with open(tmp_path / "plain", "wb") as stream:
        np.savez(stream, **arrays)
    assert (tmp_path / "cache").stat().st_size < 0.3 * (tmp_path / "plain").stat().st_size
    read.clear()
    assert cached(audio, tmp_path / "plain") == expected and read == []


def test_without_trust_everything_is_read(audio, read, tmp_path):
    expected = cached(audio, tmp_path / "cache")
    read.clear()
    assert AudioChecksums(tmp_path / "cache", trust=False).of(audio) == expected and len(read) == len(audio)


def test_a_missing_file_is_named(audio, tmp_path):
    with pytest.raises(UserError, match="gone.wav"):
        AudioChecksums().of({**audio, "u9": str(tmp_path / "gone.wav")})


def test_a_training_reads_no_unchanged_audio(audio, read, tmp_path, monkeypatch):
    """The check of the manifest fills the cache and then only compares sizes and times."""
    monkeypatch.setattr(checks, "model_checksum", lambda directory: "T")
    wav_scp = tmp_path / "wav.scp"
    wav_scp.write_text("".join(f"{utterance} {location}\n" for utterance, location in audio.items()))
    sums = {utterance: audio_checksum(location) for utterance, location in audio.items()}
    directory = tmp_path / "targets"
    with store.TargetWriter(directory / "data" / "0001", "float32", {}, sums) as writer:
        for utterance in audio:
            writer.write(utterance, {"logits": np.ones((2, 2))})
    manifest = {"version": store.VERSION, "teacher": "T", "dtype": "float32", "streams": ["logits"]}
    store.merge(directory, ["0001"], manifest, audio)
    targets = store.StoredTargets(directory)
    checks.check_manifest(targets, "T", wav_scp)
    assert len(read) == len(audio)
    read.clear()
    checks.check_manifest(targets, "T", wav_scp)
    assert read == []
    same_size(Path(audio["u1"]))
    with pytest.raises(UserError, match="the audio of u1"):
        checks.check_manifest(targets, "T", wav_scp)
