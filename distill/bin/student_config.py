"""A training configuration with another student in it, such as S5 of conf/students.

    python -m distill.bin.student_config --config conf/train_student_full.yaml --student conf/students/s5.yaml \\
        --output exp/conf/train_student_full.yaml

The losses, the schedule and the dropout stay the training's. Its frozen front end stays frozen only if the new student
has the same: a front end that is not the teacher's must be trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill.errors import UserError, cli
from distill.files import atomic_write
from distill.plan import read_config


def with_student(training: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """The configuration ``training`` with the ``network_conf`` of ``student``."""
    before, network = training.get("network_conf") or {}, dict(student["network_conf"])
    if "dropout" in before:
        network.setdefault("dropout", before["dropout"])
    old_front, front = before.get("front_end_conf") or {}, dict(network.get("front_end_conf") or {})
    same = before.get("front_end") == network.get("front_end") and old_front.get("channels") == front.get("channels")
    if same and "freeze" in old_front:
        front.setdefault("freeze", old_front["freeze"])
    network["front_end_conf"] = front
    return {**training, "network": "student", "network_conf": network}


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="of the training")
    parser.add_argument("--student", type=Path, required=True, help="file with the student's network_conf")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)

    import yaml

    student = read_config(args.student)
    if student.get("network") != "student" or not isinstance(student.get("network_conf"), dict):
        raise UserError(f"{args.student}: no student; expected network: student and network_conf, as in conf/students")
    with atomic_write(args.output) as stream:
        yaml.safe_dump(with_student(read_config(args.config), student), stream, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    main()
