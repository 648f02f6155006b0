"""Recognisers that fairseq2 has saved, such as omniASR_CTC: a wav2vec 2.0 with other names for its parts."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

from distill.errors import UserError
from distill.files import atomic_write, check_torch_file

HEADS = 16  # of every large wav2vec 2.0 of fairseq2; the weights do not tell
POSITIONS = "wav2vec2.encoder.pos_conv_embed."
# What fairseq2 and transformers call the parts, in the order of their replacement
NAMES = {
    "encoder.": "wav2vec2.encoder.",
    "encoder_frontend.feature_extractor.layers.": "wav2vec2.feature_extractor.conv_layers.",
    "encoder_frontend.post_extract_layer_norm.": "wav2vec2.feature_projection.layer_norm.",
    "encoder_frontend.model_dim_proj.": "wav2vec2.feature_projection.projection.",
    "encoder_frontend.pos_encoder.conv.weight_g": f"{POSITIONS}conv.parametrizations.weight.original0",
    "encoder_frontend.pos_encoder.conv.weight_v": f"{POSITIONS}conv.parametrizations.weight.original1",
    "encoder_frontend.pos_encoder.": POSITIONS,
    "masker.temporal_mask_embed": "wav2vec2.masked_spec_embed",
    "final_proj.": "lm_head.",
}
IN_LAYERS = {
    ".self_attn_layer_norm.": ".layer_norm.",
    ".self_attn.output_proj.": ".attention.out_proj.",
    ".self_attn.": ".attention.",
    ".ffn_layer_norm.": ".final_layer_norm.",
    ".ffn.inner_proj.": ".feed_forward.intermediate_dense.",
    ".ffn.output_proj.": ".feed_forward.output_dense.",
}


def write_hugging_face(checkpoint: Path, tokenizer: Path, output: Path) -> None:
    """Write a ``wav2vec2_asr`` of fairseq2 (.pt) and its sentencepiece tokenizer (.model) in Hugging Face's format.

    Raises:
        UserError: one of them is damaged, or the checkpoint is of another architecture.
    """
    try:
        check_torch_file(checkpoint)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in state.get("model", state).items():
            beginning = next((part for part in NAMES if name.startswith(part)), "")
            name = NAMES.get(beginning, "") + name[len(beginning) :]
            for part, other in IN_LAYERS.items():
                name = name.replace(part, other)
            weights[name] = tensor.float().contiguous()
        cnn = [weights[f"wav2vec2.feature_extractor.conv_layers.{i}.conv.weight"].shape for i in range(7)]
        inner, width = weights["wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight"].shape
        _, of_group, kernel = weights["wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1"].shape
        config = {
            **{"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], "pad_token_id": 0},
            **{"conv_bias": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
            **{"hidden_size": width, "intermediate_size": inner, "num_attention_heads": HEADS},
            **{"num_hidden_layers": sum(name.endswith("intermediate_dense.weight") for name in weights)},
            **{"num_conv_pos_embeddings": kernel, "num_conv_pos_embedding_groups": width // of_group},
            **{"conv_dim": [shape[0] for shape in cnn], "conv_kernel": [shape[2] for shape in cnn]},
            **{"vocab_size": len(weights["lm_head.weight"])},
        }
    except Exception as error:  # whatever damage leads to
        raise UserError(f"{checkpoint}: not a wav2vec2_asr of fairseq2 ({type(error).__name__}: {error})") from None
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    except Exception as error:  # whatever sentencepiece raises
        raise UserError(f"{tokenizer}: not a sentencepiece model ({type(error).__name__})") from None
    for name, content in {
        "config.json": config,
        "vocab.json": vocabulary,  # the blank is its first, <s>
        "tokenizer_config.json": {"word_delimiter_token": "▁", "eos_token": "</s>", "unk_token": "<unk>"},
        "preprocessor_config.json": {"do_normalize": True, "sampling_rate": 16000},
    }.items():
        with atomic_write(output / name) as stream:
            json.dump(content, stream, ensure_ascii=False, indent=1)
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
