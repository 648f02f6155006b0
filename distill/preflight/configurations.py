"""Checks of the configurations of the trainings to be run, and whether their networks fit each other."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.checkpoints.load import NetworkShape, build_network, read_config, shape_of
from distill.configuration import (
    AugmentConf,
    ChunkConf,
    DistillConf,
    MaskConf,
    check_frames_compared,
    check_tokens_compared,
    layer_map,
    read_conf,
    read_training_config,
    student_frame_ms,
    with_student,
)
from distill.errors import UserError
from distill.files import atomic_write
from distill.preflight.options import Options, is_hugging_face, runs

SECTIONS = {
    "distill_conf": DistillConf, "chunk_conf": ChunkConf, "augment_conf": AugmentConf, "mask_conf": MaskConf,
}  # fmt: skip
COMMON_KEYS = set(SECTIONS) | {
    "network", "network_conf", "optim", "optim_conf", "scheduler", "scheduler_conf", "max_epoch",
    "num_iters_per_epoch", "accum_grad", "grad_clip", "batch_type", "batch_bins", "num_workers", "log_interval",
    "freeze_param", "keep_nbest_models", "best_model_criterion", "patience", "seed", "use_amp", "cpu_bfloat16",
    "cnn_log_mel_steps",
    "use_matplotlib", "use_tensorboard",
}  # fmt: skip


class Training(NamedTuple):
    """A training that is wanted: the option that names its configuration, the file, and its content."""

    option: str
    path: Path
    config: dict[str, Any]


def wanted_trainings(options: Options) -> list[str]:
    """Options that name the configurations of the trainings to be run."""
    names = []
    if runs(options, 7) and not options["teacher"]:
        names += ["teacher_init_config"] if options["teacher_init_config"] else []
        names += ["teacher_config"]
    if any(runs(options, stage) for stage in (8, 10)):
        names.append("student_full_config")
    if any(runs(options, stage) for stage in (8, 11, 12, 14, 15)):  # chunk lengths are checked against its frames
        names.append("student_stream_config")
    return names


def read_training(options: Options, option: str) -> Training:
    """Read the configuration that an option names, with the network of ``--student`` in a student's."""
    path = configuration = Path(options[option])
    for name in (option, "student"):
        if options[name] and not Path(options[name]).is_file():
            raise UserError(
                f"--{name} {options[name]}: not found; give a training's configuration, such as those in conf/"
            )
    try:
        config = read_training_config(path)
        if options["student"] and option.startswith("student_"):
            path = Path(options["student"])
            config = with_student(config, read_training_config(path))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: no network_conf; give a file such as conf/students/s5.yaml") from None
    return Training(option, configuration, config)


def check_trainings(options: Options, trainings: Sequence[Training]) -> Iterator[str]:
    """Unknown keys and wrong values of configurations, and networks that cannot be built or do not fit each other."""
    for training in trainings:
        yield from _sections(training)
        yield from _unknown_keys(training)
    yield from _networks(options, trainings)


def _sections(training: Training) -> Iterator[str]:
    """Sections of a configuration whose keys or values are wrong."""
    for section, kind in SECTIONS.items():
        values = training.config.get(section)
        if values is not None and not isinstance(values, dict):
            yield f"{training.path}: {section}: must be a mapping"
            continue
        try:
            read_conf(kind, section, values)
        except UserError as error:
            yield f"{training.path}: {error}"


