"""Kaldi tables (wav.scp, text, utt2spk ...): lines of an id and a value, sorted by id as ``LC_ALL=C sort`` does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from distill.errors import UserError

MAX_ID_BYTES = 200  # an id becomes part of a file name, which may have 255 bytes
BAD_IN_FILE_NAME = re.compile(r"[/\\\x00-\x1f]|[^\S ]")
# White space that Python splits at but awk and cut do not, and characters without width
ODD_SPACE = re.compile(r"[^\S ]|[\u200b\u2060\ufeff]")
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")

Table = dict[str, tuple[int, str]]  # id -> (line number, value)


class Repairs:
    """Faults that were repaired while a directory was read, grouped by file and repair."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str], list[str]] = {}

    def add(self, file: Path, number: int | None, fault: str, repair: str) -> None:
        """Record a fault at a line of a file (None: of the whole file) and what was done about it."""
        where = f"{file}" if number is None else f"{file}:{number}"
        self._faults.setdefault((str(file), repair), []).append(f"{where}: {fault}")

    def lines(self) -> list[str]:
        """A line for each file and repair: ``FILE:LINE: first fault; repair (NUMBER in all)``."""
        return [
            f"{faults[0]}; {repair}{f' ({len(faults)} in all)' if len(faults) > 1 else ''}"
            for (_, repair), faults in self._faults.items()
        ]


def read_table(path: Path, empty_values: bool = False, repairs: Repairs | None = None) -> Table:
    """Read a Kaldi table, and refuse what Kaldi's and ESPnet's tools cannot handle.

    Args:
        path: the file.
        empty_values: whether a line may be an id alone.
        repairs: if given, faults whose correction is unambiguous are corrected and recorded here instead of refused:
            byte order mark, Windows line ends, empty lines, repeated lines, odd white space, order.

    Raises:
        UserError: missing, empty, compressed or not UTF-8; an empty line or value; an id that occurs twice, is out of
            order (``LC_ALL=C``), too long or has a character that a file name cannot have; control characters.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which does not exist; correct the link")
    if not path.is_file():
        raise UserError(f"{path}: not found; a data directory needs wav.scp, text and utt2spk")
    table: Table = {}
    previous, unsorted = "", False

    def fault(number: int, what: str, cure: str, repair: str) -> None:
        if repairs is None:
            raise UserError(f"{path}:{number}: {what}; {cure}")
        repairs.add(path, number, what, repair)

    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            where = f"{path}:{number}"
            if number == 1:
                if raw.startswith(b"\x1f\x8b"):
                    raise UserError(f"{where}: compressed; unpack it: gunzip < {path}")
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{where}: UTF-16; convert it: iconv -f utf-16 -t utf-8 {path}")
                if raw.startswith(b"\xef\xbb\xbf"):
                    fault(1, "a byte order mark", f"remove it: sed -i '1s/^\\xef\\xbb\\xbf//' {path}", "removed")
                    raw = raw[3:]
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 (byte {error.start}); convert it: iconv -t utf-8 {path}") from None
            if not line:
                fault(number, "empty line", "remove it", "left out")
                continue
            if raw.endswith(b"\r\n"):
                fault(number, "a Windows line end", f"remove them: sed -i 's/\\r$//' {path}", "removed")
            if control := CONTROL.search(line):
                raise UserError(f"{where}: the control character {control[0]!r}; the line is damaged, write it again")
            key, *rest = re.split("[ \t]+", line, maxsplit=1)
            value = rest[0] if rest else ""
            if BAD_IN_FILE_NAME.search(key) or ODD_SPACE.search(key) or key in (".", ".."):
                raise UserError(f"{where}: {key!r} has a character that a file name cannot have; rename it")
            if len(key.encode()) > MAX_ID_BYTES:
                raise UserError(f"{where}: an id of {len(key.encode())} bytes; shorten it to {MAX_ID_BYTES}")
            value = value.replace("\t", " ")  # which Kaldi takes for a space
            if odd := ODD_SPACE.search(value):
                fault(number, f"the odd space {odd[0]!r}", "write a plain space", "made a plain space")
                value = ODD_SPACE.sub(lambda match: "" if match[0] in "\u2060\ufeff" else " ", value).strip()
            if key in table:
                first = table[key][0]
                if repairs is None or table[key][1] != value:
                    raise UserError(f"{where}: {key} is there already in line {first}; ids are unique, rename one")
                repairs.add(path, number, f"line {first} again", "left out")
                continue
            if key.encode() < previous.encode() and not unsorted:
                fault(
                    number, f"{key} comes after {previous}", f"sort the file: LC_ALL=C sort -o {path} {path}", "sorted"
                )
                unsorted = True
            if not value and not empty_values:
                raise UserError(f"{where}: {key} has nothing after its id; complete or remove the line")
            table[key] = (number, value)
            previous = key
    if not table:
        raise UserError(f"{path}: empty; expected lines of: ID VALUE")
    return dict(sorted(table.items(), key=lambda item: item[0].encode())) if unsorted else table


def same_keys(path: Path, table: Iterable[str], other_path: Path, other: Iterable[str]) -> None:
    """Refuse two tables with different ids.

    Raises:
        UserError: names the table that lacks ids, and one of them.
    """
    for lacking, has, missing in (
        (path, other_path, sorted(set(other) - set(table))),
        (other_path, path, sorted(set(table) - set(other))),
    ):
        if missing:
            raise UserError(f"{lacking}: lacks {len(missing)} of {has}'s ids, such as {missing[0]}; make the two agree")
