"""The teacher: Hugging Face's wav2vec 2.0, HuBERT or WavLM encoder with a linear prediction layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.files import check_torch_file, read_json
from distill.models.cnn import convolve, field_of_view
from distill.models.output import NetworkOutput, predict
from distill.models.transfer import send

if TYPE_CHECKING:
    from transformers import HubertModel, Wav2Vec2Model, WavLMModel

# model_type of a Hugging Face configuration -> what its classes' names begin with
ENCODERS = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
HUB = "hf://"


class Teacher(nn.Module):
    """wav2vec 2.0, HuBERT or WavLM, and a prediction layer. Nothing is downloaded unless ``config`` begins with hf://.

    In evaluation mode padding and the rest of the batch change nothing if the CNN has layer norm
    (``feat_extract_norm: layer``, as in Large-LV60). The group norm of Base takes statistics over time, padding
    included: there outputs depend on the batch, as they do in Hugging Face's own.

    Layers are never dropped at random (``layerdrop`` is set to 0), as the student needs the output of every layer.

    Args:
        vocab_size: V; token 0 is blank.
        config: of a new network, the arguments of transformers.Wav2Vec2Config, or with ``model_type: hubert`` or
            ``wavlm`` of HubertConfig or WavLMConfig; or where to load the encoder from: a directory in Hugging Face's
            format, or a name on its hub such as ``hf://facebook/wav2vec2-large-lv60``.
        normalize: bring each utterance's audio to zero mean and unit variance, as Large-LV60 expects.
        freeze_cnn: do not train the CNN.
    """

    frame_ms = 20  # milliseconds between frames of logits
    encoder_frame_ms = 20  # and of the hidden layers

    def __init__(
        self,
        vocab_size: int,
        config: Mapping[str, Any] | str | Path,
        normalize: bool = False,
        freeze_cnn: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = _build(config) if isinstance(config, Mapping) else _load(str(config))
        self.config = self.encoder.config
        if getattr(self.config, "add_adapter", False):
            raise UserError("network_conf.config: add_adapter changes the frame rate; use a model without an adapter")
        hop, self._window = field_of_view(self.config.conv_kernel, self.config.conv_stride)
        if hop != 320:
            raise UserError(f"network_conf.config: frames of {hop} samples instead of 320 (20 ms)")
        self.vocab_size = vocab_size
        self.width = self.config.hidden_size
        self.normalize = normalize
        self.freeze_cnn = freeze_cnn
        self.dropout = nn.Dropout(self.config.final_dropout)
        self.output = nn.Linear(self.width, vocab_size)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if freeze_cnn:
            self.encoder.feature_extractor.requires_grad_(False)
        if not self._masks_time and hasattr(self.encoder, "masked_spec_embed"):
            self.encoder.masked_spec_embed.requires_grad_(False)  # never used

    def frames(self, samples: int) -> int:
        """Frames of so many samples, at least 1."""
        return max(0, samples - self._window) // 320 + 1

    def _features(self, speech: Tensor) -> Tensor:
        """(B, N) -> (B, T, channels)."""
        extractor = self.encoder.feature_extractor
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_cnn):
            if self._fast:
                return convolve(speech[..., None], extractor.conv_layers)
            x = speech[:, None]
            for layer in extractor.conv_layers:
                x = layer(x)
            return x.transpose(1, 2)

    @property
    def _masks_time(self) -> bool:
        """Whether stretches of time are masked in training."""
        return getattr(self.config, "apply_spec_augment", True) and self.config.mask_time_prob > 0

    @property
    def _fast(self) -> bool:
        """Whether the CNN is the one that :func:`convolve` computes."""
        c = self.config
        blocks = all(kernel <= 2 * stride for kernel, stride in zip(c.conv_kernel, c.conv_stride, strict=True))
        return c.feat_extract_norm == "layer" and c.conv_bias and c.feat_extract_activation == "gelu" and blocks

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> NetworkOutput:
        """Outputs for (B, N) audio in [-1, 1], padded with zeros, with (B,) samples each.

        ``hidden[i - 1]`` is what transformer layer i puts out; in models with ``do_stable_layer_norm`` that is before
        the norm that follows the last layer. In training mode frames are masked as the configuration says
        (``mask_time_prob``), unless the batch is no longer than a mask.
        """
        samples = send(speech_lengths, speech.device)
        if self.normalize:
            inside = torch.arange(speech.shape[1], device=speech.device) < samples[:, None]
            count = samples.clamp(min=1)[:, None]
            mean = (speech * inside).sum(1, keepdim=True) / count
            centred = (speech - mean) * inside
            speech = centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        features = self._features(F.pad(speech, (0, max(0, self._window - speech.shape[1]))))
        lengths = torch.div((speech_lengths - self._window).clamp(min=0), 320, rounding_mode="floor") + 1
        mask = torch.arange(features.shape[1], device=speech.device) < send(lengths, speech.device)[:, None]
        projected = self.encoder.feature_projection(features)
        x = projected[0] if isinstance(projected, tuple) else projected
        if self.training:
            x = self._hide(x, lengths)
        nothing_padded = lengths.device.type == "cpu" and int(lengths.min()) >= features.shape[1]
        x, hidden = self._encode(x, None if nothing_padded else mask)
        return NetworkOutput(predict(self.output, self.dropout(x)), lengths, hidden, lengths)

    def _encode(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Last and every layer's output of (B, T, width); ``mask`` (B, T): within the length, None: all is."""
        hidden: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden.append(output[0] if isinstance(output, tuple) else output)

        layers = self.encoder.encoder.layers
        hooks = [layer.register_forward_hook(keep) for layer in layers]
        if mask is not None and self.config._attn_implementation == "sdpa":
            # transformers would ask the GPU whether anything is padded, and expand the mask to all queries.
            keys = mask[:, None, None]

            def see(_module: nn.Module, inputs: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                return inputs, {**arguments, "attention_mask": keys}

            x, mask = x.masked_fill(~mask[:, :, None], 0.0), None
            hooks += [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in layers]
        try:
            return self.encoder.encoder(x, attention_mask=mask).last_hidden_state, hidden
        finally:
            for hook in hooks:
                hook.remove()

    def _hide(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, width) with the frames and features hidden that transformers would draw, without asking a GPU.

        ``lengths`` (B,) are on the host, as the draws are. Where a batch is no longer than a mask nothing is hidden;
        the mask's embedding has a gradient nevertheless, as processes that train together expect.
        """
        from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

        c, (batch, frames, width) = self.config, x.shape
        if self._masks_time:
            drawn = np.zeros((batch, frames), dtype=bool)
            if frames > c.mask_time_length:
                inside = cast(torch.LongTensor, (torch.arange(frames) < lengths.cpu()[:, None]).long())
                shape, least = (batch, frames), c.mask_time_min_masks
                drawn = _compute_mask_indices(shape, c.mask_time_prob, c.mask_time_length, inside, least)
            hidden = send(torch.from_numpy(drawn), x.device)
            x = torch.where(hidden[:, :, None], self.encoder.masked_spec_embed.to(x.dtype), x)
        if getattr(c, "apply_spec_augment", True) and c.mask_feature_prob > 0 and frames > c.mask_time_length:
            shape, least = (batch, width), c.mask_feature_min_masks
            drawn = _compute_mask_indices(shape, c.mask_feature_prob, c.mask_feature_length, min_masks=least)
            x = x.masked_fill(send(torch.from_numpy(drawn), x.device)[:, None], 0.0)
        return x


def encoder_classes(model_type: str, origin: str) -> tuple[Any, Any, Any]:
    """Configuration, encoder, and encoder with a CTC layer, of transformers."""
    import transformers  # takes seconds, which a student need not wait

    if model_type not in ENCODERS:
        raise UserError(f"{origin}: model_type {model_type[:40]!r} is not a teacher; it must be {', '.join(ENCODERS)}")
    name = ENCODERS[model_type]
    return tuple(getattr(transformers, f"{name}{kind}") for kind in ("Config", "Model", "ForCTC"))  # type: ignore


def attention(model_type: str) -> str:
    """The attention implementation: fused, but for WavLM, whose relative positions it does not support."""
    return "eager" if model_type == "wavlm" else "sdpa"


def _build(arguments: Mapping[str, Any]) -> Wav2Vec2Model | HubertModel | WavLMModel:
    arguments = dict(arguments)
    model_type = arguments.pop("model_type", "wav2vec2")
    config_class, model_class, _ = encoder_classes(model_type, "network_conf.config")
    # Dropout on attention weights keeps the CPU from its fused attention; a configuration may still ask for it.
    config = config_class(**{"attention_dropout": 0.0, **arguments, "layerdrop": 0.0})
    config._attn_implementation = attention(model_type)
    encoder = model_class(config)
    for layer in encoder.feature_extractor.conv_layers:
        if layer.conv.bias is not None:
            nn.init.zeros_(layer.conv.bias)  # as in distill.models.cnn.ConvLayer
    return encoder


def _load(origin: str) -> Wav2Vec2Model | HubertModel | WavLMModel:
    name = origin.removeprefix(HUB)
    if name == origin:
        config = read_json(Path(name, "config.json"), f"give a directory in Hugging Face's format, or {HUB}NAME")
        model_type = str(config.get("model_type"))
        config_class, model_class, _ = encoder_classes(model_type, origin)
        try:
            config = config_class(**config)
        except Exception as error:  # whatever transformers raises
            raise UserError(f"{name}/config.json: {first_line(error)}; copy the directory again") from None
        return load_pretrained(model_class, Path(name), config)[0]
    from transformers import AutoConfig

    try:
        model_type = AutoConfig.from_pretrained(name).model_type
        _, model_class, _ = encoder_classes(model_type, origin)
        return model_class.from_pretrained(
            name, attn_implementation=attention(model_type), layerdrop=0.0, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{origin}: cannot be fetched; download it and give its directory: {error}") from error


def load_pretrained(model_class: Any, directory: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model from a directory in Hugging Face's format, in float32.

    Nothing is unpickled and nothing fetched, and what the weights take in memory is bounded by their files.

    Args:
        model_class: of transformers.
        config: its configuration, which must have been checked.

    Returns:
        the model, and which of its tensors the files lack (``missing_keys``) and the like.

    Raises:
        UserError: the weights are missing, damaged, not those of this configuration, or not to be trusted.
    """
    files = [path for pattern in ("*.safetensors", "*.bin") for path in directory.glob(pattern) if path.is_file()]
    for path in files:
        if path.suffix == ".bin":
            check_torch_file(path)
    config.layerdrop = 0.0
    try:
        with torch.device("meta"):
            needed = sum(parameter.numel() for parameter in model_class(config).parameters())
        if files and needed > sum(
            path.stat().st_size for path in files
        ):  # a byte for each, as in the smallest of formats
            raise UserError(f"{directory}: its configuration describes {needed} parameters, more than its files hold")
        return model_class.from_pretrained(
            directory,
            config=config,
            local_files_only=True,
            attn_implementation=attention(config.model_type),
            dtype=torch.float32,
            output_loading_info=True,
        )
    except UserError:
        raise
    except Exception as error:  # whatever transformers, safetensors and torch raise
        raise UserError(f"{directory}: cannot be loaded: {first_line(error)}; copy the directory again") from None


def first_line(error: Exception) -> str:
    """The beginning of an error's message, or what kind it is."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
