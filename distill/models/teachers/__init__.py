"""Teachers by the kind of their encoder: :class:`distill.models.teacher.Teacher`, and those of another layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.models.teacher import Teacher, model_type_of
from distill.models.teachers.espnet import EspnetTeacher
from distill.models.teachers.parakeet import ParakeetTeacher
from distill.models.teachers.sew import SewTeacher
from distill.models.teachers.wav2vec2_bert import Wav2Vec2BertTeacher

# model_type of a configuration -> its class; all others are of wav2vec 2.0's layout
CLASSES: dict[str, type[Teacher]] = {
    "espnet": EspnetTeacher,
    "parakeet_encoder": ParakeetTeacher,
    "sew": SewTeacher,
    "wav2vec2-bert": Wav2Vec2BertTeacher,
}


def build_teacher(vocab_size: int, config: Mapping[str, Any] | str | Path, **arguments: Any) -> Teacher:
    """The teacher of a configuration, or of the directory or the model of a hub that it names.

    Args:
        vocab_size, config, arguments: as of :class:`distill.models.teacher.Teacher`.

    Raises:
        UserError: the configuration is missing, damaged, or not that of a teacher.
    """
    return CLASSES.get(model_type_of(config), Teacher)(vocab_size, config, **arguments)
