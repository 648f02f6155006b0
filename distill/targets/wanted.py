"""Which of a teacher's outputs its students need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distill.configuration import DistillConf, layer_map, read_conf, read_training_config, student_frame_ms
from distill.errors import UserError


class Wanted(NamedTuple):
    """What to store besides the logits, which are always stored at the teacher's frame rate.

    Attributes:
        layers: numbers of the teacher's layers, from 1.
        hidden_ms: milliseconds between the frames of these layers.
        top_k: most probable tokens of every frame under the denominator graph; None: none are stored.
        nbest: token sequences of every utterance; 1: none are stored, as the best one follows from the logits.
    """

    layers: list[int]
    hidden_ms: int
    top_k: int | None = None
    nbest: int = 1


def wanted_by(config_path: Path, teacher_layers: int) -> Wanted:
    """What the student of a training configuration needs."""
    config = read_training_config(config_path)
    conf = read_conf(DistillConf, "distill_conf", config.get("distill_conf") or {})
    network_conf = config.get("network_conf") or {}
    if conf is None or network_conf.get("layers") is None:
        raise UserError(f"{config_path}: network_conf.layers is missing; it says which layers to store")
    layers = sorted(set(conf.layer_map or layer_map(network_conf["layers"], teacher_layers))) if conf.alpha < 1 else []
    return Wanted(layers, student_frame_ms(network_conf)[1], conf.posterior_top_k, conf.nbest)


def wanted(layers: str, student_configs: Sequence[Path], teacher_layers: int, teacher_ms: int) -> Wanted:
    """What several students need together.

    Args:
        layers: ``auto``, or numbers of the teacher's layers such as "2,4,6" instead.
        student_configs: training configurations of the students; without any, every layer is stored.
        teacher_layers: number of the teacher's layers.
        teacher_ms: milliseconds between frames of its layers, at which layers are stored if the students' differ or are
            shorter.
    """
    each = [wanted_by(path, teacher_layers) for path in student_configs]
    rates = {one.hidden_ms for one in each}
    top = [one.top_k for one in each if one.top_k is not None]
    if len(set(top)) > 1:
        raise UserError(f"{student_configs[1]}: posterior_top_k is not {student_configs[0]}'s; give both the same")
    if layers == "auto":
        chosen = sorted({layer for one in each for layer in one.layers}) if each else range(1, teacher_layers + 1)
    else:
        try:
            chosen = sorted({int(layer) for layer in layers.replace(",", " ").split()})
        except ValueError as error:
            raise UserError(f"--layers {layers}: must be auto or numbers such as 2,4,6") from error
        if chosen and not 1 <= chosen[0] <= chosen[-1] <= teacher_layers:
            raise UserError(f"--layers {layers}: the teacher has layers 1 to {teacher_layers}")
    several = {one.nbest for one in each if one.nbest > 1}
    if len(several) > 1:
        raise UserError(f"{student_configs[1]}: nbest is not {student_configs[0]}'s; give both the same")
    hidden_ms = max(rates.pop(), teacher_ms) if len(rates) == 1 else teacher_ms
    return Wanted(list(chosen), hidden_ms, top[0] if top else None, several.pop() if several else 1)
