"""What a trained model's configuration may hold, checked before a network is built from it.

Sizes have upper limits far above those of any published model, so that no number in a file can fill the memory.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field

from distill.configuration import (
    KEYS,
    TEACHER_FRAME_MS,
    ChunkConf,
    Flag,
    Float,
    Int,
    NotNegative,
    Share,
    checked,
    read_conf,
    shortened,
)
from distill.errors import UserError
from distill.files import read_json

OTHERS = ConfigDict(extra="ignore", allow_inf_nan=False)  # of a section that may have other keys, which are not used
Map: TypeAlias = dict[str, Any]
Size: TypeAlias = Annotated[Int, Field(ge=1, le=65536)]
Layers = Annotated[Int, Field(ge=1, le=512)]
Kernel = Annotated[Int, Field(ge=1, le=1024)]
# An entry for each layer of a CNN
Sizes = Annotated[Sequence[Size], Field(min_length=1, max_length=32)]
Kernels: TypeAlias = Annotated[Sequence[Kernel], Field(min_length=1, max_length=32)]
Count = Annotated[Int, Field(ge=0, le=65536)]
TokenType = Literal["char", "bpe", "word", "phn"]
HOP = 320  # samples between two frames of wav2vec 2.0's CNN
MAX_POSITIONS = 1 << 26  # numbers of a table of positions


@dataclass(frozen=True)
class ConvFrontEndConf:
    """Arguments of :class:`distill.models.cnn.ConvFrontEnd`."""

    __pydantic_config__ = KEYS

    channels: Sizes = (512,) * 7
    kernels: Kernels = (10, 3, 3, 3, 3, 2, 2)
    strides: Kernels = (5, 2, 2, 2, 2, 2, 2)
    freeze: Flag = False

    def __post_init__(self) -> None:
        check_cnn("network_conf.front_end_conf", self.channels, self.kernels, self.strides)
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            if kernel > 2 * stride:
                raise UserError(f"network_conf.front_end_conf.kernels: {kernel} is more than 2 x its stride {stride}")


@dataclass(frozen=True)
class FbankFrontEndConf:
    """Arguments of :class:`distill.models.fbank.FbankFrontEnd`."""

    __pydantic_config__ = KEYS

    channels: Size = 256
    bins: Annotated[Int, Field(ge=1, le=256)] = 80


@dataclass(frozen=True)
class StudentConf:
    """``network_conf`` of a student: arguments of :class:`distill.models.student.Student`."""

    __pydantic_config__ = KEYS

    front_end: Literal["cnn", "fbank"] = "cnn"
    front_end_conf: Map | None = None
    width: Size = 384
    layers: Layers = 10
    heads: Size = 6
    ffn: Size = 576
    kernel: Kernel = 15
    dropout: Share = 0.1
    logits_per_frame: Annotated[Int, Field(ge=1, le=4)] | None = None

    def __post_init__(self) -> None:
        kind = ConvFrontEndConf if self.front_end == "cnn" else FbankFrontEndConf
        checked(kind, "network_conf.front_end_conf", self.front_end_conf or {})


@dataclass(frozen=True)
class LayersConf:
    """The keys of a teacher's config.json that shape its layers or their training, in every family.

    Others are neither checked nor used. Defaults are transformers'.
    """

    __pydantic_config__ = OTHERS

    model_type: str = "wav2vec2"
    hidden_size: Size = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    hidden_dropout: Share = 0.1
    activation_dropout: Share = 0.1
    attention_dropout: Share = 0.1
    feat_proj_dropout: Share = 0.0
    final_dropout: Share = 0.1
    initializer_range: NotNegative = 0.02
    layer_norm_eps: Annotated[Float, Field(gt=0, le=1)] = 1e-5
    apply_spec_augment: Flag = True
    mask_time_prob: Share = 0.05
    mask_time_length: Size = 10
    mask_time_min_masks: Count = 2
    mask_feature_prob: Share = 0.0
    mask_feature_length: Size = 10
    mask_feature_min_masks: Count = 0
    add_adapter: Flag = False

    def __post_init__(self) -> None:
        if self.add_adapter:
            raise UserError("add_adapter changes the frame rate; use a model without an adapter")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"num_attention_heads: {self.num_attention_heads} does not divide hidden_size")

    @property
    def frame_ms(self) -> tuple[int, int]:
        """Milliseconds between frames of logits and between frames of the hidden layers."""
        return TEACHER_FRAME_MS, TEACHER_FRAME_MS


@dataclass(frozen=True)
class EncoderConf(LayersConf):
    """:class:`LayersConf` of wav2vec 2.0's layout: a CNN over audio, and a convolution for positions."""

    feat_proj_layer_norm: Flag = True
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: Sizes = (512,) * 7
    conv_stride: Kernels = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: Kernels = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: Flag = False
    conv_pos_batch_norm: Flag = False
    num_conv_pos_embeddings: Kernel = 128
    num_conv_pos_embedding_groups: Size = 16
    do_stable_layer_norm: Flag = False
    num_buckets: Annotated[Int, Field(ge=4, le=65536)] = 320
    max_bucket_distance: Annotated[Int, Field(ge=4, le=65536)] = 800
    adapter_attn_dim: Size | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cnn("the CNN", self.conv_dim, self.conv_kernel, self.conv_stride)
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            raise UserError("num_conv_pos_embedding_groups: does not divide hidden_size")


