"""Checkpoints are written whole or not at all, and a damaged one is replaced by the one before."""

import errno
import threading
import time
from pathlib import Path

import pytest
import torch

from distill.checkpoints import resume
from distill.checkpoints.resume import keep_previous, save_whole, usable_checkpoint
from distill.errors import UserError


class CannotBeSaved:
    def __reduce__(self):
        raise RuntimeError("the disk is full")


def test_a_failing_save_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path, weights = tmp_path / "checkpoint.pth", tmp_path / "1epoch.pth"
    with save_whole():
        torch.save({"epoch": 1}, path)
        assert not path.exists()  # not before the weights of its epoch
        torch.save({"weight": 1}, weights)
        assert torch.load(path, weights_only=True) == {"epoch": 1}
        torch.save({"epoch": 2, "more": CannotBeSaved()}, path)
        with pytest.raises(RuntimeError, match="the disk is full"):
            torch.save({"weight": 2}, tmp_path / "2epoch.pth")
        with pytest.raises(RuntimeError, match="the disk is full"):
            torch.save(CannotBeSaved(), weights)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert torch.load(weights, weights_only=True) == {"weight": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1epoch.pth", "2epoch.pth", "checkpoint.pth"]
    torch.save({"epoch": 3}, path)  # its own again
    assert torch.load(path, weights_only=True) == {"epoch": 3}


def epochs(directory: Path) -> Path:
    """Checkpoints of epochs 1 to 3, as a training leaves them."""
    with save_whole():
        for epoch in (1, 2, 3):
            torch.save({"epoch": epoch, "weights": torch.arange(3000.0)}, directory / "checkpoint.pth")
            torch.save({}, directory / f"{epoch}epoch.pth")
    return directory / "checkpoint.pth"


def damaged(whole: bytes, how: str) -> bytes:
    middle = len(whole) // 2
    if how == "half":
        return whole[:middle]
    return b"" if how == "empty" else whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]


@pytest.mark.parametrize("how", ["half", "empty", "one bit"])
def test_the_one_before_takes_the_place_of_a_damaged_one(tmp_path, caplog, how):
    path = epochs(tmp_path)
    assert torch.load(tmp_path / "checkpoint.previous.pth", weights_only=True)["epoch"] == 2
    assert usable_checkpoint(tmp_path) and torch.load(path, weights_only=True)["epoch"] == 3
    path.write_bytes(damaged(path.read_bytes(), how))
    assert usable_checkpoint(tmp_path)
    assert torch.load(path, weights_only=True)["epoch"] == 2
    assert "checkpoint.pth: damaged or cut off; going on from the one before it" in caplog.text
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(UserError, match="and so is the one before; remove"):
        usable_checkpoint(tmp_path)


def test_no_checkpoint_is_no_checkpoint(tmp_path):
    assert not usable_checkpoint(tmp_path)


def test_other_processes_wait_for_the_first(tmp_path):
    path = epochs(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    first = threading.Thread(target=lambda: (time.sleep(0.5), usable_checkpoint(tmp_path)))
    first.start()
    assert usable_checkpoint(tmp_path, first_process=False)
    first.join()
    assert torch.load(path, weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_hard_links_there_is_no_previous_one(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no links")

    monkeypatch.setattr(resume.os, "link", refuse)
    path = epochs(tmp_path)
    keep_previous(path)
    assert torch.load(path, weights_only=True)["epoch"] == 3
    assert sorted(p.name for p in tmp_path.glob("checkpoint*")) == ["checkpoint.pth"]
