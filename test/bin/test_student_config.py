"""Another student in the same training."""

from pathlib import Path

import pytest
import yaml

from distill.bin.student_config import main

CONF = Path(__file__).parents[2] / "conf"


def made(tmp_path: Path, student: Path) -> dict:
    output = tmp_path / "made.yaml"
    main(["--config", str(CONF / "train_student_full.yaml"), "--student", str(student), "--output", str(output)])
    return yaml.safe_load(output.read_text())


@pytest.mark.parametrize(("name", "frozen"), [("s1", True), ("s4", True), ("s5", False), ("f", False)])
def test_the_front_end_stays_frozen_only_if_it_is_the_teachers(tmp_path, name, frozen):
    student = yaml.safe_load((CONF / "students" / f"{name}.yaml").read_text())["network_conf"]
    training = yaml.safe_load((CONF / "train_student_full.yaml").read_text())
    config = made(tmp_path, CONF / "students" / f"{name}.yaml")
    network = config["network_conf"]
    assert network["front_end_conf"].pop("freeze", False) is frozen
    assert network.pop("dropout") == training["network_conf"]["dropout"]
    assert network == student
    for key in training.keys() - {"network_conf"}:
        assert config[key] == training[key]


def test_what_is_no_student_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        made(tmp_path, CONF / "train_teacher.yaml")
    assert "train_teacher.yaml: no student" in capsys.readouterr().err
