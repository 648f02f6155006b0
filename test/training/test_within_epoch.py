"""A training that is killed within an epoch ends with the weights of one that was not, and memory is given back."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from espnet2.train.trainer import Trainer
from tiny_training import STUDENT, TEACHER, changed

from distill.training.distill_model import DistillModel
from distill.training.within_epoch import DistillTrainer

# Dropout and chunks of random lengths need the state of the random generators.
TRAININGS = {
    "teacher": TEACHER,
    "student": changed(
        STUDENT,
        network_conf={"dropout": 0.2},
        chunk_conf={"chunk_ms": [160, 320], "left_ms": 640},
        distill_conf={"target": "none", "weight_ctc": 1.0},
    ),
}
EVERY = (
    "--batches_per_checkpoint",
    "1",
    "--keep_nbest_models",
    "1",
    "--batch_size",
    "2",
)  # of five in each of two epochs


class Killed(Exception):
    """Ends a training as a signal would, between a forward computation and the update."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch):
    """A function: kill the training in the n-th training step from now; None: never."""
    steps = {"left": -1}
    real = DistillModel.forward

    def forward(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        if self.training:
            steps["left"] -= 1
            if steps["left"] == 0:
                raise Killed
        return result

    monkeypatch.setattr(DistillModel, "forward", forward)
    return lambda number: steps.update(left=number or -1)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "2epoch.pth", weights_only=True)


def steps_of(log: str) -> list[str]:
    return re.findall(r"Going on within epoch (\d) after (\d) of 5 batches", log)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_killed_within_an_epoch_ends_as_an_undisturbed_one(world, kill, caplog, name):
    torch.set_num_threads(1)
    caplog.set_level(logging.INFO)
    config = TRAININGS[name]
    expected = weights(world.train(f"{name}_undisturbed", config, *EVERY))
    for moment, continued in ((3, ("1", "2")), (1, None), (2, ("1", "1")), (7, ("2", "1"))):
        caplog.clear()
        options = (f"{name}_killed_{moment}", config, *EVERY)
        kill(moment)
        with pytest.raises(Killed):
            world.train(*options)
        kill(None)
        actual = weights(world.train(*options))
        assert steps_of(caplog.text) == ([] if continued is None else [continued])
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
        assert not list((world.root / options[0]).glob("within_epoch*"))


def test_a_damaged_checkpoint_within_an_epoch_and_one_of_other_batches_are_not_used(world, kill, caplog):
    torch.set_num_threads(1)
    caplog.set_level(logging.INFO)
    options = ("teacher_half", TEACHER, *EVERY)
    kill(3)
    with pytest.raises(Killed):
        world.train(*options)
    path = world.root / "teacher_half" / "within_epoch.0.pth"
    whole = path.read_bytes()
    for content, more in ((whole[: len(whole) // 2], ()), (whole, ("--batch_size", "3"))):
        path.write_bytes(content)
        caplog.clear()
        kill(1)
        with pytest.raises(Killed):
            world.train(*options, *more)
        assert "Going on within" not in caplog.text
        assert ("damaged; the epoch is begun again" in caplog.text) == (not more)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
@pytest.mark.parametrize("of", ["train_one_epoch", "validate_one_epoch"])
def test_freed_memory_is_given_back_before_data_workers_are_forked(monkeypatch, of):
    """300 MB of small blocks below one that is still in use, which the heap keeps otherwise."""
    blocks = [bytearray(60_000) for _ in range(5000)]
    blocks = blocks[-1:]
    before = resident_mb()
    seen = []
    monkeypatch.setattr(Trainer, of, lambda *args, **more: seen.append(resident_mb()))
    options = argparse.Namespace(batches_per_checkpoint=0)
    getattr(DistillTrainer, of)(model=None, iterator=[], reporter=None, options=options)
    assert before - seen[0] > 200 and len(blocks) == 1
