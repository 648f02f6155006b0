"""Atomic writes, checksums, and readers of text, JSON and YAML that refuse bad input in one line."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from distill.errors import CURES, UserError

MAX_TEXT = 16 << 20  # bytes of a file that describes a model
# A configuration is a few nested maps and lists; its longest list are the tokens.
MAX_YAML_NODES, MAX_YAML_DEPTH = 200_000, 20
MAX_YAML_SCALAR, MAX_YAML_DIGITS = 10_000, 40  # characters of a text, and of a number
# What np.load raises for an npz file that is missing or damaged
NPZ_DAMAGE = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let errors of the operating system in the block name ``path``: a full disk shows in writing, which names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        # torch.save raises an error of its own when the file could not be written.
        reason = error.__context__
        if isinstance(reason, OSError) and reason.errno in CURES:
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file beside ``path`` for writing and rename it to ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never a part. After an error the temporary file is removed. One that a
    killed process of this host has left is removed by the next writer of the same path.

    Args:
        path: its directory is made if need be.
        mode: of :func:`open`; text is written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = name_beside(path)
    try:
        with naming(path):
            with open(beside, mode, encoding=None if "b" in mode else "utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def name_beside(path: Path) -> Path:
    """Path of the temporary file, in the same directory, that this process renames to ``path`` when it is complete.

    Temporary files for ``path`` that belong to processes which no longer run on this host are deleted.
    """
    stem = f".{path.name}.{platform.node()}."
    for leftover in path.parent.glob(f"{glob.escape(stem)}*.tmp"):
        pid = leftover.name[len(stem) : -len(".tmp")]
        if pid.isdecimal() and not is_running(int(pid)):
            leftover.unlink(missing_ok=True)
    return path.with_name(f"{stem}{os.getpid()}.tmp")


def is_running(pid: int) -> bool:
    """Whether a process with this id runs on this host."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, as another user
        pass
    return True


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_torch_file(path: str | Path) -> None:
    """Refuse a file of torch.save that would take more memory than disk: torch does not compress.

    Raises:
        UserError: it is compressed, damaged, or in the format before torch 1.6.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            total = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OverflowError):
        raise UserError(
            f"{path}: cannot be read as a model; it is cut off, or older than torch 1.6: save it with safetensors"
        ) from None
    if total > os.path.getsize(path):
        raise UserError(f"{path}: would grow to {total} bytes; not opened, do not trust this model")


def text_lines(path: str | Path, expected: str) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text, line end included, of every line of a UTF-8 file.

    Args:
        expected: end of the error message if there is no such file: what the user should give.

    Raises:
        UserError: the file does not exist, or is not UTF-8.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: not found; {expected}")
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                cure = f"convert it: iconv -t utf-8 {path}"
                raise UserError(f"{path}:{number}: not UTF-8 (byte {error.start}); {cure}") from None


def read_text(path: str | Path, cure: str, most: int = MAX_TEXT) -> str:
    """Content of a UTF-8 file, of at most ``most`` bytes.

    Args:
        cure: end of the error message: what the user should do.

    Raises:
        UserError: the file does not exist, is not a regular file, too long, or not UTF-8.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: not found; {cure}")
    with open(path, "rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: has more than {most >> 20} MB, too many for such a file; {cure}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); {cure}") from None


def json_object(text: str, where: str, cure: str) -> dict[str, Any]:
    """The JSON object in a text.

    Args:
        where: beginning of the error message, such as the file.
        cure: end of the error message: what the user should do.

    Raises:
        UserError: the text is not JSON, or not an object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); {cure}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not an object in JSON; {cure}")
    return content


class _PlainDumper(yaml.SafeDumper):
    """Writes a list that occurs twice twice, without an alias, which :func:`yaml_object` would not read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """Line ends of Unicode are escaped in double quotes alone; elsewhere they would be read as a space."""
        style = '"' if any(end in text for end in "\r\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_PlainDumper.add_representer(str, _PlainDumper.represent_text)


def yaml_text(content: Any, **how: Any) -> str:
    """Maps and lists of plain values in YAML; ``how`` as of yaml.dump."""
    return yaml.dump(content, Dumper=_PlainDumper, **{"sort_keys": False, "allow_unicode": True, **how})


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Resolves and builds nothing but null, booleans, numbers, texts, lists and maps."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in PLAIN_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # Its text is measured first, as long ones take long to read; in decimal digits a hexadecimal one is longer.
        if len(node.value) <= MAX_YAML_DIGITS:
            value = super().construct_yaml_int(node)
            if len(str(value)) <= MAX_YAML_DIGITS:
                return value
        raise yaml.constructor.ConstructorError(None, None, "a number has too many digits", node.start_mark)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def yaml_object(text: str, where: str, cure: str) -> dict[str, Any]:
    """The map in a text in YAML, which may hold nothing but null, booleans, numbers, texts, lists and maps.

    Anchors, aliases, merge keys and tags are refused, and more nodes, depth or length than a configuration needs
    (``MAX_YAML_...``), before anything is expanded or built.

    Args:
        where: beginning of the error message, such as the file.
        cure: end of the error message: what the user should do.

    Raises:
        UserError: the text is not such a map; the message names the line where it can.
    """
    try:
        _check_events(text)
        content = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{where}{line}: not YAML as it is used here ({reason}); {cure}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a map in YAML; {cure}")
    return content


def _check_events(text: str) -> None:
    """Refuse a YAML document by its events, which cost no memory.

    Raises:
        yaml.YAMLError: it is not YAML, or has what :func:`yaml_object` does not take.
    """
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_PlainLoader):
        reason = None
        if isinstance(event, yaml.AliasEvent):
            reason = "it has an alias"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if event.anchor is not None:
                reason = "it has an anchor"
            elif getattr(event, "tag", None) not in (None, "!"):
                reason = "it has a tag"
            elif nodes > MAX_YAML_NODES:
                reason = f"it has more than {MAX_YAML_NODES} values"
            elif isinstance(event, yaml.ScalarEvent):
                if len(event.value) > MAX_YAML_SCALAR:
                    reason = f"a value has more than {MAX_YAML_SCALAR} characters"
                elif event.value == "<<" and event.implicit[0]:
                    reason = "it has a merge key"
            else:
                depth += 1
                if depth > MAX_YAML_DEPTH:
                    reason = f"it is nested more than {MAX_YAML_DEPTH} deep"
        if reason is not None:
            raise yaml.MarkedYAMLError(problem=reason, problem_mark=event.start_mark)  # type: ignore[arg-type]


def read_yaml(path: str | Path, cure: str) -> dict[str, Any]:
    """The map in a YAML file; see :func:`read_text` and :func:`yaml_object`."""
    return yaml_object(read_text(path, cure), str(path), cure)


def read_json(path: str | Path, cure: str) -> dict[str, Any]:
    """The object in a JSON file; see :func:`read_text` and :func:`json_object`."""
    return json_object(read_text(path, cure), str(path), cure)
