"""Train a teacher or a student with ESPnet's trainer.

python -m distill.bin.train --config conf/train_student_full.yaml --output_dir exp/student_full ...
python -m distill.bin.train --help          (ESPnet's options, and the group "Distillation")
python -m torch.distributed.run --nproc_per_node 2 -m distill.bin.train --dist_backend gloo ...   (two CPU processes)
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import cli
from distill.files import atomic_write

# Read when torch is loaded. Threads that spin while they wait for each other take the cores from the data loader and
# from any other job: on a busy machine of two cores a step took five times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextmanager
def save_whole() -> Iterator[None]:
    """Within this, let torch.save, with which ESPnet's trainer writes its checkpoints, write beside and rename.

    A training that is killed while it saves then finds its previous checkpoint instead of half a new one. The trainer
    writes checkpoint.pth before the epoch's own weights, which the average at the end needs; here it comes after them,
    so that a checkpoint never speaks of an epoch whose weights are lost.
    """
    import torch

    save = torch.save
    waiting: list[tuple[Any, Path]] = []

    def save_beside(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, str | Path):
            save(obj, f, *args, **kwargs)
        elif Path(f).name == "checkpoint.pth":
            waiting.append((obj, Path(f)))
        else:
            with atomic_write(f, "wb") as stream:
                save(obj, stream, *args, **kwargs)
            while waiting:
                checkpoint, path = waiting.pop()
                with atomic_write(path, "wb") as stream:
                    save(checkpoint, stream)

    torch.save = save_beside
    try:
        yield
    finally:
        torch.save = save


def keep_memory() -> None:
    """Let the C library keep memory that tensors give back, up to 2 GB, instead of returning it at every step.

    Fresh pages are handed out and cleared one by one: on a CPU that made a step of a small student an eighth longer.
    Settings of glibc (mallopt); other C libraries go on as they are.
    """
    trim_threshold, mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


@cli
def main(cmd: list[str] | None = None) -> None:
    from distill.tasks.distill_task import DistillTask

    keep_memory()
    with save_whole():
        DistillTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
