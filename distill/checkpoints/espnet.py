"""Teachers from ESPnet's own asr experiments with a CTC branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.checkpoints import s3prl
from distill.checkpoints.load import check_weights, load_weights, read_weights
from distill.checkpoints.schema import TrainingConf, encoder_arguments
from distill.configuration import checked, shortened
from distill.errors import UserError
from distill.files import atomic_write, read_yaml, yaml_text
from distill.models.teacher import first_line
from distill.models.teachers import build_teacher

# What of other parts is adopted, besides none
SUPPORTED = {"frontend": ("default", "s3prl"), "preencoder": ("linear",), "postencoder": (), "input_size": ()}
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
    for key, wanted in SUPPORTED.items():
        if config.get(key) not in (*wanted, None):
            others = f"; {key}: {' or '.join(wanted)}" if wanted else ""
            raise UserError(f"{path}: {key} {shortened(config[key])}: only experiments without one are adopted{others}")
    names = ("frontend_conf", "preencoder_conf", "encoder_conf", "normalize_conf")
    sections = {name: config.get(name) for name in names}
    if not all(conf is None or isinstance(conf, dict) for conf in sections.values()):
        raise UserError(f"{path}: {', '.join(names[:-1])} or {names[-1]} is no map")
    encoder = {"input_layer": "conv2d", **(sections["encoder_conf"] or {})}
    if encoder.get("interctc_use_conditioning") or encoder.get("ctc_trim"):
        raise UserError(f"{path}: encoder_conf: interctc_use_conditioning and ctc_trim change what layers compute")
    if any(key != "stats_file" for key in sections["normalize_conf"] or {}):
        raise UserError(f"{path}: normalize_conf: has other keys than stats_file; only ESPnet's defaults are known")
    weights = read_weights(checkpoint, "")
    front = sections["frontend_conf"] or {}
    if upstream := config.get("frontend") == "s3prl":
        front = s3prl.front_end(front, weights, str(path))
    described = {
        "model_type": "espnet", "hidden_size": encoder.get("output_size"),
        "num_hidden_layers": encoder.get("num_blocks"), "num_attention_heads": encoder.get("attention_heads", 4),
        "frontend": "s3prl" if upstream else "default", "frontend_conf": front,
        "preencoder_conf": (sections["preencoder_conf"] or {}) if config.get("preencoder") else None,
        "encoder": config.get("encoder"), "normalize": config.get("normalize"),
        "encoder_conf": {key: value for key, value in encoder.items() if key not in UNUSED},
    }  # fmt: skip
    network_conf: dict[str, Any] = {"config": encoder_arguments(described, str(path))}
    result: dict[str, Any] = {
        **{"network": "teacher", "network_conf": network_conf, "token_list": config.get("token_list")},
        **{"token_type": config.get("token_type"), "bpemodel": config.get("bpemodel")},
        "adopted_from": str(checkpoint.resolve()),
    }
    checked(TrainingConf, str(path), result)
    weights = {name: tensor for key, tensor in weights.items() if (name := new_name(key, front if upstream else None))}
    try:
        with torch.device("meta"):  # where sizes that are not those of the weights take no memory
            check_weights(build_teacher(len(result["token_list"]), **network_conf), weights, checkpoint)
        teacher = build_teacher(len(result["token_list"]), **network_conf)
    except UserError as error:
        raise UserError(f"{error}; take weights and config.yaml of one experiment") from None
    except Exception as error:  # whatever values that ESPnet does not take lead to
        raise UserError(f"{path}: {type(error).__name__}: {first_line(error)[:200]}") from None
    load_weights(teacher, weights, checkpoint)
    with atomic_write(output / "model.pth", "wb") as stream:
        torch.save({f"network.{key}": value for key, value in teacher.state_dict().items()}, stream)
    with atomic_write(output / "config.yaml") as text:
        text.write(yaml_text(result))
    print(f"{output}: {config['encoder']} of ESPnet, {len(result['token_list'])} tokens")


def new_name(name: str, front_end: dict[str, Any] | None) -> str | None:
    """What a teacher calls a tensor of an experiment; None: it does not use it, as it has no decoder.

    Args:
        front_end: arguments of s3prl's, if it has that.
    """
    if name.startswith("ctc.ctc_lo."):
        return f"output.{name.removeprefix('ctc.ctc_lo.')}"
    if front_end is not None and name.startswith("frontend."):
        other = s3prl.new_name(name, front_end)
        return None if other is None else f"encoder.{other}"
    return f"encoder.{name}" if name.startswith(("frontend.", "normalize.", "preencoder.", "encoder.")) else None
