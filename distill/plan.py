"""What a recipe's run will cost, by formulae: disk, GPU-hours and CPU-hours of each stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.audio import SAMPLE_RATE
from distill.checkpoints.load import read_config
from distill.checkpoints.schema import read_encoder
from distill.configuration import CODEWORDS, code_bytes, for_processes, logit_bytes, read_training_config
from distill.errors import UserError

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # wav2vec 2.0's CNN
MEL_BINS, FBANK_KERNEL = 80, 3  # of the log-mel front end, whose two convolutions each halve 100 frames a second
# wav2vec2-large, where the teacher's configuration names a directory that is not here
LARGE: dict[str, Any] = {
    "model_type": "wav2vec2",
    "conv_dim": [512] * 7,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


class Rate(NamedTuple):
    """Effective speed of one GPU on a part of the work, in bfloat16.

    Attributes:
        tflops: floating-point operations a second, in 10^12; a multiply-add is two.
        source: measured, with the card's name, or assumed.
    """

    tflops: float
    source: str


# To be replaced part by part: operations of the formulae below / seconds that `make bench-gpu` measures
RATES = {
    "teacher, forward": Rate(20.0, "assumed"),
    "teacher, training": Rate(20.0, "assumed"),
    "student's front end": Rate(20.0, "assumed"),
    "student's body": Rate(20.0, "assumed"),
}


class Network(NamedTuple):
    """Computation and size of a network.

    Attributes:
        front_macs: multiply-adds per second of audio in the front end.
        body_macs: multiply-adds per second of audio in everything else.
        weights: number of weights.
        width: of the layers.
        layers: their number.
        frames: per second.
        frozen_front: whether the front end is not trained.
    """

    front_macs: float
    body_macs: float
    weights: float
    width: int
    layers: int
    frames: float
    frozen_front: bool

    @property
    def macs(self) -> float:
        """Multiply-adds per second of audio, forward."""
        return self.front_macs + self.body_macs

    @property
    def front_training_macs(self) -> float:
        """Multiply-adds per second of audio of the front end in training: backward costs twice forward, if any."""
        return self.front_macs * (1 if self.frozen_front else 3)

    @property
    def body_training_macs(self) -> float:
        """Multiply-adds per second of audio of everything else in training."""
        return 3 * self.body_macs


def cnn(
    channels: Sequence[int], kernels: Sequence[int] = KERNELS, strides: Sequence[int] = STRIDES
) -> tuple[float, float]:
    """Multiply-adds per second of audio and weights: sums over layers of rate_l C_l C_(l-1) k_l and C_l C_(l-1) k_l."""
    rate, before, macs, weights = float(SAMPLE_RATE), 1, 0.0, 0.0
    for width, kernel, stride in zip(channels, kernels, strides, strict=True):
        rate /= stride
        macs += rate * width * before * kernel
        weights += width * before * kernel
        before = width
    return macs, weights


def teacher_encoder(training: dict[str, Any], teacher: Path | None) -> tuple[dict[str, Any], str]:
    """Configuration of the teacher's encoder, and a remark where that is assumed.

    Args:
        training: configuration of the teacher's training.
        teacher: one that is trained already: a training, a packed model, or a directory in Hugging Face's format.

    Raises:
        UserError: ``teacher`` is none of these, or damaged.
    """
    if teacher is not None and (teacher / "config.json").exists() and not (teacher / "config.yaml").exists():
        return read_encoder(teacher), ""
    if teacher is not None:
        training = read_config(teacher)
    named = (training.get("network_conf") or {}).get("config", {})
    if isinstance(named, str):
        if not Path(named, "config.json").exists():
            return LARGE, f"assumed to be wav2vec2-large, as {named} is not here"
        return read_encoder(Path(named)), ""
    return named, ""


def teacher_network(config: Mapping[str, Any], seconds: float) -> Network:
    """A teacher of any family by the configuration of its encoder, on utterances of ``seconds``.

    Every weight outside its CNN is used once for each frame: of its layers, or, in an upstream of s3prl before ESPnet's
    layers, of that.
    """
    import torch
    from torch import nn

    from distill.models.teachers import build_teacher

    with torch.device("meta"):  # takes no memory
        network = build_teacher(1, config)
    modules = dict(network.named_modules())
    extractor = next((module for name, module in modules.items() if name.endswith("feature_extractor")), None)
    convolutions = [layer.conv for layer in extractor.conv_layers] if extractor is not None else []
    front, front_weights = cnn(
        [conv.out_channels for conv in convolutions],
        [conv.kernel_size[0] for conv in convolutions],
        [conv.stride[0] for conv in convolutions],
    )
    layers, frames = network.config.num_hidden_layers, 1000 / network.encoder_frame_ms
    macs, weights = layers * 2 * frames * frames * seconds * network.width, 0.0  # attention scores
    for name, module in modules.items():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            weights += module.weight.numel()
            if module not in convolutions:
                macs += module.weight.numel() * (50 if name.startswith("encoder.frontend.") else frames)
    return Network(front, macs, weights, network.width, layers, 1000 / network.frame_ms, True)


def student_network(conf: dict[str, Any], seconds: float) -> Network:
    """A Conformer student by its network_conf, on utterances of ``seconds``."""
    w, layers, ffn, kernel = (conf[key] for key in ("width", "layers", "ffn", "kernel"))
    front_conf = conf.get("front_end_conf") or {}
    if conf.get("front_end", "cnn") == "fbank":
        out = front_conf.get("channels", 256)
        first, second = MEL_BINS * out * FBANK_KERNEL, out * out * FBANK_KERNEL
        frames, front, front_weights = 25.0, 50.0 * first + 25.0 * second, float(first + second)
    else:
        out = front_conf["channels"][-1]
        frames, (front, front_weights) = 50.0, cnn(front_conf["channels"])
    weights = layers * (4 * w * ffn + 4 * w * w + 3 * w * w + kernel * w) + out * w
    attention = layers * 2 * frames * seconds * w
    frozen = bool(front_conf.get("freeze", False))
    return Network(front, frames * (weights + attention), front_weights + weights, w, layers, frames, frozen)


def corpus_size(utt2num_samples: Path) -> tuple[float, int]:
    """Hours and utterances of a Kaldi table of samples at 16 kHz."""
    try:
        samples = [int(line.split()[1]) for line in utt2num_samples.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, IndexError):
        raise UserError(f"{utt2num_samples}: not a table of ids and samples; run stage 3 again") from None
    return sum(samples) / SAMPLE_RATE / 3600, len(samples)


def audio_hours(config: dict[str, Any], hours: float) -> float:
    """Hours of audio in a training: its epochs of full batches if their number is set, else of the whole corpus."""
    epochs = int(config.get("max_epoch", 40))
    if config.get("num_iters_per_epoch"):
        return epochs * int(config["num_iters_per_epoch"]) * int(config["batch_bins"]) / SAMPLE_RATE / 3600
    return epochs * hours


def optimiser_steps(config: dict[str, Any], hours: float) -> int:
    """Updates of the weights in a training on a corpus of ``hours``."""
    batch_hours = int(config["batch_bins"]) / SAMPLE_RATE / 3600
    return math.ceil(audio_hours(config, hours) / batch_hours / int(config.get("accum_grad", 1)) - 1e-6)


def checkpoint_gb(network: Network, config: dict[str, Any]) -> float:
    """Gigabytes of float32 weights of the kept epochs and their average, and of checkpoints with AdamW's state.

    These are two, and one within the epoch unless the configuration says that none is written.
    """
    whole = 3 if config.get("batches_per_checkpoint", 1) else 2
    return network.weights * 4 * (int(config.get("keep_nbest_models", 1)) + 1 + whole * 3) / 1e9


def targets_gb(hours: float, student: Network, teacher: Network, layers: int, vocab: int) -> dict[str, float]:
    """Gigabytes of stored targets by dtype: ``layers`` of the teacher at the student's frame rate, and logits."""
    hidden, logits = hours * 3600 * student.frames, hours * 3600 * teacher.frames
    values = hidden * layers * teacher.width + logits * vocab
    coded = code_bytes(teacher.width)
    codebooks = layers * coded * CODEWORDS * teacher.width * 2
    codes = hidden * layers * coded + logits * logit_bytes(vocab) + codebooks
    return {"float32": values * 4e-9, "float16": values * 2e-9, "compressed": values * 1e-9, "codebook": codes * 1e-9}


