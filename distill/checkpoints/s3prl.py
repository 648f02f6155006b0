"""s3prl's upstreams in asr experiments of ESPnet: their sizes, and the names of their tensors in transformers.

The configuration of an experiment only names its upstream, so that sizes are read off the weights. What these do not
say is the same in all wav2vec 2.0, XLS-R, HuBERT and WavLM whose settings torchaudio.pipelines lists:

- models with layer norm in the CNN were trained on audio of unit variance and have their norms before each part of a
  layer; those with a group norm (Base, and ``wav2vec2_large_960``) have neither;
- there are 12 heads where layers are 768 wide, and 16 in all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.configuration import shortened
from distill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# What names of s3prl's upstreams begin with -> model_type
KINDS = {"wav2vec2": "wav2vec2", "xls": "wav2vec2", "hubert": "hubert", "mhubert": "hubert", "wavlm": "wavlm"}
PREFIX = "frontend.upstream.upstream.model."
LAYERS = f"{PREFIX}encoder.layers."
CNN = "feature_extractor.conv_layers."
# Parts of fairseq's names and what transformers has in their place; whatever is used in pretraining only has none
NAMES = {
    rf"{CNN}(\d+)\.0\.": rf"{CNN}\1.conv.",
    rf"{CNN}(\d+)\.2(\.1)?\.": rf"{CNN}\1.layer_norm.",
    r"layer_norm\.": "feature_projection.layer_norm.",
    r"post_extract_proj\.": "feature_projection.projection.",
    r"encoder\.pos_conv\.0\.weight_g": "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    r"encoder\.pos_conv\.0\.weight_v": "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    r"encoder\.pos_conv\.0\.": "encoder.pos_conv_embed.conv.",
    r"(encoder\.layers\.\d+\.)self_attn\.grep_linear\.": r"\1attention.gru_rel_pos_linear.",
    r"(encoder\.layers\.\d+\.)self_attn\.grep_a": r"\1attention.gru_rel_pos_const",
    r"(encoder\.layers\.\d+\.)self_attn\.relative_attention_bias\.": r"\1attention.rel_attn_embed.",
    r"(encoder\.layers\.\d+\.)self_attn\.": r"\1attention.",
    r"(encoder\.layers\.\d+\.)self_attn_layer_norm\.": r"\1layer_norm.",
    r"(encoder\.layers\.\d+\.)fc1\.": r"\1feed_forward.intermediate_dense.",
    r"(encoder\.layers\.\d+\.)fc2\.": r"\1feed_forward.output_dense.",
}
UNUSED = ("mask_emb", "label_embs_concat", "final_proj.", "quantizer.", "project_q.", "project_inp.", "target_glu.")


def new_name(name: str, arguments: Mapping[str, Any]) -> str | None:
    """What a teacher's front end with such arguments calls a tensor of ESPnet's; None: it does not use it."""
    if name == "frontend.featurizer.weights":  # is there also where a single layer is taken
        return None if "layer" in arguments else "frontend.weights"
    name = name.removeprefix(PREFIX)
    if name.startswith(UNUSED):
        return None
    found = next(((old, new) for old, new in NAMES.items() if re.match(old, name)), None)
    return f"frontend.encoder.{name if found is None else re.sub(*found, name, count=1)}"


def front_end(conf: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Arguments of the front end that a ``frontend_conf`` of ESPnet describes.

    Args:
        weights: of the experiment, by ESPnet's names.
        where: the configuration's file, for messages.

    Raises:
        UserError: it is an upstream of another kind, has options that are not known, or lacks weights.
    """
    options = found if isinstance(found := conf.get("frontend_conf"), dict) else {}
    name = options.get("upstream")
    beginnings = [word for word in KINDS if isinstance(name, str) and name.startswith(word)]
    if not beginnings or "conformer" in str(name):
        raise UserError(f"{where}: upstream {shortened(name)}: only transformers named {', '.join(KINDS)} are adopted")
    if conf.get("fs") not in (None, 16000, "16k"):
        raise UserError(f"{where}: frontend_conf.fs: {shortened(conf['fs'])}: must be 16000")
    for key, default in (("normalize", False), ("tile_factor", 1), ("extra_conf", {})):
        if options.get(key) not in (None, default):
            raise UserError(f"{where}: frontend_conf.frontend_conf.{key}: only experiments without it are adopted")
    layer, summed = conf.get("layer", -1), conf.get("multilayer_feature", False)
    if type(layer) is not int or type(summed) is not bool:
        raise UserError(f"{where}: frontend_conf: layer must be a number, multilayer_feature true or false")
    upstream = sizes(KINDS[beginnings[0]], weights, where)
    states = upstream["num_hidden_layers"] + 1
    result = {"upstream": upstream, "normalize": upstream["feat_extract_norm"] == "layer"}
    return result if summed and layer == -1 else {**result, "layer": layer + states if layer < 0 else layer}


def sizes(kind: str, weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The configuration in transformers of an upstream of fairseq with such weights, by ESPnet's names."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        tensor = weights.get(PREFIX + name)
        if tensor is None or tensor.dim() != dimensions or 0 in tensor.shape:
            raise UserError(f"{where}: the weights beside it have no {PREFIX}{name} of {dimensions} dimensions")
        return tuple(tensor.shape)

    cnn = [shape(f"{CNN}{i}.0.weight", 3) for i in range(7)]
    inner, width = shape("encoder.layers.0.fc1.weight", 2)
    _, of_group, kernel = shape("encoder.pos_conv.0.weight_v", 3)
    layer_norm = f"{PREFIX}{CNN}0.2.1.weight" in weights
    result = {
        **{"model_type": kind, "hidden_size": width, "intermediate_size": inner},
        "num_hidden_layers": sum(key.startswith(LAYERS) and key.endswith(".fc1.weight") for key in weights),
        "num_attention_heads": 12 if width == 768 else 16,
        **{"conv_dim": [size[0] for size in cnn], "conv_kernel": [size[2] for size in cnn]},
        "conv_bias": f"{PREFIX}{CNN}0.0.bias" in weights,
        "feat_extract_norm": "layer" if layer_norm else "group",
        "do_stable_layer_norm": layer_norm,
        **{"num_conv_pos_embeddings": kernel, "num_conv_pos_embedding_groups": max(width // of_group, 1)},
        **{"apply_spec_augment": False, "mask_time_prob": 0.0},
    }
    if kind == "wavlm":
        buckets, heads = shape("encoder.layers.0.self_attn.relative_attention_bias.weight", 2)
        result |= {"num_attention_heads": heads, "num_buckets": buckets}
    return result
