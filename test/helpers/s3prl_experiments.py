"""Tiny asr experiments of ESPnet over upstreams of s3prl, as they lie on a disk, written without s3prl.

The names and shapes of an upstream's tensors are those of s3prl 0.4.18: ``test/models/make_s3prl_golden.py`` loads them
into its classes, strictly. Weights are drawn by numpy, whose generator does not change with torch's version.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from espnet_experiments import COMMON, ENCODERS, TOKENS
from tiny_networks import CHANNELS

PREFIX = "frontend.upstream.upstream.model."
KERNELS = (10, 3, 3, 3, 3, 2, 2)
WIDTH, INNER, LAYERS, HEADS, BUCKETS, POSITIONS, GROUPS, FINAL = 32, 48, 3, 16, 32, 16, 4, 8


class Case(NamedTuple):
    """An experiment.

    Attributes:
        upstream: its name in s3prl.
        layer_norm: whether its CNN has layer norm, audio is normalised, and norms are before the parts of layers.
        frontend: ``frontend_conf`` besides the upstream.
        encoder, input_layer, normalize: as in ESPnet's configuration.
        preencoder: whether there is a linear one.
        ms: milliseconds between frames of logits.
    """

    upstream: str
    layer_norm: bool
    frontend: dict[str, Any]
    encoder: str
    input_layer: str
    normalize: str | None
    preencoder: bool
    ms: int

    @property
    def kind(self) -> str:
        return next((kind for kind in ("wavlm", "hubert") if self.upstream.startswith(kind)), "wav2vec2")


CASES = {
    "wavlm large": Case(
        "wavlm_large", True, {"multilayer_feature": True}, "conformer", "conv2d2", "utterance_mvn", True, 40
    ),
    "wavlm base": Case("wavlm_base_plus", False, {"multilayer_feature": True}, "conformer", "conv2d1", None, True, 20),
    "hubert large": Case("hubert_large_ll60k", True, {}, "e_branchformer", "conv2d2", "global_mvn", False, 40),
    "hubert base": Case("hubert_base", False, {"layer": 1}, "transformer", "conv2d", "utterance_mvn", True, 80),
    "xls-r": Case("xls_r_300m", True, {"layer": 0}, "transformer", "conv2d2", None, True, 40),
    "wav2vec 2.0 base": Case(
        "wav2vec2_base_960", False, {"multilayer_feature": True}, "conformer", "linear", "utterance_mvn", False, 20
    ),
}


def upstream_shapes(case: Case, width: int = WIDTH, inner: int = INNER, layers: int = LAYERS) -> dict[str, tuple]:
    """The tensors of an upstream by fairseq's names, with those that only its pretraining uses."""

    def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name: str, size: int) -> dict[str, tuple]:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    channels = CHANNELS if width == WIDTH else (512,) * 7
    heads, buckets = (HEADS // 4, BUCKETS) if width == WIDTH else (width // 64, 320)
    positions, groups = (POSITIONS, GROUPS) if width == WIDTH else (128, 16)
    shapes: dict[str, tuple] = {"mask_emb": (width,)}
    for i, (inputs, outputs, kernel) in enumerate(zip((1, *channels), channels, KERNELS, strict=False)):
        layer = f"feature_extractor.conv_layers.{i}"
        shapes[f"{layer}.0.weight"] = (outputs, inputs, kernel)
        if case.layer_norm:
            shapes |= norm(f"{layer}.2.1", outputs)
            if case.kind != "wavlm":
                shapes[f"{layer}.0.bias"] = (outputs,)
        elif i == 0:
            shapes |= norm(f"{layer}.2", outputs)
    shapes |= {**norm("layer_norm", channels[-1]), **linear("post_extract_proj", width, channels[-1])}
    shapes |= {"encoder.pos_conv.0.weight_g": (1, 1, positions), "encoder.pos_conv.0.bias": (width,)}
    shapes |= {"encoder.pos_conv.0.weight_v": (width, width // groups, positions), **norm("encoder.layer_norm", width)}
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        for part in "qkv":
            shapes |= linear(f"{layer}.self_attn.{part}_proj", width, width)
        shapes |= linear(f"{layer}.self_attn.out_proj", width, width)
        shapes |= {**norm(f"{layer}.self_attn_layer_norm", width), **norm(f"{layer}.final_layer_norm", width)}
        shapes |= {**linear(f"{layer}.fc1", inner, width), **linear(f"{layer}.fc2", width, inner)}
        if case.kind == "wavlm":
            shapes |= linear(f"{layer}.self_attn.grep_linear", 8, width // heads)
            shapes[f"{layer}.self_attn.grep_a"] = (1, heads, 1, 1)
            if i == 0:
                shapes[f"{layer}.self_attn.relative_attention_bias.weight"] = (buckets, heads)
    if case.kind == "hubert":
        shapes |= {**linear("final_proj", FINAL, width), "label_embs_concat": (4 + 4, FINAL)}
    if case.kind == "wav2vec2":
        shapes |= {**linear("final_proj", FINAL, width), **linear("project_q", FINAL, FINAL)}
        shapes |= {"quantizer.vars": (1, 8, FINAL // 2), **linear("quantizer.weight_proj", 8, channels[-1])}
    return shapes


def espnet_config(folder: Path, case: Case) -> dict[str, Any]:
    """The options with which ESPnet trains such an experiment."""
    from espnet2.tasks.asr import ASRTask

    encoder = {**COMMON, **ENCODERS[case.encoder], "input_layer": case.input_layer}
    return {
        **vars(ASRTask.get_parser().parse_args([])), "token_list": TOKENS, "token_type": "word", "frontend": "s3prl",
        "frontend_conf": {"frontend_conf": {"upstream": case.upstream}, "download_dir": "./hub", **case.frontend},
        "encoder": case.encoder, "encoder_conf": encoder, "normalize": case.normalize,
        "normalize_conf": {"stats_file": str(folder / "feats_stats.npz")} if case.normalize == "global_mvn" else {},
        "preencoder": "linear" if case.preencoder else None, "specaug": None, "decoder": "transformer",
        "preencoder_conf": {"input_size": WIDTH, "output_size": 12} if case.preencoder else {},
        "model_conf": {"ctc_weight": 1.0}, "output_dir": str(folder),
    }  # fmt: skip


def write_s3prl_experiment(folder: Path, name: str) -> None:
    """Write the experiment of a case as ESPnet leaves it."""
    from espnet2.tasks.asr import ASRTask

    folder.mkdir()
    case = CASES[name]
    ones = np.ones(WIDTH)
    np.savez(folder / "feats_stats.npz", count=10, sum=ones, sum_square=20 * ones)
    config = espnet_config(folder, case)
    model = ASRTask.build_model(Namespace(**{**config, "frontend": None, "input_size": WIDTH}))
    shapes = {f"{PREFIX}{key}": shape for key, shape in upstream_shapes(case).items()}
    shapes["frontend.featurizer.weights"] = (1 if "layer" in case.frontend else LAYERS + 1,)
    state = {**model.state_dict(), **{key: torch.zeros(shape) for key, shape in shapes.items()}}
    rng = np.random.default_rng(len(name))
    state = {key: drawn(key, state[key], rng) for key in sorted(state)}
    torch.save(state, folder / "valid.acc.ave.pth")
    plain = {key: value for key, value in config.items() if isinstance(value, str | int | float | list | dict | None)}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))


def drawn(name: str, value: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random weights of a shape, such that every layer's output is of the order of 1."""
    if not value.is_floating_point():
        return value
    if name.endswith((".std", ".running_var", ".weight_g")) or (value.dim() == 1 and name.endswith(".weight")):
        numbers = rng.uniform(0.5, 1.5, value.shape)
    else:
        numbers = rng.normal(size=value.shape)
        numbers *= (len(value) / value.numel()) ** 0.5 if value.dim() > 1 else 0.3
    return torch.from_numpy(numbers.astype(np.float32))
