"""Checkpoints are written whole or not at all."""

from pathlib import Path

import pytest
import torch

from distill.bin import train


class CannotBeSaved:
    def __reduce__(self):
        raise RuntimeError("the disk is full")


def test_a_failing_save_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", torch.save)  # so that it is put back afterwards
    train.save_whole()
    checkpoint = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 1}, checkpoint)
    with pytest.raises(RuntimeError, match="the disk is full"):
        torch.save({"epoch": 2, "more": CannotBeSaved()}, checkpoint)
    assert torch.load(checkpoint, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [checkpoint]
