"""Packed models: zip files in the layout of ESPnet's model zoo. The same inputs give the same bytes.

meta.yaml lists the members as ``espnet2.bin.pack`` does (``files``, ``yaml_files``), and also the directory of each
model (``models``: torch for a training, onnx for an export) and the SHA-256 of every other member (``checksums``).
Paths are relative to the top of the archive. An untrusted file is safe to open: nothing in it is unpickled, and nothing
is written outside a temporary directory.
"""

from __future__ import annotations

import errno
import hashlib
import io
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from distill.errors import CONTROL, UserError
from distill.files import atomic_write, naming, read_yaml, yaml_object, yaml_text

META = "meta.yaml"
MODELS = ("torch", "onnx")
# Types of files in a packed model; none of them can contain code.
SUFFIXES = {".json", ".md", ".model", ".onnx", ".safetensors", ".txt", ".yaml"}
MAX_META = 1 << 20  # bytes
# Exceptions of zipfile on damaged files
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError)
MAX_MEMBERS = 1000
MAX_GROWTH = 20  # highest ratio of the members' total size to the file's
BLOCK = 1 << 20  # bytes

_unpacked: dict[tuple[str, int, int], tuple[tempfile.TemporaryDirectory, dict[str, str]]] = {}


def write_archive(output: Path, members: Mapping[str, bytes | Path], meta: Mapping[str, Any]) -> None:
    """Write a packed model.

    Nothing is compressed, because weights hardly shrink, and no time is recorded.

    Args:
        members: contents, or files to copy, by their names in the archive.
        meta: what meta.yaml has besides the checksums.
    """
    checksums = {}
    for name, content in sorted(members.items()):
        with _open(content) as stream:
            checksums[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    about = yaml_text({**meta, "checksums": checksums}, sort_keys=True).encode()
    with atomic_write(output, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in [(META, about), *sorted(members.items())]:
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            with _open(content) as stream, archive.open(entry, "w", force_zip64=True) as member:
                while block := stream.read(BLOCK):
                    member.write(block)


def _open(content: bytes | Path) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")


def model_directory(path: str | Path, kind: str | None = None) -> Path:
    """The directory of a model. A packed model is unpacked to a temporary one, which is removed when the process ends.

    Args:
        path: a directory, which is returned, or a packed model.
        kind: ``torch`` or ``onnx``; None: the first of these that the packed model has.

    Raises:
        UserError: the file is not a packed model, is damaged or not trustworthy, or has no model of this kind.
    """
    path = Path(path)
    if not path.is_file():
        if path.suffix == ".zip" and not path.exists():
            raise UserError(f"{path}: not found; give a packed model, or the directory of a training")
        return path
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if key not in _unpacked:
        folder = tempfile.TemporaryDirectory(prefix="distillw2v2_")
        try:
            _unpacked[key] = folder, _unpack(path, Path(folder.name))
        except BaseException:
            folder.cleanup()
            raise
    folder, models = _unpacked[key]
    kinds = MODELS if kind is None else (kind,)
    for wanted in kinds:
        if wanted in models:
            return Path(folder.name) / models[wanted]
    raise UserError(f"{path}: holds no {' or '.join(kinds)} model, only {', '.join(models) or 'none'}; pack it again")


def _unpack(path: Path, folder: Path) -> dict[str, str]:
    """Check a packed model and write its members below ``folder``.

    Returns:
        the directory of each kind of model, relative to ``folder``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _checked_members(path, archive)
            meta = _read_meta(path, archive, entries)
            checksums, models = meta["checksums"], meta["models"]
            for name in sorted(entries.keys() ^ {META, *checksums}):
                raise UserError(f"{path}: {name} is in only one of the archive and its {META}; pack it again")
            for name, checksum in checksums.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256()
                with naming(target), archive.open(entries[name]) as stream, open(target, "wb") as file:
                    while block := stream.read(BLOCK):
                        digest.update(block)
                        file.write(block)
                if digest.hexdigest() != checksum:
                    raise UserError(f"{path}: {name} is not what was packed (SHA-256 differs); copy the file again")
    except OSError as error:
        if error.errno != errno.EINVAL:  # an impossible offset in a damaged file
            raise
        raise UserError(f"{path}: not a packed model, or damaged; copy the file again") from None
    except DAMAGE as error:
        raise UserError(f"{path}: not a packed model, or damaged ({error}); copy the file again") from None
    for kind, name in models.items():
        if not (folder / name).is_dir():
            raise UserError(f"{path}: {META} names {name} as its {kind} model, which is not there; pack it again")
    if "torch" in models:
        _check_training(path, folder / models["torch"])
    return models


def _checked_members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members of the archive by name, after the checks that need only its table of contents."""
    entries: dict[str, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > MAX_MEMBERS:
        raise UserError(f"{path}: {len(archive.infolist())} members are too many for a packed model; not opened")
    for entry in archive.infolist():
        name = entry.filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        parts = name.split("/")
        if (
            name != entry.orig_filename
            or CONTROL.search(name)
            or "\\" in name
            or ":" in name
            or not all(parts)
            or {".", ".."} & {*parts}
        ):
            reason = "is not a plain relative path"
        elif kind not in (0, stat.S_IFREG):
            reason = "is a link or another special file"
        elif PurePosixPath(name).suffix not in SUFFIXES:
            reason = f"is not of a type that packed models have ({', '.join(sorted(SUFFIXES))})"
        elif name in entries:
            reason = "is there twice"
        elif entry.flag_bits & 1:
            reason = "is encrypted"
        else:
            entries[name] = entry
            continue
        raise UserError(f"{path}: member {entry.orig_filename!r} {reason}; not opened, do not trust this file")
    total = sum(entry.file_size for entry in entries.values())
    if total > MAX_GROWTH * path.stat().st_size:
        raise UserError(
            f"{path}: would grow from {path.stat().st_size} to {total} bytes; not opened, do not trust this file"
        )
    return entries


def _read_meta(path: Path, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """Contents of meta.yaml, with its tables of checksums and models checked."""
    if META not in entries or entries[META].file_size > MAX_META:
        raise UserError(f"{path}: has no {META} of a packed model; make it with python -m distill.bin.pack")
    where = f"{path}: {META}"
    try:
        text = archive.read(entries[META]).decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8; copy the file again") from None
    meta = yaml_object(text, where, "make it with python -m distill.bin.pack")
    for name in ("checksums", "models"):
        table = meta.get(name)
        if not isinstance(table, dict) or not all(isinstance(item, str) for pair in table.items() for item in pair):
            raise UserError(f"{path}: its {META} lacks {name}; make it with python -m distill.bin.pack")
    for name in meta["models"].values():
        if not all(name.split("/")) or {".", ".."} & {*name.split("/")}:
            raise UserError(f"{path}: model {name!r} in {META} is not a plain relative path; do not trust this file")
    return meta


def _check_training(path: Path, directory: Path) -> None:
    """Check that an unpacked training has its weights, and that loading it downloads nothing."""
    if not (directory / "model.safetensors").is_file():
        raise UserError(f"{path}: holds no model.safetensors; pack it again")
    try:
        conf = read_yaml(directory / "config.yaml", "pack it again").get("network_conf") or {}
    except UserError as error:
        reason = str(error).removeprefix(f"{directory}/")
        raise UserError(f"{path}: holds no usable {reason}") from None
    if not isinstance(conf, dict) or not isinstance(conf.get("config", {}), dict):
        raise UserError(f"{path}: network_conf in its config.yaml is not a packed model's; do not trust this file")