def _unknown_keys(training: Training) -> Iterator[str]:
    """Keys that neither ESPnet's trainer nor this toolkit has."""
    keys = training.config.keys() - COMMON_KEYS
    if not keys:
        return  # the parser, which takes seconds to import, need not be asked
    from distill.training.distill_task import DistillTask

    known = {action.dest for action in DistillTask.get_parser()._actions}
    for key in sorted(keys - known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        yield f"{training.path}: {key}: no such key in a training's configuration; did you mean {near[0]}?"


def _networks(options: Options, trainings: Sequence[Training]) -> Iterator[str]:
    """Networks that cannot be built, and students that do not fit their teacher or the chunk lengths.

    Building takes seconds, most of them for imports, so the networks that could be built are noted in the experiment. A
    dry run writes nothing, and plans for a pretrained teacher that is not there yet.
    """
    teacher, dry_run = teacher_shape(options), options["dry_run"] == "true"
    note = Path(options["expdir"], ".stages", "networks")
    built = note.read_text(encoding="utf-8").split() if note.is_file() else []
    for training in trainings:
        network = training.config.get("network_conf") or {}
        if not isinstance(network, dict):
            yield f"{training.path}: network_conf: must be a mapping"
            continue
        named = network.get("config") if training.config.get("network") == "teacher" else None
        if isinstance(named, str):
            if not (dry_run or named.startswith("hf://") or Path(named, "config.json").is_file()):
                yield (
                    f"{training.path}: network_conf.config: {named}/config.json not found; put a pretrained model "
                    "there, give a trained --teacher, or a --teacher_config that describes a network"
                )
            continue
        kind = json.dumps([training.config.get("network"), network], sort_keys=True, default=str)
        checksum = hashlib.sha256(kind.encode()).hexdigest()
        if checksum not in built:
            try:
                _build(training.config)
            except UserError as error:
                yield f"{training.path}: {error}"
                continue
            built.append(checksum)
            if not dry_run:
                # An --expdir that cannot be written is reported by another check
                with contextlib.suppress(OSError), atomic_write(note) as stream:
                    stream.write("\n".join(built))
        if training.config.get("network") != "student":
            continue
        conf = training.config.get("distill_conf") or {}
        if teacher is not None and conf.get("alpha", 0.8) < 1:
            yield from _layers(options, training, network, conf, teacher.layers)
        if teacher is not None and _learns_from_teacher(options, training):
            yield from _frames(options, training, network, conf, teacher)
        if training.option == "student_stream_config":
            yield from _chunks(options, training, network)


def _build(config: Mapping[str, Any]) -> None:
    """Build the network of a configuration without memory for its weights."""
    import torch

    with torch.device("meta"):
        build_network(config, 10)


def _layers(
    options: Options, training: Training, network: Mapping[str, Any], conf: Mapping[str, Any], teacher: int
) -> Iterator[str]:
    """A map of layers that the teacher does not have, or a student with more layers than the teacher."""
    source = f"--student {options['student']}" if options["student"] else str(training.path)
    chosen = conf.get("layer_map")
    if chosen is not None:
        if len(chosen) != network.get("layers") or not all(1 <= layer <= teacher for layer in chosen):
            yield (
                f"{training.path}: distill_conf.layer_map: must name one of the teacher's {teacher} layers for each of "
                f"the student's {network.get('layers')}"
            )
        return
    try:
        layer_map(int(network.get("layers", 0)), teacher)
    except UserError:
        cure = '--student "" takes the students of the two configurations' if options["student"] else "take fewer"
        yield (
            f"{source}: the student has {network['layers']} layers, its teacher {teacher}; {cure}, or give "
            f"distill_conf.layer_map in {training.path}"
        )


def _learns_from_teacher(options: Options, training: Training) -> bool:
    """Whether its teacher is exp/teacher, not the student before it alone."""
    return training.option == "student_full_config" or options["stage2_teacher"] != "student_full"


def _frames(
    options: Options,
    training: Training,
    network: Mapping[str, Any],
    conf: Mapping[str, Any],
    teacher: NetworkShape,
) -> Iterator[str]:
    """Logits that are to be compared, though the teacher's frames are longer or its tokens are not the student's."""
    if "distill_conf" in options.get(training.option.replace("_config", "_args"), ""):
        return  # the training itself checks what it is given besides its configuration
    try:
        distill_conf = read_conf(DistillConf, "distill_conf", conf)
        assert distill_conf is not None
        check_frames_compared(distill_conf, teacher.frame_ms, student_frame_ms(network)[0])
        if options["keep_teacher_tokens"] == "true":
            check_tokens_compared(distill_conf)
    except UserError as error:
        if str(error).startswith(("frames of", "its frames", "its tokens")):  # others are reported by another check
            source = options["teacher"] or options["teacher_config"]
            yield f"{training.path}: does not fit the teacher {source}: {error}"


def _chunks(options: Options, training: Training, network: Mapping[str, Any]) -> Iterator[str]:
    """Chunk lengths that are no multiple of the student's frames."""
    frame_ms = student_frame_ms(network)[1]
    for name in ("latencies", "fixed_chunks", "export_chunks"):
        for chunk in options[name].split():
            if chunk != "full" and int(chunk) % frame_ms:
                yield f"--{name} {chunk}: not a multiple of {frame_ms} ms, the frames of {training.path}"


def teacher_shape(options: Options) -> NetworkShape | None:
    """The teacher's layers and frames, as far as they are known before anything has run."""
    try:
        if not options["teacher"]:
            config = read_training_config(Path(options["teacher_config"]))
        elif is_hugging_face(options):
            config = {"network": "teacher", "network_conf": {"config": options["teacher"]}}
        else:
            config = read_config(options["teacher"])
        return shape_of(config)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what cannot be read is reported by another check
