"""Train a teacher or a student with ESPnet's trainer.

python -m distill.bin.train --config conf/train_student_full.yaml --output_dir exp/student_full ...
python -m distill.bin.train --help          (ESPnet's options, and the group "Distillation")
python -m torch.distributed.run --nproc_per_node 2 -m distill.bin.train --dist_backend gloo ...   (two CPU processes)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distill.errors import cli
from distill.files import atomic_write

# Read when torch is loaded. Threads that spin while they wait for each other take the cores from the data loader and
# from any other job: on a busy machine of two cores a step took five times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def save_whole() -> None:
    """Let torch.save, with which ESPnet's trainer writes its checkpoints, write beside and rename.

    A training that is killed while it saves then finds its previous checkpoint instead of half a new one.
    """
    import torch

    save = torch.save

    def save_beside(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(f, str | Path):
            with atomic_write(f, "wb") as stream:
                save(obj, stream, *args, **kwargs)
        else:
            save(obj, f, *args, **kwargs)

    torch.save = save_beside


@cli
def main(cmd: list[str] | None = None) -> None:
    from distill.tasks.distill_task import DistillTask

    save_whole()
    DistillTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
