"""Train a teacher or a student with ESPnet's trainer.

python -m distill.bin.train --config conf/train_student_full.yaml --output_dir exp/student_full ...
python -m distill.bin.train --help          (ESPnet's options, and the group "Distillation")
python -m torch.distributed.run --nproc_per_node 2 -m distill.bin.train --dist_backend gloo ...   (two CPU processes)
"""

import os

from distill.errors import cli

# Read when torch is loaded. Threads that spin while they wait for each other take the cores from the data loader and
# from any other job: on a busy machine of two cores a step took five times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@cli
def main(cmd: list[str] | None = None) -> None:
    from distill.training.train import train

    train(cmd)


if __name__ == "__main__":
    main()
