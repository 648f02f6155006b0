"""Train a teacher or a student with ESPnet's trainer.

python -m distill.bin.train --config conf/train_student_full.yaml --output_dir exp/student_full ...
python -m distill.bin.train --help          (ESPnet's options, and the group "Distillation")
python -m torch.distributed.run --nproc_per_node 2 -m distill.bin.train --dist_backend gloo ...   (two CPU processes)
"""

from __future__ import annotations

from distill.errors import cli


@cli
def main(cmd: list[str] | None = None) -> None:
    from distill.tasks.distill_task import DistillTask

    DistillTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
