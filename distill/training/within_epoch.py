"""ESPnet's trainer, with resumption within an epoch (of a large corpus an epoch takes a day) and less memory."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import hashlib
import logging
import pickle
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass
from torch.utils.data import DataLoader

from distill.files import naming

NAME = "within_epoch"
COUNTS = ("stats", "total_count", "count")  # of ESPnet's SubReporter


@dataclasses.dataclass
class Options(TrainerOptions):
    """ESPnet's options and the number of batches after which a checkpoint is written within an epoch; 0: never."""

    batches_per_checkpoint: int


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    A data worker is forked for every epoch. It would hold what this process has freed but kept until it ends, while
    this process fills other pages: gigabytes twice.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class DistillTrainer(Trainer):
    """ESPnet's trainer, which also writes checkpoints within an epoch and resumes from them."""

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> TrainerOptions:
        return build_dataclass(Options, args)

    @classmethod
    def run(cls, **options: Any) -> None:
        """ESPnet's training; at its end the checkpoints within an epoch are removed."""
        super().run(**options)
        for path in Path(options["trainer_options"].output_dir).glob(f"{NAME}.*.pth"):
            path.unlink(missing_ok=True)

    @classmethod
    def train_one_epoch(cls, model: torch.nn.Module, iterator: Any, reporter: Any, **more: Any) -> bool:
        release_memory()
        options = more["options"]
        if options.batches_per_checkpoint and isinstance(iterator, DataLoader):
            parts = [more["optimizers"], more["schedulers"], [more["scaler"]]]
            state = TrainingState(model, [part for group in parts for part in group if part is not None], reporter)
            # Between updates of the weights there are no gradients to be kept.
            interval = -(-options.batches_per_checkpoint // options.accum_grad) * options.accum_grad
            iterator = ResumedBatches(iterator, state, Path(options.output_dir), interval, options.resume)
        return super().train_one_epoch(model=model, iterator=iterator, reporter=reporter, **more)

    @classmethod
    def validate_one_epoch(cls, *args: Any, **more: Any) -> None:
        release_memory()
        super().validate_one_epoch(*args, **more)


def random_state() -> dict[str, Any]:
    """States of the random generators of Python, numpy and torch."""
    state: dict[str, Any] = {"random": (random.getstate(), np.random.get_state(), torch.get_rng_state())}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set what :func:`random_state` has returned."""
    of_python, of_numpy, of_torch = state["random"]
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


class TrainingState:
    """All that a training changes in an epoch, from one batch to the next.

    Args:
        model: the network, perhaps in torch's DistributedDataParallel.
        parts: optimisers, schedulers and scaler.
        reporter: ESPnet's SubReporter of the epoch.
    """

    def __init__(self, model: torch.nn.Module, parts: Sequence[Any], reporter: Any) -> None:
        self._model = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
        self._parts, self._reporter = parts, reporter
        self.epoch: int = reporter.get_epoch()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.processes = torch.distributed.get_world_size() if distributed else 1

    def read(self) -> dict[str, Any]:
        """The state, to be saved: of the first process everything, of the others what differs between processes."""
        state = random_state()
        state["reporter"] = pickle.dumps({name: getattr(self._reporter, name) for name in COUNTS})
        if self.rank == 0:
            state |= {"model": self._model.state_dict(), "parts": [part.state_dict() for part in self._parts]}
        return state

    def write(self, state: dict[str, Any], first: dict[str, Any]) -> None:
        """Set what was read; ``first`` is the first process's."""
        self._model.load_state_dict(first["model"])
        for part, saved in zip(self._parts, first["parts"], strict=True):
            part.load_state_dict(saved)
        for name, value in pickle.loads(state["reporter"]).items():
            setattr(self._reporter, name, value)


class ResumedBatches:
    """The batches of an epoch, from where a killed training was; every ``interval`` batches the state is saved.

    A batch has been trained on when the next one is asked for.

    Args:
        loader: of the whole epoch; its batches are a list.
        directory: of the training.
    """

    def __init__(self, loader: DataLoader, state: TrainingState, directory: Path, interval: int, resume: bool) -> None:
        self._loader, self._state, self._interval = loader, state, interval
        batches = list(loader.batch_sampler)  # type: ignore[arg-type]
        self._batches = batches
        self._about = {
            "epoch": state.epoch,
            "batches": hashlib.sha256(repr(batches).encode()).hexdigest(),
            "processes": state.processes,
        }
        self._paths = [directory / f"{NAME}.{rank}.pth" for rank in (state.rank, 0)]
        self._done = 0
        self._saved: dict[str, Any] | None = None
        own, first = (self._load(path, rank) for path, rank in zip(self._paths, (state.rank, 0), strict=True))
        same = own is not None and first is not None and own["done"] == first["done"]
        if self._agreed(own["done"] if own is not None and same and resume else 0):
            assert own is not None and first is not None
            state.write(own["state"], first["state"])
            self._done, self._saved = own["done"], own["state"]
            logging.info(f"Going on within epoch {state.epoch} after {self._done} of {len(batches)} batches")

    def _load(self, path: Path, rank: int) -> dict[str, Any] | None:
        """A process's file, if it is whole and of this epoch and these batches."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=False)
            about = {name: saved["about"][name] for name in ("epoch", "processes")}
            same = all(self._about[name] == value for name, value in about.items())
            if rank == self._state.rank:
                same = same and saved["about"] == self._about
            return saved if same else None
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
            logging.warning(f"{path}: damaged; the epoch is begun again")
            return None

    def _agreed(self, done: int) -> bool:
        """Whether all processes have a state after the same number of batches, more than 0."""
        if self._state.processes == 1:
            return done > 0
        every: list[Any] = [None] * self._state.processes
        torch.distributed.all_gather_object(every, done)
        return done > 0 and every == [done] * len(every)

    def __len__(self) -> int:
        return len(self._batches) - self._done

    def __iter__(self) -> Iterator[Any]:
        loader = self._loader
        if self._done:
            loader = DataLoader(
                loader.dataset,
                batch_sampler=self._batches[self._done :],
                num_workers=loader.num_workers,
                pin_memory=loader.pin_memory,
                worker_init_fn=loader.worker_init_fn,
                collate_fn=loader.collate_fn,
            )
        iterator = iter(loader)  # draws a random number
        if self._saved is not None:
            set_random_state(self._saved)
            self._saved = None
        for done, batch in enumerate(iterator, self._done):
            if done > self._done and done % self._interval == 0:
                self._save(done)
            yield batch

    def _save(self, done: int) -> None:
        with naming(self._paths[0]), open(self._paths[0], "wb") as stream:
            torch.save({"about": self._about, "done": done, "state": self._state.read()}, stream)
