"""Train a teacher or a student with ESPnet's trainer.

python -m distill.bin.train --config conf/train_student_full.yaml --output_dir exp/student_full ...
python -m distill.bin.train --help          (ESPnet's options, and the group "Distillation")
python -m torch.distributed.run --nproc_per_node 2 -m distill.bin.train --dist_backend gloo ...   (two CPU processes)
"""

from __future__ import annotations

import ctypes
import gc
import os

from distill.errors import cli

# Read when torch is loaded. Threads that spin while they wait for each other take the cores from the data loader and
# from any other job: on a busy machine of two cores a step took five times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


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


def skip_type_checks() -> None:
    """Leave ESPnet's run-time checks of argument types out (typeguard does under python -O, too).

    They are compiled anew whenever ESPnet is loaded, a third of the time it takes a training to start.
    """
    import typeguard

    typeguard.typechecked = lambda function: function  # type: ignore[assignment]


@cli
def main(cmd: list[str] | None = None) -> None:
    skip_type_checks()
    # ESPnet, torch and what they import are a million objects that never become garbage: the collector would look
    # through them again and again, now and in training.
    gc.disable()
    from distill.checkpoints.resume import save_whole
    from distill.training.distill_task import DistillTask

    gc.freeze()
    gc.enable()
    keep_memory()
    with save_whole():
        DistillTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
