"""Write a training configuration with another student in it, such as S5 of conf/students.

    python -m distill.bin.student_config --config conf/train_student_full.yaml --student conf/students/s5.yaml \\
        --output exp/conf/train_student_full.yaml

Losses, schedule and dropout stay those of the training. A frozen front end stays frozen only if the new student has the
same one: a front end that is not the teacher's must be trained.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.configuration import write_student_config
from distill.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="of the training")
    parser.add_argument("--student", type=Path, required=True, help="file with the student's network_conf")
    parser.add_argument("--output", type=Path, required=True, help="the new configuration")
    write_student_config(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
