"""A recipe in ESPnet3's form: stages of a system, whose configurations are YAML files."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from espnet3.contract.stages import StageSpec
from espnet3.systems.base.system import BaseSystem
from espnet3.systems.launch import launch
from espnet3.utils.task_utils import get_task_class
from omegaconf import DictConfig

from distill.configuration import write_student_config
from distill.decode.settings import DecodeConf
from distill.errors import UserError, cli
from distill.recognition.decode import decode_sets
from distill.scoring.score import score_directories

PATHS = (
    *("exp_dir", "stats_dir", "train_dir", "valid_dir", "config", "student", "init", "teacher", "token_list"),
    *("bpemodel", "graph"),
)  # keys of a training configuration


@cli
def run(argv: list[str] | None = None) -> None:
    """Command line of a recipe: --stages and a configuration of each kind that they need."""
    launch(DistillSystem, conf_package="distill.espnet3", argv=argv)


class DistillSystem(BaseSystem):
    """Distillation with ESPnet3's trainer, on the data, tokens and graph of a recipe in egs2.

    A training configuration describes one training: the teacher's, the small student's, or the streaming student's.
    conf/training.yaml beside this file lists its keys.
    """

    stages: ClassVar[tuple[StageSpec, ...]] = (
        StageSpec(name="create_dataset", config="training", log_dir="exp_dir"),
        StageSpec(name="collect_stats", config="training", log_dir="exp_dir"),
        StageSpec(name="train", config="training", log_dir="exp_dir"),
        StageSpec(name="infer", config="inference", log_dir="exp_dir"),
        StageSpec(name="measure", config="metrics", log_dir="exp_dir"),
    )

    def create_dataset(self, *args, **kwargs) -> None:
        """Stages of the recipe in egs2 from data preparation to graph, or to the teacher if that comes from there."""
        self._reject_stage_args("create_dataset", args, kwargs)
        self._run_recipe(1, int(self.training_config.last_recipe_stage))

    def collect_stats(self, *args, **kwargs) -> None:
        """Lengths of all utterances, stage 9 of the recipe in egs2."""
        self._reject_stage_args("collect_stats", args, kwargs)
        self._run_recipe(9, 9)

    def train(self, *args, **kwargs) -> None:
        """Train with ESPnet3's trainer; what was cut off goes on."""
        self._reject_stage_args("train", args, kwargs)
        options = list(trainer_options(self.training_config))
        with contextlib.chdir(self.training_config.recipe):
            get_task_class(self.training_config.task).main(cmd=options)

    def infer(self, *args, **kwargs) -> None:
        """Recognise the test sets, a streaming student at each of its latencies."""
        self._reject_stage_args("infer", args, kwargs)
        conf = self.inference_config
        chunk_ms = [None if chunk == "full" else int(chunk) for chunk in conf.latencies]
        model, data = Path(conf.exp_dir).resolve(), [Path(name).resolve() for name in conf.data_dirs]
        with contextlib.chdir(conf.recipe):
            decode_sets(model, data, chunk_ms, [DecodeConf()])

    def measure(self, *args, **kwargs) -> None:
        """Score what was recognised."""
        self._reject_stage_args("measure", args, kwargs)
        conf = self.metrics_config
        for data in map(Path, conf.data_dirs):
            found = sorted(Path(conf.exp_dir).glob(f"decode_*/{data.name}"))
            if not found:
                raise UserError(f"{conf.exp_dir}: nothing of {data} is recognised there; run the stage infer first")
            score_directories(data / "text", found, conf.scoring, None, None)

    def _run_recipe(self, first: int, last: int) -> None:
        conf = self.training_config
        options = [str(option) for option in conf.recipe_options]
        command = [
            str(Path(conf.recipe).resolve() / "run.sh"),
            "--stage",
            str(first),
            "--stop_stage",
            str(last),
            *options,
        ]
        if subprocess.run(command).returncode:
            raise UserError(f"{conf.recipe}: its stages {first} to {last} failed, as it says above")


def trainer_options(conf: DictConfig) -> Iterator[str]:
    """Options of ESPnet's command line for a training, as local/train.sh gives them, with absolute paths.

    Args:
        conf: a training configuration; see conf/training.yaml.
    """
    path = {name: str(Path(conf[name]).resolve()) for name in PATHS if conf[name]}
    config = path["config"]
    if "student" in path:
        config = str(Path(path["exp_dir"], Path(config).name))
        write_student_config(Path(path["config"]), Path(path["student"]), Path(config))
    yield from ("--config", config, "--output_dir", path["exp_dir"], "--resume", "true")
    yield from ("--ngpu", str(conf.num_device), "--seed", str(conf.seed))
    yield from ("--use_preprocessor", "true", "--cleaner", "none", "--g2p", "none")
    yield from ("--token_list", path["token_list"], "--token_type", conf.token_type)
    yield from ("--bpemodel", path.get("bpemodel", "none"))
    for name in ("train", "valid"):
        data = path[f"{name}_dir"]
        yield from (f"--{name}_data_path_and_name_and_type", f"{data}/wav.scp,speech,sound")
        yield from (f"--{name}_data_path_and_name_and_type", f"{data}/text,text,text")
        yield from (f"--{name}_shape_file", f"{path['stats_dir']}/{name}/speech_shape")
    if "graph" in path:
        yield from ("--distill_conf", f"graph={path['graph']}")
    for name in ("init", "teacher"):
        if name in path:
            yield from (f"--{name}", path[name])
    for key, value in conf.options.items():
        yield from (f"--{key}", str(value))
