"""What is packed of an experiment: weights without pickle, configuration and results without local paths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from distill.errors import CONTROL, UserError
from distill.files import read_json as read_object
from distill.files import yaml_text

if TYPE_CHECKING:
    from distill.models.student import Student
    from distill.models.teacher import Teacher

# Keys of a training's configuration that recognition needs, and those that tell how the model was trained.
RECOGNITION = ("network", "network_conf", "chunk_conf", "token_type", "token_list")
TRAINING = (
    "distill_conf",
    "augment_conf",
    "optim",
    "optim_conf",
    "scheduler",
    "scheduler_conf",
    "max_epoch",
    "num_iters_per_epoch",
    "batch_type",
    "batch_bins",
    "accum_grad",
    "grad_clip",
    "best_model_criterion",
    "keep_nbest_models",
    "seed",
    "version",
)
BPE_MODEL = "bpe.model"
MAX_EXPORT = 2 << 30  # bytes of an ONNX file
Members = dict[str, bytes | Path]  # content, or the file that has it, by name in the archive


def without_paths(value: Any) -> Any:
    """Shorten every path that leads out of the experiment to its last part; tokens stay as they are."""
    if isinstance(value, Mapping):
        return {key: item if key == "token_list" else without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith(("../", "~"))):
        return PurePath(value).name
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of an experiment, such as results.json, without local paths.

    Raises:
        UserError: not found, or not a JSON object.
    """
    return without_paths(read_object(path, "run the stage that makes it"))


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a training's configuration that has a meaning on other machines."""
    return without_paths({key: config[key] for key in RECOGNITION + TRAINING if config.get(key) is not None})


def training_members(directory: Path, config: dict[str, Any], network: Student | Teacher) -> Members:
    """Content of model.safetensors, config.yaml, tokens.txt and bpe.model of a training."""
    from safetensors.torch import save

    weights = {f"network.{key}": tensor.contiguous().clone() for key, tensor in network.state_dict().items()}
    kept = public_config(config)
    members: Members = {}
    if config.get("token_type") == "bpe":
        bpe = directory / BPE_MODEL
        if not bpe.is_file():
            bpe = Path(config.get("bpemodel") or BPE_MODEL)
        if not bpe.is_file():
            raise UserError(f"{bpe}: not found, but {directory} was trained with it; pack in the recipe's directory")
        members[BPE_MODEL] = bpe
        kept["bpemodel"] = f"exp/{directory.name}/{BPE_MODEL}"
    members["config.yaml"] = yaml_text(kept).encode()
    members["tokens.txt"] = "".join(f"{token}\n" for token in config["token_list"]).encode()
    members["model.safetensors"] = save(weights, metadata={"format": "pt"})
    return members


def export_members(directory: Path) -> Members:
    """Every file of an export, by name, but the page for browsers, which has copies of a model and of its runtime."""
    members: Members = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and (directory / "web") not in path.parents
    }
    if not any(name.endswith(".onnx") for name in members):
        raise UserError(f"{directory}: holds no .onnx file; export the model first (stage 15)")
    for name, content in members.items():
        if isinstance(content, Path) and content.stat().st_size > MAX_EXPORT:
            raise UserError(f"{content}: is larger than any exported model; export the model again (stage 15)")
        if CONTROL.search(name):
            raise UserError(f"{directory}: {name!r} has a control character in its name; remove it")
    members |= {name: json_bytes(read_json(directory / name)) for name in members if name.endswith(".json")}
    return {name: content for name, content in members.items() if not name.startswith(".")}


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON as the stages write it."""
    return (json.dumps(content, indent=1) + "\n").encode()
