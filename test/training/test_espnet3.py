"""Trainings with ESPnet3's trainer, beside the same ones with ESPnet's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_training import STUDENT, changed

from distill.checkpoints.load import load_network

ROOT = Path(__file__).parents[2]
CONFIG = changed(
    STUDENT,
    network_conf={"dropout": 0.1},  # dropout, noise and chunks: whatever draws random numbers
    chunk_conf={"chunk_ms": [160, 320], "hop": 0.5},
    augment_conf={"gain_db": 6, "noise_snr_db": [10, 40], "prob": 0.5, "silence_s": 0.5},
    scheduler="warmuplr",
    scheduler_conf={"warmup_steps": 4},
    grad_clip=1.0,
)


@pytest.fixture(scope="module")
def recipe(world, teacher) -> Path:
    """Configurations of a training, a recognition and a scoring on the tiny corpus."""
    directory = world.root / "espnet3"
    (directory / "conf").mkdir(parents=True)
    (world.root / "run.sh").write_text('#!/bin/sh\necho "$@" >> ran\n')
    (world.root / "run.sh").chmod(0o755)
    (world.root / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    files = {
        "training": {
            "recipe": str(world.root), "recipe_options": ["--nj", 1], "exp_dir": "exp", "teacher": str(teacher),
            "stats_dir": "${recipe}/stats", "token_list": "${recipe}/tokens.txt", "token_type": "word",
            "graph": "${recipe}/den.npz", "train_dir": "${recipe}/train", "valid_dir": "${recipe}/valid",
            "config": "${recipe}/config.yaml",
            "options": {"max_epoch": 2, "batch_type": "unsorted", "batch_size": 4, "num_workers": 1},
        },
        "inference": {
            "recipe": str(world.root), "data_dirs": ["${recipe}/valid"], "latencies": [160, "full"], "exp_dir": "exp",
        },
        "metrics": {"recipe": str(world.root), "data_dirs": ["${recipe}/valid"], "exp_dir": "exp"},
    }  # fmt: skip
    for name, content in files.items():
        (directory / f"conf/{name}.yaml").write_text(yaml.safe_dump(content))
    return directory


def run(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "egs3/demo/asr_distill/run.py")]
    return subprocess.run(
        [*program, *arguments], cwd=recipe, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def weights(file: Path) -> dict[str, torch.Tensor]:
    content = torch.load(file, weights_only=False)
    return content.get("state_dict", content)


def test_weights_are_those_of_espnets_trainer_also_after_a_resumption(world, teacher, recipe):
    more = ["--batch_size", "4", "--num_workers", "1", "--teacher", str(teacher)]
    directory = world.train("student_espnet2", CONFIG, *more)
    after_one, expected = (weights(directory / f"{epoch}epoch.pth") for epoch in (1, 2))
    configuration = recipe / "conf/training.yaml"
    both_epochs = configuration.read_text()
    configuration.write_text(both_epochs.replace("max_epoch: 2", "max_epoch: 1"))
    training = ["--training_config", str(configuration)]
    done = run(recipe, "--stages", "train", *training)
    assert done.returncode == 0, done.stderr
    first = weights(recipe / "exp/last.ckpt")
    assert first.keys() == after_one.keys()
    assert all(torch.equal(first[name], weight) for name, weight in after_one.items())
    configuration.write_text(both_epochs)
    done = run(recipe, "--stages", "train", *training)
    assert done.returncode == 0, done.stderr
    found = weights(recipe / "exp/last.ckpt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert not all(torch.equal(found[name], weight) for name, weight in first.items())
    assert load_network(recipe / "exp").token_list == load_network(world.root / "student_espnet2").token_list


def test_recognition_and_scores(recipe):
    done = run(
        recipe, "--stages", "infer", "measure", "--inference_config", "conf/inference.yaml",
        "--metrics_config", "conf/metrics.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for decode in ("decode_160ms", "decode_full"):
        score = json.loads((recipe / f"exp/{decode}/valid/score_wer/score.json").read_text())
        assert score["words"] > 0


def test_data_are_prepared_by_the_other_recipe(world, recipe):
    done = run(recipe, "--stages", "create_dataset", "collect_stats", "--training_config", "conf/training.yaml")
    assert done.returncode == 0, done.stderr
    assert (recipe / "ran").read_text().splitlines() == [
        "--stage 1 --stop_stage 6 --nj 1",
        "--stage 9 --stop_stage 9 --nj 1",
    ]


def test_nothing_to_score_is_one_line_at_the_end(recipe, tmp_path):
    metrics = recipe / "conf/nothing.yaml"
    metrics.write_text((recipe / "conf/metrics.yaml").read_text().replace("exp_dir: exp", f"exp_dir: {tmp_path}"))
    done = run(recipe, "--stages", "measure", "--metrics_config", str(metrics))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("is recognised there; run the stage infer first")


@pytest.mark.parametrize("name", ["demo", "librispeech"])
def test_configurations_of_the_recipes(name, monkeypatch):
    from espnet3.utils.config_utils import load_and_merge_config

    from distill.espnet3.system import trainer_options
    from distill.training.distill_task import DistillTask

    monkeypatch.chdir(ROOT / f"egs3/{name}/asr_distill")
    monkeypatch.setattr("distill.espnet3.system.write_student_config", lambda *_: None)
    roles = {"inference": "inference", "inference_full": "inference", "metrics": "metrics", name: None}
    trainings = 0
    for path in sorted(Path("conf").glob("*.yaml")):
        role = roles.get(path.stem, "training")
        if role is None:
            continue
        conf = load_and_merge_config(path, config_name=f"{role}.yaml", default_package="distill.espnet3")
        assert Path(conf.recipe, "run.sh").is_file()
        if role == "training":
            trainings += 1
            assert Path(conf.config).is_file() and (not conf.student or Path(conf.student).is_file())
            options = list(trainer_options(conf))
            options[1] = str(Path(conf.config).resolve())  # the merged one is not written here
            args = DistillTask.get_parser().parse_args(options)
            assert (
                args.output_dir == str(Path(f"exp/{path.stem}").resolve())
                and Path(args.train_shape_file[0]).is_absolute()
            )
    assert trainings == {"demo": 2, "librispeech": 4}[name]
