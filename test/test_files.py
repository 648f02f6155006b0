"""Files written whole or not at all, by processes that may be killed."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill.files import atomic_write

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
