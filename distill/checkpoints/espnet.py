"""Teachers from ESPnet's own asr experiments with a CTC branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.checkpoints.load import load_weights, read_weights
from distill.checkpoints.schema import TrainingConf, encoder_arguments
from distill.configuration import checked
from distill.errors import UserError
from distill.files import atomic_write, read_yaml, yaml_text
from distill.models.teachers import build_teacher

UNUSED = ("interctc_layer_idx", "interctc_use_conditioning", "ctc_trim", "stochastic_depth_rate", "layer_drop_rate")


def adopt_espnet(checkpoint: Path, output: Path) -> None:
    """Write a directory like that of a training, from which an experiment of ESPnet loads as a teacher.

    Args:
        checkpoint: file of its weights, such as valid.acc.ave_10best.pth, with the experiment's config.yaml beside it.
        output: directory to write model.pth and config.yaml to.

    Raises:
        UserError: it is damaged, or of an architecture that is no teacher.
    """
    path = checkpoint.parent / "config.yaml"
    config = read_yaml(path, "give a .pth beside the config.yaml of an asr experiment of ESPnet")
    for key, wanted in (("frontend", "default"), ("preencoder", None), ("postencoder", None), ("input_size", None)):
        if config.get(key) not in (wanted, None):
            raise UserError(
                f"{path}: {key} {config[key]!r}: only experiments without one are adopted; frontend: default"
            )
    sections = {name: config.get(f"{name}_conf") for name in ("frontend", "encoder", "normalize")}
    if not all(conf is None or isinstance(conf, dict) for conf in sections.values()):
        raise UserError(f"{path}: frontend_conf, encoder_conf or normalize_conf is no map")
    encoder = {"input_layer": "conv2d", **(sections["encoder"] or {})}
    if encoder.get("interctc_use_conditioning") or encoder.get("ctc_trim"):
        raise UserError(f"{path}: encoder_conf: interctc_use_conditioning and ctc_trim change what layers compute")
    if any(key != "stats_file" for key in sections["normalize"] or {}):
        raise UserError(f"{path}: normalize_conf: has other keys than stats_file; only ESPnet's defaults are known")
    described = {
        "model_type": "espnet", "hidden_size": encoder.get("output_size"),
        "num_hidden_layers": encoder.get("num_blocks"), "num_attention_heads": encoder.get("attention_heads", 4),
        "encoder": config.get("encoder"), "normalize": config.get("normalize"),
        "frontend_conf": sections["frontend"] or {},
        "encoder_conf": {key: value for key, value in encoder.items() if key not in UNUSED},
    }  # fmt: skip
    network_conf: dict[str, Any] = {"config": encoder_arguments(described, str(path))}
    result: dict[str, Any] = {
        **{"network": "teacher", "network_conf": network_conf, "token_list": config.get("token_list")},
        **{"token_type": config.get("token_type"), "bpemodel": config.get("bpemodel")},
        "adopted_from": str(checkpoint.resolve()),
    }
    checked(TrainingConf, str(path), result)
    weights = {
        f"output.{key.removeprefix('ctc.ctc_lo.')}" if key.startswith("ctc.") else f"encoder.{key}": tensor
        for key, tensor in read_weights(checkpoint, "").items()
        if key.startswith(("frontend.", "normalize.", "encoder.", "ctc.ctc_lo."))  # not the decoder
    }
    try:
        teacher = build_teacher(len(result["token_list"]), **network_conf)
    except Exception as error:  # whatever values that ESPnet does not take lead to
        raise UserError(
            f"{path}: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        ) from None
    load_weights(teacher, weights, checkpoint)
    with atomic_write(output / "model.pth", "wb") as stream:
        torch.save({f"network.{key}": value for key, value in teacher.state_dict().items()}, stream)
    with atomic_write(output / "config.yaml") as text:
        text.write(yaml_text(result))
    print(f"{output}: {config['encoder']} of ESPnet, {len(result['token_list'])} tokens")
