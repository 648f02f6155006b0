"""The training of :mod:`distill.training` with ESPnet3's trainer, which is Lightning, in place of ESPnet's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet3.components.data.epoch_sync_iterator import EpochSyncIterator
from espnet3.components.modeling.lightning_module import ESPnetLightningModule
from espnet3.components.trainers.trainer import ESPnet3LightningTrainer
from omegaconf import ListConfig, OmegaConf

from distill.errors import UserError
from distill.files import atomic_write
from distill.training.distill_model import DistillModel
from distill.training.distill_task import DistillTask
from distill.training.within_epoch import random_state, set_random_state

LAST = "last.ckpt"  # Lightning's latest checkpoint of a training


class RandomStream:
    """Within its block, random numbers go on where they ended the last time.

    Lightning draws some of its own between the steps, which would else change those of the training.
    """

    def __init__(self) -> None:
        self._state = random_state()

    def __enter__(self) -> None:
        set_random_state(self._state)

    def __exit__(self, *_error: object) -> None:
        self._state = random_state()


class Batches(EpochSyncIterator):
    """Batches of an epoch; the random number that begins a pass over them is drawn from a stream.

    Args:
        source: makes a loader of the batches.
        stream: of random numbers.
        seed: that the stream is given at the beginning of a pass; None: it goes on.
    """

    def __init__(self, source: Callable[[], Any], stream: RandomStream, seed: int | None = None) -> None:
        super().__init__(source)
        self._stream, self._seed = stream, seed

    def generate(self) -> Iterator[Any]:
        loader = self._get_new_pass()
        with self._stream:
            if self._seed is not None:
                set_all_random_seed(self._seed)
            batches = iter(loader)
        yield from batches


class DistillModule(ESPnetLightningModule):
    """A model with its optimiser, schedule and batches, as ESPnet's task has built them.

    Args:
        model: called with a batch; returns loss, statistics and weight.
        optimizer: of its weights.
        scheduler: stepped after every update of the weights; None: a constant rate.
        batches: makers of the batches of an epoch, for training and for validation.
        seed: of the training.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any | None,
        batches: tuple[AbsIterFactory, AbsIterFactory],
        seed: int,
    ) -> None:
        super(ESPnetLightningModule, self).__init__()  # that class builds datasets of its own
        self.model, self._built, self._batches = model, (optimizer, scheduler), batches
        self.config = OmegaConf.create({"num_device": 1, "dataloader": {"train": {"iter_factory": {}}}})
        self.nan_countdown = 0
        self._stream, self._seed = RandomStream(), seed
        self.is_espnet_sampler = True  # batches are divided among processes already

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self._built
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> EpochSyncIterator:
        epoch = self.current_epoch + 1  # ESPnet counts from 1, and begins each with a seed of its own
        return Batches(partial(self._batches[0].build_iter, epoch), self._stream, self._seed + epoch)

    def val_dataloader(self) -> EpochSyncIterator:
        return Batches(partial(self._batches[1].build_iter, self.current_epoch + 1), self._stream)

    def _step(self, batch: Any, batch_idx: int, mode: str) -> torch.Tensor | None:
        utterances, tensors = batch
        with self._stream:
            return super()._step((utterances, {**tensors, "utt_id": utterances}), batch_idx, mode)


class LightningTrainer(Trainer):
    """ESPnet's trainer by name and options; the training itself is Lightning's."""

    @classmethod
    def run(
        cls,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any | None],
        train_iter_factory: AbsIterFactory,
        valid_iter_factory: AbsIterFactory,
        plot_attention_iter_factory: AbsIterFactory | None,
        trainer_options: TrainerOptions,
        distributed_option: DistributedOption,
    ) -> None:
        """Train until ``max_epoch``, from the last checkpoint if there is one and ``resume`` is set.

        Writes Lightning's checkpoints to the output directory, ``last.ckpt`` the latest of them, and the average of the
        best epochs under the name that ESPnet gives it, such as valid.ter.ave.pth.

        Raises:
            UserError: there is more than one process.
        """
        options = trainer_options
        if distributed_option.distributed:
            raise UserError("ESPnet3's trainer is used on one device here; the recipes in egs2 train on several")
        directory = Path(options.output_dir)
        phase, name, mode = options.best_model_criterion[0]
        criterion, kept = f"{phase}/{name}", options.keep_nbest_models
        on_gpu = options.ngpu > 0
        trainer = ESPnet3LightningTrainer(
            model=DistillModule(
                model, optimizers[0], schedulers[0], (train_iter_factory, valid_iter_factory), options.seed
            ),
            exp_dir=str(directory),
            config=OmegaConf.create(
                {
                    "accelerator": "gpu" if on_gpu else "cpu",
                    "devices": 1,
                    "precision": "bf16-mixed" if options.use_amp and on_gpu else "32-true",
                    "max_epochs": options.max_epoch,
                    "accumulate_grad_batches": options.accum_grad,
                    "gradient_clip_val": options.grad_clip,
                    "log_every_n_steps": options.log_interval or 100,
                    "num_sanity_val_steps": 0,  # it would draw random numbers
                    "logger": {
                        "_target_": "lightning.pytorch.loggers.TensorBoardLogger",
                        "save_dir": str(directory),
                        "name": "tensorboard",
                        "version": "",
                    },
                }
            ),
            best_model_criterion=ListConfig([[criterion, kept if isinstance(kept, int) else max(kept), mode]]),
        )
        last = directory / LAST
        trainer.fit(ckpt_path=str(last) if options.resume and last.exists() else None)
        # ESPnet3's own average is written before the last epoch's checkpoint.
        kept_best = (
            file for file in trainer.trainer.checkpoint_callbacks if getattr(file, "monitor", None) == criterion
        )
        best = [path for file in kept_best for path in file.best_k_models]
        epochs = [torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in best]
        average = {key: sum(epoch[key] for epoch in epochs) / len(epochs) for key in epochs[0]}
        with atomic_write(directory / f"{phase}.{name}.ave.pth", "wb") as stream:
            torch.save(average, stream)


class LightningTask(DistillTask):
    """:class:`distill.training.distill_task.DistillTask` with ESPnet3's trainer; all else is the same."""

    trainer = LightningTrainer

    @classmethod
    def initialise(cls, args: argparse.Namespace, model: DistillModel) -> None:
        if not (args.resume and Path(args.output_dir, LAST).exists()):
            super().initialise(args, model)
