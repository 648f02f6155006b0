"""Files written whole or not at all, by processes that may be killed."""

from __future__ import annotations

import errno
import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.errors import UserError
from distill.files import atomic_write, read_json, read_yaml, yaml_object, yaml_text

KILLED = """
import sys, time
from distill.files import atomic_write
with atomic_write(sys.argv[1]) as stream:
    stream.write("half of")
    stream.flush()
    print("begun", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "text") as stream:
        stream.write("half of")
        _ = 1 / 0
    assert (tmp_path / "text").read_text() == "old"
    assert names(tmp_path) == {"text"}


def test_the_next_writer_clears_away_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "hyp[1].jsonl"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
    with atomic_write(path) as stream:
        stream.write("whole")
    (left,) = names(tmp_path) - {path.name}  # of one that runs: not touched
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert path.read_text() == "whole" and (tmp_path / left).read_text() == "half of"
    with atomic_write(path) as stream:
        stream.write("new")
    assert names(tmp_path) == {path.name} and path.read_text() == "new"


def test_other_files_and_other_hosts_are_left_alone(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the largest number of a process
    here = platform.node()
    others = {f".text.{here}-b.{dead}.tmp", f".text2.{here}.{dead}.tmp", f".text.{here}.{os.getppid()}.tmp", "text.tmp"}
    for name in others:
        (tmp_path / name).write_text("half of")
    with atomic_write(tmp_path / "text") as stream:
        stream.write("whole")
    assert names(tmp_path) == {"text", *others}


def laughs() -> str:
    """9^9 entries in 500 bytes, by aliases of aliases."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, now in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (laughs(), "a.yaml:1: .*an anchor"),
        ("a: 1\nb: *a\n", "a.yaml:2: .*an alias"),
        ("<<: {a: 1}\n", "a merge key"),
        ("a: !!python/name:os.system ''\n", "a tag"),
        ("a: !!set {b, c}\n", "a tag"),
        ("a: " + "[" * 30 + "]" * 30, "nested more than 20 deep"),
        ("a: [" + "1, " * 200_001 + "]", "more than 200000 values"),
        (f"a: {'x' * 10_001}", "more than 10000 characters"),
        (f"a: {'9' * 41}", "too many digits"),
        ("- a\n", "not a map"),
        ("a: {b\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "another document"),
    ],
)
def test_yaml_is_refused_before_it_is_expanded(tmp_path, text, reason):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        read_yaml(tmp_path / "a.yaml", "the cure")
    assert str(caught.value).endswith("the cure") and "\n" not in str(caught.value)


def test_yaml_that_is_written_is_read():
    tokens = [
        "<<",
        "=",
        "yes",
        "1",
        "1e-5",
        "2001-01-01",
        "|",
        "~",
        "null",
        "#",
        "- a",
        "&a",
        "*a",
        "!x",
        "\u2028",
        "𠮷",
    ]
    shared = [1, 2.5]
    content = {"tokens": tokens, "a": shared, "b": shared, "c": None, "d": {"e": True, "f": -3}}
    text = yaml_text(content)
    assert "&" not in text.replace("'&a'", "") and yaml_object(text, "a.yaml", "") == content
    assert yaml_object("day: 2001-01-01\n", "a.yaml", "") == {"day": "2001-01-01"}


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    with open(tmp_path / "a.json", "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match="a.json: has more than 16 MB"):
        read_json(tmp_path / "a.json", "the cure")


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.txt")


@pytest.mark.parametrize("size", [100, 4000, 40_000])
def test_an_error_of_writing_that_torch_replaces_by_another_names_the_file(tmp_path, size):
    """torch.save raises a RuntimeError of its own, or passes the error on when the last bytes were not written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = {str(number): torch.zeros(size) for number in range(50)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * size, limits[1]))
    try:
        with pytest.raises(OSError) as caught, atomic_write(tmp_path / "model.pth", "wb") as stream:
            torch.save(weights, stream)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "model.pth"))