@dataclass(frozen=True)
class Data2VecAudioConf(EncoderConf):
    """:class:`EncoderConf` of a data2vec-audio, which has several convolutions for positions, and layer norm alone."""

    feat_extract_norm: Literal["layer"] = "layer"
    num_conv_pos_embeddings: Annotated[Int, Field(ge=1, le=32)] = 5
    conv_pos_kernel_size: Kernel = 19


@dataclass(frozen=True)
class ConformerConf(EncoderConf):
    """:class:`EncoderConf` of a wav2vec2-conformer."""

    position_embeddings_type: Literal["relative", "rotary"] | None = "relative"
    rotary_embedding_base: Annotated[Int, Field(ge=2, le=10**9)] = 10000
    max_source_positions: Size = 5000
    conv_depthwise_kernel_size: Kernel = 31
    conformer_conv_dropout: Share = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_conformer(self)


@dataclass(frozen=True)
class SewConf(EncoderConf):
    """:class:`EncoderConf` of a SEW."""

    conv_dim: Sizes = (64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512)
    conv_stride: Kernels = (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)
    conv_kernel: Kernels = (10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1)
    squeeze_factor: Annotated[Int, Field(ge=1, le=4)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.squeeze_factor == 3:
            raise UserError("squeeze_factor: 3 makes frames of 60 ms; it must be 1, 2 or 4")

    @property
    def frame_ms(self) -> tuple[int, int]:
        return TEACHER_FRAME_MS, TEACHER_FRAME_MS * self.squeeze_factor


@dataclass(frozen=True)
class Wav2Vec2BertConf(LayersConf):
    """:class:`LayersConf` of a w2v-BERT 2.0."""

    hidden_size: Size = 1024
    num_hidden_layers: Layers = 24
    num_attention_heads: Size = 16
    intermediate_size: Size = 4096
    hidden_act: str = "swish"
    hidden_dropout: Share = 0.0
    activation_dropout: Share = 0.0
    attention_dropout: Share = 0.0
    feature_projection_input_dim: Annotated[Int, Field(ge=160, le=160)] = 160
    use_intermediate_ffn_before_adapter: Literal[False] = False
    position_embeddings_type: Literal["relative", "rotary", "relative_key"] | None = "relative_key"
    rotary_embedding_base: Annotated[Int, Field(ge=2, le=10**9)] = 10000
    max_source_positions: Size = 5000
    left_max_position_embeddings: Annotated[Int, Field(ge=0, le=65536)] = 64
    right_max_position_embeddings: Annotated[Int, Field(ge=0, le=65536)] = 8
    conv_depthwise_kernel_size: Kernel = 31
    conformer_conv_dropout: Share = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_conformer(self)


@dataclass(frozen=True)
class ParakeetConf(LayersConf):
    """:class:`LayersConf` of a Parakeet's encoder; its log-mel is fixed but for the number of bins."""

    hidden_size: Size = 1024
    num_hidden_layers: Layers = 24
    num_attention_heads: Size = 8
    intermediate_size: Size = 4096
    hidden_act: str = "silu"
    attention_bias: Flag = True
    convolution_bias: Flag = True
    conv_kernel_size: Kernel = 9
    subsampling_factor: Annotated[Int, Field(ge=2, le=8)] = 8
    subsampling_conv_channels: Size = 256
    subsampling_conv_kernel_size: Annotated[Int, Field(ge=3, le=3)] = 3
    subsampling_conv_stride: Annotated[Int, Field(ge=2, le=2)] = 2
    num_mel_bins: Annotated[Int, Field(ge=8, le=256)] = 80
    dropout: Share = 0.1
    dropout_positions: Share = 0.0
    max_position_embeddings: Size = 5000
    scale_input: Flag = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subsampling_factor not in (2, 4, 8):
            raise UserError(f"subsampling_factor: {self.subsampling_factor} is none of 2, 4 and 8")
        if self.num_mel_bins % self.subsampling_factor:
            raise UserError(f"num_mel_bins: {self.num_mel_bins} is not a multiple of subsampling_factor")
        if self.conv_kernel_size % 2 == 0:
            raise UserError(f"conv_kernel_size: {self.conv_kernel_size} is not odd")

    @property
    def frame_ms(self) -> tuple[int, int]:
        return 10 * self.subsampling_factor, 10 * self.subsampling_factor


# Whole numbers in the sections of an experiment of ESPnet
WHOLE = {
    "n_fft", "hop_length", "n_mels", "num_blocks", "output_size", "attention_heads", "max_pos_emb_len", "input_size",
}  # fmt: skip
UPSTREAMS = ("wav2vec2", "hubert", "wavlm")  # of s3prl, by their model_type


@dataclass(frozen=True)
class S3prlConf:
    """Arguments of :class:`distill.models.teachers.espnet_s3prl.S3prlFrontEnd`."""

    __pydantic_config__ = KEYS

    upstream: Map
    normalize: Flag = False
    layer: Annotated[Int, Field(ge=0, le=512)] | None = None

    def __post_init__(self) -> None:
        where = "frontend_conf.upstream"
        if self.upstream.get("model_type") not in UPSTREAMS:
            raise UserError(f"{where}.model_type: must be {', '.join(UPSTREAMS)}")
        conf = encoder_conf(self.upstream, where)
        for key in self.upstream.keys() - {field.name for field in dataclasses.fields(conf)}:
            raise UserError(f"{where}: no key {shortened(key)}")
        if self.layer is not None and self.layer > conf.num_hidden_layers:
            raise UserError(f"frontend_conf.layer: {self.layer} is more than the {conf.num_hidden_layers} there are")


@dataclass(frozen=True)
class EspnetConf(LayersConf):
    """:class:`LayersConf` of an asr experiment of ESPnet: sections of its config.yaml, whose numbers are bounded.

    ``frontend_conf`` of ``frontend: s3prl`` is a :class:`S3prlConf`.
    """

    frontend: Literal["default", "s3prl"] = "default"
    encoder: Literal["conformer", "e_branchformer", "transformer"] = "conformer"
    normalize: Literal["global_mvn", "utterance_mvn"] | None = None
    frontend_conf: Map = dataclasses.field(default_factory=dict)
    preencoder_conf: Map | None = None
    encoder_conf: Map = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        front, layers = self.frontend_conf, self.encoder_conf
        check_numbers("encoder_conf", layers)
        check_numbers("preencoder_conf", self.preencoder_conf or {})
        if layers.get("num_blocks") != self.num_hidden_layers or layers.get("output_size") != self.hidden_size:
            raise UserError("encoder_conf: num_blocks and output_size are not the layers and their width")
        if layers.get("max_pos_emb_len", 5000) * self.hidden_size > MAX_POSITIONS:
            raise UserError("encoder_conf.max_pos_emb_len: the table of positions is too large")
        if self.frontend == "s3prl":
            checked(S3prlConf, "frontend_conf", front)
        else:
            check_numbers("frontend_conf", front)
            if front.get("n_fft", 512) > 4096 or front.get("n_mels", 80) > 256:
                raise UserError("frontend_conf: n_fft must be at most 4096, and n_mels at most 256")
            if front.get("fs", 16000) not in (16000, "16k"):
                raise UserError("frontend_conf.fs: must be 16000")
        if self.frame_ms[0] not in (20, 40, 80):
            raise UserError(f"frames of {self.frame_ms[0]} ms: must be 20, 40 or 80 (hop_length x input_layer)")

    @property
    def frame_ms(self) -> tuple[int, int]:
        frames = {"linear": 1, "conv2d1": 1, "conv2d2": 2, "conv2d": 4, "conv2d8": 8}  # of the front end in one
        hop = HOP if self.frontend == "s3prl" else self.frontend_conf.get("hop_length", 128)
        samples = hop * frames.get(str(self.encoder_conf.get("input_layer", "conv2d")), 0)
        milliseconds = int(samples // 16) if samples % 16 == 0 else 0
        return milliseconds, milliseconds


def check_numbers(section: str, conf: Map) -> None:
    """Refuse a section of an experiment of ESPnet with a value that is no number in bounds, nor a word or null."""
    for key, value in conf.items():
        number = type(value) is int or (isinstance(value, bool | float) and key not in WHOLE)
        if not (number and 0 <= value <= 65536) and (key in WHOLE or not isinstance(value, str | None)):
            raise UserError(f"{section}.{key}: {shortened(value)} is no number from 0 to 65536")


ENCODER_CONFS: dict[str, type[LayersConf]] = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"), EncoderConf),
    "data2vec-audio": Data2VecAudioConf,
    "wav2vec2-conformer": ConformerConf,
    "sew": SewConf,
    "wav2vec2-bert": Wav2Vec2BertConf,
    "parakeet_encoder": ParakeetConf,
    "espnet": EspnetConf,
}
CHOICES = f"it must be {', '.join(list(ENCODER_CONFS)[:-1])} or {list(ENCODER_CONFS)[-1]}"


@dataclass(frozen=True)
class TeacherConf:
    """``network_conf`` of a teacher: arguments of :class:`distill.models.teacher.Teacher`."""

    __pydantic_config__ = KEYS

    config: Map | str
    normalize: Flag = False
    freeze_cnn: Flag = False


@dataclass(frozen=True)
class TrainingConf:
    """The keys of a training's config.yaml that are used after it; a training has others as well."""

    __pydantic_config__ = OTHERS

    network: Literal["teacher", "student"]
    token_list: Annotated[list[str], Field(min_length=2)]
    token_type: TokenType = "char"
    network_conf: Map | None = None
    chunk_conf: Map | None = None
    distill_conf: Map | None = None
    augment_conf: Map | None = None
    mask_conf: Map | None = None
    optim_conf: Map | None = None
    scheduler_conf: Map | None = None
    best_model_criterion: list[list[Annotated[str, Field(pattern="^[a-z0-9_]+$")]]] | None = None
    bpemodel: str | None = None
    teacher: str | None = None
    version: str | int | float | None = None

    def __post_init__(self) -> None:
        check_tokens(self.token_list, "token_list")
        read_conf(ChunkConf, "chunk_conf", self.chunk_conf or None)
        if any(len(names) < 2 for names in self.best_model_criterion or ()):
            raise UserError("best_model_criterion: must be lists of a phase, a value and min or max")


def check_cnn(where: str, channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> None:
    """Check that a CNN has as many channels, kernels and strides, and wav2vec 2.0's frames of 20 ms."""
    if not len(channels) == len(kernels) == len(strides):
        raise UserError(f"{where}: {len(channels)} channels, {len(kernels)} kernels and {len(strides)} strides")
    if (hop := math.prod(strides)) != HOP:
        raise UserError(f"{where}: frames of {hop} samples instead of {HOP} (20 ms)")


def check_conformer(conf: Any) -> None:
    """Check the convolutions of Conformer layers, and the table of their relative positions, which is no weight."""
    if conf.conv_depthwise_kernel_size % 2 == 0:
        raise UserError(f"conv_depthwise_kernel_size: {conf.conv_depthwise_kernel_size} is not odd")
    if conf.max_source_positions * conf.hidden_size > MAX_POSITIONS:
        raise UserError(f"max_source_positions: {conf.max_source_positions} positions of width {conf.hidden_size}")
    if conf.position_embeddings_type == "rotary" and conf.hidden_size // conf.num_attention_heads % 2:
        raise UserError("position_embeddings_type: rotary needs heads of an even width")


def check_tokens(tokens: Sequence[str], where: str) -> None:
    """Refuse tokens that would end a line of a token list, or that a terminal would obey when text is shown.

    Raises:
        UserError: the message names the token by its number.
    """
    for number, token in enumerate(tokens):
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in token):
            raise UserError(f"{where}: token {number} is {ascii(token[:20])}, which has a control character; remove it")


def case_of(tokens: Iterable[str]) -> Callable[[str], str]:
    """The function that brings a text to the case of these tokens: str.lower, str.upper, or str if they have both."""
    letters = "".join(token for token in tokens if not (token.startswith("<") and token.endswith(">")))
    if letters == letters.lower():
        return str.lower
    return str.upper if letters == letters.upper() else str


def check_network(conf: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """``network_conf`` of a teacher or student, checked, as arguments of its class.

    Of a teacher's configuration only the keys of :class:`EncoderConf` are left; one in a directory, in Hugging Face's
    format, is checked there.

    Raises:
        UserError: a key is unknown, or a value of another type, out of range or not finite.
    """
    if kind == "student":
        checked(StudentConf, "network_conf", conf)
        return conf
    config = checked(TeacherConf, "network_conf", conf).config
    if isinstance(config, str):
        if not config.startswith("hf://"):
            read_encoder(Path(config))
        return conf
    return {**conf, "config": encoder_arguments(config, "network_conf.config")}


def encoder_conf(config: Any, where: str) -> LayersConf:
    """A Hugging Face configuration as the dataclass of its ``model_type``, checked.

    Raises:
        UserError: it is not that of a teacher, or a value is of another type, out of range or not finite.
    """
    model_type = config.get("model_type", "wav2vec2") if isinstance(config, Mapping) else "wav2vec2"
    kind = ENCODER_CONFS.get(model_type) if isinstance(model_type, str) else None
    if kind is None:
        raise UserError(f"{where}: model_type {shortened(model_type)} is not a teacher; {CHOICES}")
    try:
        return checked(kind, where, config)
    except UserError as error:  # what is checked of several keys together does not know where they are
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None


def encoder_arguments(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of a Hugging Face configuration that its :func:`encoder_conf` has, checked."""
    names = [field.name for field in dataclasses.fields(encoder_conf(config, where)) if field.name in config]
    return {name: config[name] for name in names}


def read_encoder(directory: Path) -> dict[str, Any]:
    """The configuration of a directory in Hugging Face's format, as :func:`encoder_arguments` leaves it.

    Raises:
        UserError: it is missing or damaged, or its weights would not be those of the network it describes.
    """
    path = directory / "config.json"
    config = read_json(path, "give a directory in Hugging Face's format, or copy it again")
    if (directory / "adapter_config.json").exists():
        raise UserError(f"{directory}: is an adapter for another model; merge and save them (merge_and_unload)")
    if config.get("quantization_config") is not None:
        raise UserError(f"{path}: quantization_config: quantised weights cannot be used; take the original model")
    if "model_type" not in config:
        raise UserError(f"{path}: has no model_type; {CHOICES}")
    if config["model_type"] == "parakeet_ctc":
        encoder = config.get("encoder_config")
        if not isinstance(encoder, dict):
            raise UserError(f"{path}: encoder_config is {shortened(encoder)} instead of the encoder's configuration")
        config = {**encoder, "model_type": "parakeet_encoder"}
    return encoder_arguments(config, str(path))
