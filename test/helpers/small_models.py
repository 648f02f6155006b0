"""Small models on disk: trainings, an export, and a recogniser in Hugging Face's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tiny_exports
import tiny_networks as tiny
import torch
import yaml

STUDENT: dict[str, Any] = {
    "front_end": "cnn", "front_end_conf": {"channels": list(tiny.CHANNELS)}, "width": 32, "layers": 3, "heads": 2,
    "ffn": 48, "kernel": 7,
}  # fmt: skip
TEACHER: dict[str, Any] = {"config": {k: list(v) if isinstance(v, tuple) else v for k, v in tiny.TEACHER.items()}}
CHUNKS = {"chunk_ms": [160, 480], "hop": 1.0, "left_ms": 2000}
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "'"]


def config_of(kind: str) -> dict[str, Any]:
    """Configuration of a training: ``teacher``, ``full`` (a student), or ``stream`` (one that streams)."""
    config: dict[str, Any] = {
        "network": "teacher" if kind == "teacher" else "student",
        "network_conf": TEACHER if kind == "teacher" else STUDENT,
        "token_list": tiny_exports.TOKENS,
        "token_type": "char",
    }
    return {**config, "chunk_conf": CHUNKS} if kind == "stream" else config


def write_training(folder: Path, kind: str) -> None:
    """A training's directory: config.yaml and model.pth; see :func:`config_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    network = tiny.teacher() if kind == "teacher" else tiny.student()
    torch.save({f"network.{key}": value for key, value in network.state_dict().items()}, folder / "model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(kind), sort_keys=False))


def exported(chunk_ms: int) -> Path:
    """An export's directory, not to be changed."""
    return tiny_exports.export("cnn", chunk_ms)


def write_export(folder: Path) -> None:
    """An export's directory, for chunks of 480 ms."""
    shutil.copytree(exported(480), folder, dirs_exist_ok=True)


def write_hugging_face(folder: Path, name: str = "Wav2Vec2") -> None:
    """A fine-tuned recogniser in Hugging Face's format."""
    import transformers

    torch.manual_seed(3)
    transformers.utils.logging.disable_progress_bar()
    config = getattr(transformers, f"{name}Config")(vocab_size=len(VOCABULARY), pad_token_id=0, **tiny.TEACHER)
    getattr(transformers, f"{name}ForCTC")(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": "|", "unk_token": "<unk>"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 16000}))
