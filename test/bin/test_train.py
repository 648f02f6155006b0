"""Checkpoints are written whole or not at all."""

from pathlib import Path

import pytest
import torch

from distill.bin import train


class CannotBeSaved:
    def __reduce__(self):
        raise RuntimeError("the disk is full")


def test_a_failing_save_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    checkpoint, weights = tmp_path / "checkpoint.pth", tmp_path / "1epoch.pth"
    with train.save_whole():
        torch.save({"epoch": 1}, checkpoint)
        assert not checkpoint.exists()  # not before the weights of its epoch
        torch.save({"weight": 1}, weights)
        assert torch.load(checkpoint, weights_only=True) == {"epoch": 1}
        torch.save({"epoch": 2, "more": CannotBeSaved()}, checkpoint)
        with pytest.raises(RuntimeError, match="the disk is full"):
            torch.save({"weight": 2}, tmp_path / "2epoch.pth")
        with pytest.raises(RuntimeError, match="the disk is full"):
            torch.save(CannotBeSaved(), weights)
    assert torch.load(checkpoint, weights_only=True) == {"epoch": 1}
    assert torch.load(weights, weights_only=True) == {"weight": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1epoch.pth", "2epoch.pth", "checkpoint.pth"]
    torch.save({"epoch": 3}, checkpoint)  # its own again
    assert torch.load(checkpoint, weights_only=True) == {"epoch": 3}