class Cost(NamedTuple):
    """What a stage makes, and what it costs."""

    stage: str
    makes: str
    disk_gb: float
    gpu_hours: float
    cpu_hours: float


class Training(NamedTuple):
    """A training of a stage, and its multiply-adds per second of audio by part of RATES."""

    stage: str
    name: str
    config: dict[str, Any]
    network: Network
    macs: dict[str, float]


def print_plan(
    corpus: str,
    hours: float | None,
    utt2num_samples: Path | None,
    utterances: int | None,
    test_hours: float | None,
    test_utt2num_samples: Sequence[Path] | None,
    teacher_config: Path,
    teacher_init_config: Path | None,
    trained_teacher: Path | None,
    student_full_config: Path,
    student_stream_config: Path,
    no_kd: bool,
    vocab: int,
    latencies: int,
    teacher_targets: str,
    target_dtype: str,
    ngpu: int,
    tflops: float | None,
    cpu_gflops: float,
    flac_ratio: float,
) -> None:
    """Print the plan as Markdown; see ``distill/bin/plan.py`` for the arguments."""
    if hours is None and utt2num_samples is not None:
        hours, utterances = corpus_size(utt2num_samples)
    if hours is None:
        raise UserError(
            'plan: the corpus\'s size is not known yet; give --plan_options "--hours H", or run stages 1 to 3'
        )
    if test_hours is None:
        test_hours = sum(corpus_size(path)[0] for path in test_utt2num_samples) if test_utt2num_samples else 10.0
    if min(hours, test_hours, tflops or 1.0, cpu_gflops, flac_ratio) <= 0 or ngpu < 0:
        raise UserError("plan: hours and rates must be positive; see --help")
    utterances = utterances or round(hours * 360)
    seconds = hours * 3600 / utterances
    rates = RATES if tflops is None else {part: Rate(tflops, "given") for part in RATES}
    teacher_training, full, stream = (
        for_processes(read_training_config(path), max(1, ngpu))
        for path in (teacher_config, student_full_config, student_stream_config)
    )
    encoder, remark = teacher_encoder(teacher_training, trained_teacher)
    teacher = teacher_network(encoder, seconds)
    student = student_network(full["network_conf"], seconds)
    with_teacher = {
        "teacher, forward": teacher.macs if teacher_targets == "online" else 0.0,
        "student's front end": student.front_training_macs,
        "student's body": student.body_training_macs,
    }
    trainings = []
    if trained_teacher is None:
        if teacher_init_config is not None:
            name = f"teacher, first training ({teacher_init_config.name})"
            first = for_processes(read_training_config(teacher_init_config), max(1, ngpu))
            trainings.append(Training("7", name, first, teacher, {"teacher, forward": teacher.macs}))
        name = f"teacher ({teacher_config.name})"
        macs = teacher.front_training_macs + teacher.body_training_macs
        trainings.append(Training("7", name, teacher_training, teacher, {"teacher, training": macs}))
    trainings.append(Training("10", "student_full", full, student, with_teacher))
    if no_kd:
        without_teacher = {**with_teacher, "teacher, forward": 0.0}
        trainings.append(Training("10", "student_full_no_kd", full, student, without_teacher))
    trainings.append(Training("11", "student_stream", stream, student, with_teacher))

    def gpu_hours(macs: dict[str, float], audio: float) -> float:
        """Of ``audio`` hours that take so many multiply-adds a second in each part."""
        return sum(2 * of_part * audio / (rates[part].tflops * 1e12) for part, of_part in macs.items())

    def on_device(macs: dict[str, float], audio: float) -> tuple[float, float]:
        """GPU-hours and CPU core hours of the same; one of them is 0."""
        if ngpu:
            return gpu_hours(macs, audio), 0.0
        return 0.0, sum(macs.values()) * 2 * audio / (cpu_gflops * 1e9)

    audio_gb = (hours + test_hours) * 3600 * SAMPLE_RATE * 2 * flac_ratio / 1e9
    layers = min(student.layers, teacher.layers)  # one of the teacher's for each of the student's
    sizes = targets_gb(hours, student, teacher, layers, vocab)
    costs = [Cost("3-4", "formatted audio", audio_gb, 0, 0)]
    if teacher_targets == "stored":
        of_targets = on_device({"teacher, forward": teacher.macs}, hours)
        costs.append(Cost("8", f"targets, {target_dtype}", sizes[target_dtype], *of_targets))
    for training in trainings:
        gb = checkpoint_gb(training.network, training.config)
        of_training = on_device(training.macs, audio_hours(training.config, hours))
        costs.append(Cost(training.stage, training.name.split(" (")[0], gb, *of_training))
    recognition_macs = teacher.macs + (1 + no_kd + latencies) * student.macs
    costs.append(Cost("12", "recognition", 0, 0, recognition_macs * 2 * test_hours / (cpu_gflops * 1e9)))
    costs.sort(key=lambda cost: int(cost.stage.split("-")[0]))

    print(f"# Plan for {corpus}\n")
    print_costs(costs, ngpu)
    print(f"Stored targets would take ({layers} of the teacher's layers, of width {teacher.width}):\n")
    for dtype, gb in sizes.items():
        print(f"- {dtype}: {gb:,.0f} GB" if gb >= 10 else f"- {dtype}: {gb:.2g} GB")
    print("\nFrom:\n")
    amount = f"{hours:,.1f} h in {utterances:,} utterances of {seconds:.1f} s"
    print(f"- {amount} to train on, {test_hours:.3g} h to test on")
    for name, network, note in (("teacher", teacher, remark), ("student", student, "")):
        print(
            f"- {name}: {network.macs / 1e9:.2f} GMAC per second of audio ({network.front_macs / 1e9:.2f} in the front "
            f"end), {network.weights / 1e6:.1f} M weights{f'; {note}' if note else ''}"
        )
    for training in trainings:
        audio, steps = audio_hours(training.config, hours), optimiser_steps(training.config, hours)
        print(f"- {training.name}: {audio:,.0f} h of audio ({audio / hours:.1f} passes), {steps:,} steps")
    for part, rate in rates.items() if ngpu else ():
        print(f"- {part}: {rate.tflops:g} TFLOP/s effective of a GPU, {rate.source}")
    print(f"- {cpu_gflops:g} GFLOP/s effective of a CPU core, assumed; {vocab} tokens")
    print(f"- FLAC takes {flac_ratio:g} of 16-bit PCM at 16 kHz; the corpus itself is not counted")


def print_costs(costs: Sequence[Cost], ngpu: int) -> None:
    """Print a table of the stages' costs with their sums, and the days that they take on so many GPUs."""
    print("| stage | makes | disk, GB | GPU-hours | CPU core hours |\n|---|---|---|---|---|")
    for stage, makes, gb, gpu, cpu in costs:
        print(f"| {stage} | {makes} | {gb:,.1f} | {gpu:,.1f} | {cpu:,.1f} |")
    gb, gpu, cpu = (sum(column) for column in list(zip(*costs, strict=True))[2:])
    print(f"| | all | {gb:,.1f} | {gpu:,.1f} | {cpu:,.1f} |")
    if ngpu:
        print(f"\nOn {ngpu} GPUs, if they were used without loss: {gpu / ngpu / 24:,.1f} days.\n")
    else:
        print(f"\nOn one CPU core: {cpu:,.1f} h. Give --ngpu for GPUs.\n")
