"""Recognisers of every family of teachers, tiny, with random weights, in the form in which they lie on a disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import tiny_networks as tiny
import torch


class Family(NamedTuple):
    """A family of teachers.

    Attributes:
        name: what the names of its classes in transformers begin with.
        changes: to the tiny configuration.
        true: arguments of the published size, besides the defaults of its configuration.
        layers: of that size.
        ms: milliseconds between frames of logits, and of hidden layers.
        dropped: most frames at the end of what transformers puts out that mean nothing, and have no logits here.
    """

    name: str
    changes: dict[str, Any]
    true: dict[str, Any]
    layers: int
    ms: tuple[int, int] = (20, 20)
    dropped: int = 0


LARGE = {
    **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    **{"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
}
BILLION = LARGE | {"hidden_size": 1280, "num_hidden_layers": 48, "intermediate_size": 5120}
SEW = {"conv_dim": [8] * 13, "conv_stride": [5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1],
       "conv_kernel": [10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1]}  # fmt: skip
FAMILIES = {
    "wav2vec2": Family("Wav2Vec2", {}, LARGE, 24),
    "xls-r": Family("Wav2Vec2", {}, BILLION, 48),
    "mms": Family("Wav2Vec2", {"adapter_attn_dim": 4}, BILLION | {"adapter_attn_dim": 16}, 48),
    "hubert": Family("Hubert", {"conv_pos_batch_norm": True}, LARGE, 24),
    "wavlm": Family("WavLM", {}, LARGE, 24),
    "data2vec-audio": Family(
        "Data2VecAudio", {"conv_bias": False, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}, {}, 12
    ),
    "unispeech": Family("UniSpeech", {}, LARGE, 24),
    "unispeech-sat": Family("UniSpeechSat", {}, LARGE, 24),
    "wav2vec2-conformer": Family("Wav2Vec2Conformer", {"conv_depthwise_kernel_size": 7}, LARGE, 24),
    "wav2vec2-conformer, rotary": Family(
        "Wav2Vec2Conformer", {"conv_depthwise_kernel_size": 7, "position_embeddings_type": "rotary"},
        LARGE | {"position_embeddings_type": "rotary"}, 24,
    ),
    "sew": Family("SEW", SEW, {"hidden_size": 512, "num_attention_heads": 8}, 12, (20, 40), dropped=1),
    "wav2vec2-bert": Family("Wav2Vec2Bert", {"conv_depthwise_kernel_size": 7}, {}, 24, dropped=1),
    "parakeet": Family("Parakeet", {"subsampling_conv_channels": 8}, {}, 24, (80, 80), dropped=1),
}  # fmt: skip
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "'"]


LAYERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
WITH_CNN = [family for family in FAMILIES if family not in ("wav2vec2-bert", "parakeet")]


def arguments_of(family: str) -> dict[str, Any]:
    """Arguments of the configuration of a tiny network of a family."""
    common = tiny.TEACHER if family in WITH_CNN else {key: tiny.TEACHER[key] for key in LAYERS}
    return {**common, **FAMILIES[family].changes}


def vocabulary_of(family: str, tokens: list[str] | None = None) -> list[str]:
    """Tokens in the order of a recogniser's outputs: with a blank at the end, and pieces of words, in a Parakeet."""
    tokens = VOCABULARY if tokens is None else tokens
    return [*(token.replace("|", "▁") for token in tokens[1:]), tokens[0]] if family == "parakeet" else tokens


def write_recogniser(folder: Path, family: str, vocabulary: list[str] | None = None, **changes: Any) -> torch.nn.Module:
    """Save a recogniser of a family as it would be published, and return it; ``changes`` to its configuration."""
    import transformers

    torch.manual_seed(3)
    tokens = vocabulary_of(family, vocabulary)
    outputs = {token: i for i, token in enumerate(tokens)}
    name = FAMILIES[family].name
    sizes = {"vocab_size": len(tokens), "pad_token_id": outputs["<pad>"]}
    arguments = {**arguments_of(family), **changes}
    if family == "parakeet":
        arguments = {"encoder_config": arguments}
    config = getattr(transformers, f"{name}CTCConfig" if name == "Parakeet" else f"{name}Config")
    model = getattr(transformers, f"{name}ForCTC")(config(**arguments, **sizes)).eval()
    make_differences_show(model)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    extractor_of(family).save_pretrained(folder)
    if family == "parakeet":
        write_pieces(folder, outputs)
        return model
    (folder / "vocab.json").write_text(json.dumps(outputs))
    (folder / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": "|", "unk_token": "<unk>"}))
    return model


def write_pieces(folder: Path, outputs: dict[str, int]) -> None:
    """A Parakeet's tokenizer."""
    import tokenizers
    import transformers

    pieces = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=outputs, merges=[], unk_token="<unk>"))
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    transformers.ParakeetTokenizer(tokenizer_object=pieces, **special).save_pretrained(folder)


def extractor_of(family: str) -> Any:
    """transformers' own feature extractor of a family."""
    import transformers

    if family == "wav2vec2-bert":
        return transformers.SeamlessM4TFeatureExtractor()
    if family == "parakeet":
        return transformers.ParakeetFeatureExtractor()
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)


def inputs_of(family: str, audio: torch.Tensor) -> dict[str, torch.Tensor]:
    """What transformers' own feature extractor makes of (N,) audio, as arguments of its recognisers."""
    inputs = extractor_of(family)(audio.numpy(), sampling_rate=16000, return_tensors="pt")
    return {name: value for name, value in inputs.items() if family not in WITH_CNN or name != "attention_mask"}


@torch.no_grad()
def make_differences_show(model: Any) -> None:
    """Give constants of new networks (norms, biases, statistics of batch norms) random values, and logits a spread."""
    torch.nn.init.normal_((model.ctc_head if hasattr(model, "ctc_head") else model.lm_head).weight)
    for value in model.state_dict().values():
        if not value.is_floating_point():
            continue
        if value.eq(0).all():
            value.normal_(std=0.1)
        elif value.eq(1).all():
            value.uniform_(0.5, 1.5)


def write_language(folder: Path, language: str, vocabulary: list[str]) -> dict[str, torch.Tensor]:
    """Add a language to an MMS as Hugging Face stores it: its adapter, and its vocabulary; return its weights."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(len(vocabulary))
    weights = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if ".adapter_layer." in name or name.startswith("lm_head."):
            shape = (len(vocabulary), *value.shape[1:]) if name.startswith("lm_head.") else value.shape
            weights[name] = torch.randn(shape, generator=generator)
    save_file(weights, folder / f"adapter.{language}.safetensors", metadata={"format": "pt"})
    path = folder / "vocab.json"
    outputs = json.loads(path.read_text())
    nested = outputs if isinstance(next(iter(outputs.values())), dict) else {"eng": outputs}
    path.write_text(json.dumps({**nested, language: {token: i for i, token in enumerate(vocabulary)}}))
    return weights
