"""Several processes that train together: every parameter has a gradient, and how batches are shared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_training import STUDENT, TEACHER, changed
from two_steps import batch, model_of

from distill.configuration import for_processes
from distill.training.distill_task import DistillTask

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    {
        path.resolve()
        for pattern in ("conf/train_*.yaml", "conf/from_scratch/*/train_*.yaml", "egs2/*/*/conf/train_*.yaml")
        for path in ROOT.glob(pattern)
    }
)
NAMES = [str(path.relative_to(ROOT)) for path in SHIPPED]


def small(path: Path) -> dict:
    """A shipped configuration with a tiny network that has the same parts."""
    config = yaml.safe_load(path.read_text())
    conf = config["network_conf"]
    if config["network"] == "teacher":
        given = (
            conf["config"] if isinstance(conf["config"], dict) else {"mask_time_prob": 0.05, "mask_feature_prob": 0.01}
        )
        masks = {key: value for key, value in given.items() if key.startswith("mask_")}
        conf["config"] = {
            **TEACHER["network_conf"]["config"],
            "mask_time_prob": 0.05,
            **masks,
            "mask_feature_length": 4,
        }
    else:
        conf.update({"width": 16, "layers": 2, "heads": 2, "ffn": 32, "kernel": 7})
        conf["front_end_conf"] = {**conf.get("front_end_conf", {}), "channels": [16] * 7}
        if conf["front_end"] == "fbank":
            conf["front_end_conf"]["channels"] = 16
    return config


@pytest.fixture
def command(world, teacher):
    """The command line of a shipped training's tiny twin; students are those of stages 10 and 11."""

    def options(name: str) -> list[str]:
        config = small(ROOT / name)
        of_teacher = ["--teacher", str(teacher)] if config["network"] == "student" else []
        return world.command(f"small_{name.replace('/', '_')}", config, *of_teacher)

    return options


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_shipped_training_has_a_gradient(command, name):
    model = model_of(command(name))
    for samples in ([16000, 9000], [1600]):
        model.zero_grad()
        model(**batch(samples, 0))[0].sum().backward()
        missing = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing


@pytest.mark.parametrize(
    "masks",
    [{"mask_time_prob": 0.0, "mask_feature_prob": 0.1}, {"mask_time_prob": 0.1, "apply_spec_augment": False}],
    ids=["features alone", "none"],
)
def test_a_teacher_whose_frames_are_not_masked_trains_no_mask(world, masks):
    config = changed(TEACHER)
    config["network_conf"]["config"] |= {**masks, "mask_feature_length": 4}
    model = model_of(world.command("unmasked", config))
    model(**batch([16000, 9000], 0))[0].sum().backward()
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_two_processes_take_steps_without_a_search_for_unused_parameters(command, tmp_path):
    chosen = [name for name in NAMES if name.startswith(("conf/train", "egs2/fsdd"))]
    assert len(chosen) == 8
    (tmp_path / "commands.json").write_text(json.dumps({name: command(name) for name in chosen}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29631"]
    done = subprocess.run(
        [*launch, str(ROOT / "test/helpers/two_steps.py"), str(tmp_path / "commands.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/test/helpers"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("trained")] == chosen


def test_batches_are_those_of_one_process_and_updates_see_as_much_audio():
    training = {"batch_bins": 2400000, "accum_grad": 4, "num_iters_per_epoch": 4000, "max_epoch": 20}
    assert for_processes(training, 1) == training
    for processes, accumulated, iterations in ((2, 2, 2000), (3, 2, 2000), (4, 1, 1000), (8, 1, 1000)):
        shared = for_processes(training, processes)
        assert shared["batch_bins"] == processes * 2400000
        assert (shared["accum_grad"], shared["num_iters_per_epoch"]) == (accumulated, iterations)
        assert iterations / accumulated == 4000 / 4  # updates of an epoch
    assert for_processes({"batch_size": 3}, 2) == {"batch_size": 3, "accum_grad": 1}


@pytest.mark.parametrize(("processes", "expected"), [(1, (1000, 3, None)), (2, (2000, 2, None))])
def test_what_is_shared_is_what_the_trainer_gets(world, monkeypatch, processes, expected):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: processes > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    options = (
        "--distill_conf",
        "target=transcript",
        "--batch_type",
        "numel",
        "--batch_bins",
        "1000",
        "--accum_grad",
        "3",
    )
    arguments = DistillTask.get_parser().parse_args(world.command("shared", STUDENT, *options))
    assert arguments.use_amp and not arguments.unused_parameters
    DistillTask.build_optimizers(arguments, DistillTask.build_model(arguments))
    assert (arguments.batch_bins, arguments.accum_grad, arguments.num_iters_per_epoch) == expected
    assert not arguments.use_amp and not arguments.unused_parameters  # on the CPU


def test_amp_stays_on_with_a_gpu_unless_a_configuration_turns_it_off(world, teacher):
    for given, expected in ((None, True), (False, False)):
        config = STUDENT if given is None else {**STUDENT, "use_amp": given}
        options = ("--distill_conf", "target=transcript", "--ngpu", "1")
        arguments = DistillTask.get_parser().parse_args(world.command("amp", config, *options))
        DistillTask.build_optimizers(arguments, DistillTask.build_model(arguments))
        assert arguments.use_amp is expected
    only_hidden = changed(STUDENT, distill_conf={"alpha": 0.0, "target": "none"})
    arguments = DistillTask.get_parser().parse_args(world.command("hidden", only_hidden, "--teacher", str(teacher)))
    DistillTask.build_optimizers(arguments, DistillTask.build_model(arguments))
    assert arguments.unused_parameters
