"""The teacher: an encoder of Hugging Face with a linear prediction layer."""

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
    from transformers import PreTrainedModel

# model_type of a Hugging Face configuration -> what its classes' names begin with
ENCODERS = {
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "wavlm": "WavLM",
    "data2vec-audio": "Data2VecAudio",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeechSat",
    "wav2vec2-conformer": "Wav2Vec2Conformer",
    "sew": "SEW",
    "wav2vec2-bert": "Wav2Vec2Bert",
    "parakeet_encoder": "Parakeet",
}
# Those whose relative positions fused attention does not support
EAGER = ("wavlm", "wav2vec2-conformer", "wav2vec2-bert")
HUB = "hf://"


class Teacher(nn.Module):
    """An encoder of wav2vec 2.0's layout and a prediction layer.

    The layout is a CNN over the audio, a projection, and transformer or Conformer layers. Encoders of another layout
    are in :mod:`distill.models.teachers`, whose :func:`build_teacher` picks the class.

    In evaluation mode padding and the rest of the batch change nothing if the CNN has layer norm
    (``feat_extract_norm: layer``, as in Large-LV60). The group norm of Base takes statistics over time, padding
    included: there outputs depend on the batch, as they do in Hugging Face's own.

    Layers are never dropped at random (``layerdrop`` is set to 0), as the student needs the output of every layer.

    Args:
        vocab_size: V; token 0 is blank.
        config: of a new network, the arguments of transformers.Wav2Vec2Config, or with another ``model_type`` those of
            its configuration; or where to load the encoder from: a directory in Hugging Face's format, or a name on its
            hub such as ``hf://facebook/wav2vec2-large-lv60``. Nothing else is downloaded.
        normalize: bring each utterance's audio to zero mean and unit variance, as Large-LV60 expects.
        freeze_cnn: do not train the CNN.

    Attributes:
        frame_ms: milliseconds between frames of logits.
        encoder_frame_ms: and between those of the hidden layers.
        sees_padding: whether padding changes the outputs.
    """

    frame_ms = 20
    encoder_frame_ms = 20
    audio_epsilon = 1e-7  # added to the audio's variance before it is divided by; transformers' value

    def __init__(
        self,
        vocab_size: int,
        config: Mapping[str, Any] | str | Path,
        normalize: bool = False,
        freeze_cnn: bool = False,
    ) -> None:
        super().__init__()
        self.encoder: Any = self._make_encoder(config)
        self.config = self.encoder.config
        if getattr(self.config, "add_adapter", False):
            raise UserError("network_conf.config: add_adapter changes the frame rate; use a model without an adapter")
        has_cnn = hasattr(self.encoder, "feature_extractor")
        if normalize and not has_cnn:
            raise UserError(
                "network_conf.normalize: this model's log-mel features are normalised already; leave it out"
            )
        self.vocab_size = vocab_size
        self.width = self.config.hidden_size
        self.normalize = normalize
        self.freeze_cnn = freeze_cnn
        self.dropout = nn.Dropout(getattr(self.config, "final_dropout", 0.0))
        self.output = nn.Linear(self.width, vocab_size)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if freeze_cnn and has_cnn:
            self.encoder.feature_extractor.requires_grad_(False)
        if not self._masks_time and hasattr(self.encoder, "masked_spec_embed"):
            self.encoder.masked_spec_embed.requires_grad_(False)  # never used
        if self.config.model_type == "wav2vec2-conformer":
            self.stack.pos_conv_embed.requires_grad_(False)  # transformers makes it, and never uses it
        self._set_frames()

    def _make_encoder(self, config: Mapping[str, Any] | str | Path) -> Any:
        return _build(config) if isinstance(config, Mapping) else _load(str(config))

    def _set_frames(self) -> None:
        """Check the frames of the configuration, and note what counts them."""
        hop, self._window = field_of_view(self.config.conv_kernel, self.config.conv_stride)
        if hop != 320:
            raise UserError(f"network_conf.config: frames of {hop} samples instead of 320 (20 ms)")

    @property
    def sees_padding(self) -> bool:
        return getattr(self.config, "feat_extract_norm", "layer") == "group"

    @property
    def logits_per_frame(self) -> int:
        """Frames of logits for each frame of the hidden layers."""
        return self.encoder_frame_ms // self.frame_ms

    def frames(self, samples: int) -> int:
        """Frames of logits for so many samples, at least 1."""
        per_frame = self.logits_per_frame
        return int(self._frames(torch.tensor(samples))) // per_frame * per_frame

    def _frames(self, samples: Tensor) -> Tensor:
        """Frames of features for so many samples, of any shape; enough for a frame of the hidden layers."""
        return torch.div((samples - self._window).clamp(min=0), 320, rounding_mode="floor") + 1

    def parts(self) -> dict[str, nn.Module]:
        """Parts that a student may begin with, by what they are called in messages; none of a model without a CNN."""
        if not hasattr(self.encoder, "feature_extractor"):
            return {}
        projection = self.encoder.feature_projection
        return {
            "CNN": self.encoder.feature_extractor,
            "feature norm": getattr(projection, "layer_norm", nn.Identity()),  # some HuBERTs have none
            "feature projection": projection.projection,
        }

    def _inputs(self, speech: Tensor, samples: Tensor) -> Tensor:
        """(B, N) audio, padded with zeros, with (B,) samples each, on its device -> features (B, T, channels)."""
        if self.normalize:
            inside = torch.arange(speech.shape[1], device=speech.device) < samples[:, None]
            count = samples.clamp(min=1)[:, None]
            mean = (speech * inside).sum(1, keepdim=True) / count
            centred = (speech - mean) * inside
            speech = centred / (centred.square().sum(1, keepdim=True) / count + self.audio_epsilon).sqrt()
        return self._features(F.pad(speech, (0, max(0, self._window - speech.shape[1]))))

    def _features(self, speech: Tensor) -> Tensor:
        """What the CNN puts out for (B, N) audio, (B, T, channels)."""
        extractor = self.encoder.feature_extractor
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_cnn):
            if self._fast:
                return convolve(speech[..., None], extractor.conv_layers)
            x = speech[:, None]
            for layer in extractor.conv_layers:
                x = layer(x)
            return x.transpose(1, 2)

    def _project(self, features: Tensor) -> Tensor:
        """(B, T, channels) -> (B, T, width)."""
        projected = self.encoder.feature_projection(features)
        return projected[0] if isinstance(projected, tuple) else projected

    def projected_features(self, speech: Tensor, speech_lengths: Tensor) -> Tensor:
        """What the first layer gets, before masks: (B, N) audio with (B,) samples -> (B, T, width)."""
        return self._project(self._inputs(speech, send(speech_lengths, speech.device)))

    @property
    def _masks_time(self) -> bool:
        """Whether stretches of time are masked in training."""
        return getattr(self.config, "apply_spec_augment", True) and getattr(self.config, "mask_time_prob", 0) > 0

    @property
    def _fast(self) -> bool:
        """Whether the CNN is the one that :func:`convolve` computes."""
        c = self.config
        blocks = all(kernel <= 2 * stride for kernel, stride in zip(c.conv_kernel, c.conv_stride, strict=True))
        return not self.sees_padding and c.conv_bias and c.feat_extract_activation == "gelu" and blocks

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> NetworkOutput:
        """Outputs for (B, N) audio in [-1, 1], padded with zeros, with (B,) samples each.

        ``hidden[i - 1]`` is what layer i puts out; in models with ``do_stable_layer_norm`` that is before the norm that
        follows the last layer. In training mode frames are masked as the configuration says (``mask_time_prob``),
        unless the batch is no longer than a mask.
        """
        frames = self._frames(speech_lengths)
        x = self.projected_features(speech, speech_lengths)
        if self.training:
            x = self._hide(x, frames)
        x, hidden = self._encode(x, frames)
        lengths = torch.div(frames, self.logits_per_frame, rounding_mode="floor")
        x = x[:, : hidden[0].shape[1] * self.logits_per_frame]
        logits = predict(self.output, self.dropout(x))
        return NetworkOutput(logits, lengths * self.logits_per_frame, hidden, lengths)

    def _encode(self, x: Tensor, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Last and every layer's output of (B, T, width) with (B,) frames each."""
        if frames.device.type == "cpu" and int(frames.min()) >= x.shape[1]:
            return self._run(x, None, [])
        frames = send(frames, x.device)[:, None]
        mask = torch.arange(x.shape[1], device=x.device) < frames

        def hide(_module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            return inputs[0].masked_fill(~mask[:, None], 0.0)

        hooks = [convolution.register_forward_pre_hook(hide) for convolution in self._padded_convolutions()]
        if self.config._attn_implementation == "sdpa":
            # transformers would ask the GPU whether anything is padded, and expand the mask to all queries.
            per_frame = self.logits_per_frame
            keys = (torch.arange(x.shape[1] // per_frame, device=x.device) < frames // per_frame)[:, None, None]

            def see(_module: nn.Module, inputs: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                return inputs, {**arguments, "attention_mask": keys}

            hooks += [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in self.stack.layers]
            return self._run(x.masked_fill(~mask[:, :, None], 0.0), None, hooks)
        return self._run(x, mask, hooks)

    def _run(self, x: Tensor, mask: Tensor | None, hooks: list[Any]) -> tuple[Tensor, list[Tensor]]:
        """Call the encoder, note what each layer puts out, and take its hooks away."""
        hidden: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden.append(output[0] if isinstance(output, tuple) else output)

        hooks += [layer.register_forward_hook(keep) for layer in self.stack.layers]
        try:
            return self.stack(x, attention_mask=mask).last_hidden_state, hidden
        finally:
            for hook in hooks:
                hook.remove()

    def unfuse_attention(self) -> None:
        """Compute attention as three operations: in bfloat16 on a CPU, with backward, 0.55 of the fused one's time."""
        if self.config._attn_implementation == "sdpa":
            self.encoder.set_attn_implementation("eager")

    @property
    def stack(self) -> Any:
        """The part of the encoder that has its ``layers``."""
        return getattr(self.encoder, "encoder", self.encoder)

    def _padded_convolutions(self) -> list[nn.Module]:
        """Convolutions over frames that are not masked yet, in layers or behind others: padding would leak in."""
        positions = getattr(self.stack, "pos_conv_embed", None)
        masked = None if getattr(positions, "batch_norm", None) is not None else getattr(positions, "conv", None)
        return [
            module
            for module in self.stack.modules()
            if isinstance(module, nn.Conv1d) and module.padding[0] and module is not masked
        ]

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
        if (
            getattr(c, "apply_spec_augment", True)
            and getattr(c, "mask_feature_prob", 0) > 0
            and frames > c.mask_time_length
        ):
            shape, least = (batch, width), c.mask_feature_min_masks
            drawn = _compute_mask_indices(shape, c.mask_feature_prob, c.mask_feature_length, min_masks=least)
            x = x.masked_fill(send(torch.from_numpy(drawn), x.device)[:, None], 0.0)
        return x


def model_type_of(config: Mapping[str, Any] | str | Path) -> str:
    """``model_type`` of a teacher's ``config``.

    Raises:
        UserError: its directory or its hub has no such configuration.
    """
    if isinstance(config, Mapping):
        return str(config.get("model_type", "wav2vec2"))
    name = str(config).removeprefix(HUB)
    if name == str(config):
        return str(_read_config(name).get("model_type"))
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        raise UserError(f"{config}: cannot be fetched; download it and give its directory: {error}") from error


def _read_config(directory: str) -> dict[str, Any]:
    config = read_json(Path(directory, "config.json"), f"give a directory in Hugging Face's format, or {HUB}NAME")
    encoder = config.get("encoder_config")  # of a Parakeet
    return {**encoder, "model_type": "parakeet_encoder"} if isinstance(encoder, dict) else config


def encoder_classes(model_type: str, origin: str) -> tuple[Any, Any, Any]:
    """Configuration, encoder, and encoder with a CTC layer, of transformers."""
    import transformers  # takes seconds, which a student need not wait

    if model_type not in ENCODERS:
        raise UserError(f"{origin}: model_type {model_type[:40]!r} is not a teacher; it must be {', '.join(ENCODERS)}")
    name = ENCODERS[model_type]
    kinds = ("EncoderConfig", "Encoder", "ForCTC") if name == "Parakeet" else ("Config", "Model", "ForCTC")
    return tuple(getattr(transformers, f"{name}{kind}") for kind in kinds)  # type: ignore


def attention(model_type: str) -> str:
    """The attention implementation: fused, but for relative positions that it does not support."""
    return "eager" if model_type in EAGER else "sdpa"


def _build(arguments: Mapping[str, Any]) -> PreTrainedModel:
    arguments = dict(arguments)
    model_type = arguments.pop("model_type", "wav2vec2")
    config_class, model_class, _ = encoder_classes(model_type, "network_conf.config")
    # Dropout on attention weights keeps the CPU from its fused attention; a configuration may still ask for it.
    config = config_class(**{"attention_dropout": 0.0, **arguments, "layerdrop": 0.0})
    config._attn_implementation = attention(model_type)
    encoder = model_class(config)
    cnn = getattr(encoder, "feature_extractor", None)
    for layer in cnn.conv_layers if cnn is not None else ():
        if layer.conv.bias is not None:
            nn.init.zeros_(layer.conv.bias)  # as in distill.models.cnn.ConvLayer
    return encoder


def _load(origin: str) -> PreTrainedModel:
    name, model_type = origin.removeprefix(HUB), model_type_of(origin)
    config_class, model_class, _ = encoder_classes(model_type, origin)
    if name == origin:
        try:
            config = config_class(**_read_config(name))
        except Exception as error:  # whatever transformers raises
            raise UserError(f"{name}/config.json: {first_line(error)}; copy the directory again") from None
        return load_pretrained(model_class, Path(name), config)[0]
    try:
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
