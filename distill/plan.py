"""What a recipe's run will cost before it is started: disk, GPU-hours and CPU-hours of each stage, by formulae.

    python -m distill.bin.plan --corpus "LibriSpeech, 960 h" --hours 960.9 --utterances 281241 --test_hours 21.2 \\
        --teacher_config conf/train_teacher.yaml --student_full_config conf/train_student_full.yaml \\
        --student_stream_config conf/train_student_stream.yaml

Nothing is measured: every number follows from the corpus's size, the configurations and the assumptions that are
printed with it, each of them an option. `--dry_run true` of a recipe prints the same.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.errors import UserError, cli

SAMPLE_RATE = 16000
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # wav2vec 2.0's CNN
MEL_BINS, FBANK_KERNEL = 80, 3  # of the log-mel front end, whose two convolutions each halve 100 frames a second
# wav2vec2-large, where the teacher's configuration names a directory that is not here
LARGE = {
    "conv_dim": [512] * 7,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}


class Network(NamedTuple):
    """MACs per second of audio of its front end and of the rest, its weights, width, layers and frames per second."""

    front_macs: float
    body_macs: float
    weights: float
    width: int
    layers: int
    frames: float
    frozen_front: bool

    @property
    def macs(self) -> float:
        return self.front_macs + self.body_macs

    @property
    def training_macs(self) -> float:
        """Forward and, at twice that, backward; forward alone for a front end that is not trained."""
        return self.front_macs * (1 if self.frozen_front else 3) + 3 * self.body_macs


def cnn(channels: Sequence[int]) -> tuple[float, float]:
    """MACs per second of audio, and weights: rate_l C_l C_(l-1) k_l and C_l C_(l-1) k_l, summed over the layers."""
    rate, before, macs, weights = float(SAMPLE_RATE), 1, 0.0, 0.0
    for width, kernel, stride in zip(channels, KERNELS, STRIDES, strict=True):
        rate /= stride
        macs += rate * width * before * kernel
        weights += width * before * kernel
        before = width
    return macs, weights


def teacher_network(config: dict[str, Any], seconds: float) -> Network:
    """A wav2vec 2.0 by the keys of its config.json, on utterances of so many seconds."""
    d, layers, ffn = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    front, front_weights = cnn(config["conv_dim"])
    position = d * d // config["num_conv_pos_embedding_groups"] * config["num_conv_pos_embeddings"]
    weights = layers * (4 * d * d + 2 * d * ffn) + position + config["conv_dim"][-1] * d
    attention = layers * 2 * 50 * seconds * d
    return Network(front, 50 * (weights + attention), front_weights + weights, d, layers, 50, True)


def student_network(conf: dict[str, Any], seconds: float) -> Network:
    """A Conformer student by its network_conf."""
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


def read_config(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise UserError(f"{path}: not found; give the training's configuration")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a training's configuration; expected keys such as max_epoch")
    return config


def audio_hours(config: dict[str, Any], hours: float) -> float:
    """Hours of audio that a training hears: its batches, full to the brim, or passes over the corpus."""
    epochs = int(config.get("max_epoch", 40))
    if config.get("num_iters_per_epoch"):
        return epochs * int(config["num_iters_per_epoch"]) * int(config["batch_bins"]) / SAMPLE_RATE / 3600
    return epochs * hours


def optimiser_steps(config: dict[str, Any], hours: float) -> int:
    """Updates of the weights in that training."""
    batch_hours = int(config["batch_bins"]) / SAMPLE_RATE / 3600
    return math.ceil(audio_hours(config, hours) / batch_hours / int(config.get("accum_grad", 1)) - 1e-6)


def checkpoint_gb(network: Network, config: dict[str, Any]) -> float:
    """float32 weights of each epoch that is kept and of their average; two checkpoints with AdamW's two moments."""
    return network.weights * 4 * (int(config.get("keep_nbest_models", 1)) + 1 + 2 * 3) / 1e9


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="the corpus", help="its name, for the title")
    parser.add_argument("--hours", type=float, required=True, help="of training audio")
    parser.add_argument("--utterances", type=int, help="of the training set (default: one for 10 s)")
    parser.add_argument("--test_hours", type=float, default=10.0, help="of all test sets (default: 10)")
    parser.add_argument("--teacher_config", type=Path, default=Path("conf/train_teacher.yaml"))
    parser.add_argument("--teacher_init_config", type=Path, help="first training of the teacher (default: none)")
    parser.add_argument("--adopted", action="store_true", help="the teacher is trained already")
    parser.add_argument("--student_full_config", type=Path, default=Path("conf/train_student_full.yaml"))
    parser.add_argument("--student_stream_config", type=Path, default=Path("conf/train_student_stream.yaml"))
    parser.add_argument("--vocab", type=int, default=500, help="tokens (default: 500)")
    parser.add_argument("--latencies", type=int, default=5, help="recognitions of the streaming student (default: 5)")
    parser.add_argument("--teacher_targets", choices=("stored", "online"), default="online", help="(default: online)")
    parser.add_argument("--ngpu", type=int, default=4, help="GPUs of a training (default: 4)")
    parser.add_argument("--tflops", type=float, default=20.0, help="effective TFLOP/s of a GPU (default: 20)")
    parser.add_argument("--cpu_gflops", type=float, default=20.0, help="effective GFLOP/s of a CPU core (default: 20)")
    parser.add_argument("--flac_ratio", type=float, default=0.54, help="FLAC's size over 16-bit PCM's (default: 0.54)")
    args = parser.parse_args(argv)
    if min(args.hours, args.test_hours, args.tflops, args.cpu_gflops, args.flac_ratio, args.ngpu) <= 0:
        raise UserError("plan: hours, rates and GPUs must be positive; see --help")

    utterances = args.utterances or round(args.hours * 360)
    seconds = args.hours * 3600 / utterances
    teacher_training = read_config(args.teacher_config)
    full_training, stream_training = read_config(args.student_full_config), read_config(args.student_stream_config)
    named = (teacher_training.get("network_conf") or {}).get("config")
    teacher = teacher_network({**LARGE, **named} if isinstance(named, dict) else LARGE, seconds)
    student = student_network(full_training["network_conf"], seconds)

    def gpu_hours(macs_per_second: float, hours: float) -> float:
        return macs_per_second * 2 * hours * 3600 / (args.tflops * 1e12) / 3600

    def of_training(name: str, config: dict[str, Any]) -> str:
        heard = audio_hours(config, args.hours)
        steps = optimiser_steps(config, args.hours)
        return f"{name}: {heard:,.0f} h of audio ({heard / args.hours:.1f} passes), {steps:,} steps"

    # (stage, what it makes, GB, GPU-hours, CPU-hours)
    rows: list[tuple[str, str, float, float, float]] = []
    audio_gb = (args.hours + args.test_hours) * 3600 * SAMPLE_RATE * 2 * args.flac_ratio / 1e9
    rows.append(("3-4", "formatted audio", audio_gb, 0, 0))
    trainings = [] if args.adopted else [(args.teacher_init_config, False), (args.teacher_config, True)]
    notes = []
    for path, whole in trainings:
        if path is not None:
            config = read_config(path)
            heard = audio_hours(config, args.hours)
            macs = teacher.training_macs if whole else teacher.macs
            name = "teacher" if whole else "teacher, first its prediction layer"
            rows.append(("7", name, checkpoint_gb(teacher, config), gpu_hours(macs, heard), 0))
            notes.append(of_training(f"{name} ({path.name})", config))
    layers = min(student.layers, teacher.layers)  # one of the teacher's for each of the student's
    numbers = args.hours * 3600 * student.frames * (layers * teacher.width + args.vocab)
    if args.teacher_targets == "stored":
        rows.append(("8", "targets, float32", numbers * 4 / 1e9, gpu_hours(teacher.macs, args.hours), 0))
    heard_full, heard_stream = audio_hours(full_training, args.hours), audio_hours(stream_training, args.hours)
    beside = teacher.macs if args.teacher_targets == "online" else 0.0
    for stage, name, config, heard in (
        ("10", "student_full", full_training, heard_full),
        ("11", "student_stream", stream_training, heard_stream),
    ):
        hours = gpu_hours(student.training_macs + beside, heard)
        rows.append((stage, name, checkpoint_gb(student, config), hours, 0))
        notes.append(of_training(name, config))
    macs = teacher.macs + (1 + args.latencies) * student.macs
    rows.append(("12", "recognition", 0, 0, macs * 2 * args.test_hours / (args.cpu_gflops * 1e9)))

    print(f"# Plan for {args.corpus}\n")
    print("| stage | makes | disk, GB | GPU-hours | CPU core hours |\n|---|---|---|---|---|")
    for stage, name, gb, gpu, cpu in rows:
        print(f"| {stage} | {name} | {gb:,.1f} | {gpu:,.1f} | {cpu:,.1f} |")
    total_gb, total_gpu, total_cpu = (sum(column) for column in list(zip(*rows, strict=True))[2:])
    print(f"| | all | {total_gb:,.1f} | {total_gpu:,.1f} | {total_cpu:,.1f} |")
    print(f"\nOn {args.ngpu} GPUs, if they were used without loss: {total_gpu / args.ngpu / 24:,.1f} days.\n")
    print("Stored targets would take (layers of the teacher: " + f"{layers} of width {teacher.width}):\n")
    for dtype, size in (("float32", 4), ("float16", 2), ("compressed", 1)):
        print(f"- {dtype}: {numbers * size / 1e9:,.0f} GB")
    print("\nFrom:\n")
    corpus = f"{args.hours:,.1f} h in {utterances:,} utterances of {seconds:.1f} s"
    print(f"- {corpus} to train on, {args.test_hours:g} h to test on")
    for name, network in (("teacher", teacher), ("student", student)):
        print(
            f"- {name}: {network.macs / 1e9:.2f} GMAC per second of audio ({network.front_macs / 1e9:.2f} in the front "
            f"end), {network.weights / 1e6:.1f} M weights"
        )
    for note in notes:
        print(f"- {note}")
    print(
        f"- {args.tflops:g} TFLOP/s effective of a GPU, {args.cpu_gflops:g} GFLOP/s of a CPU core, {args.vocab} tokens"
    )
    print(f"- FLAC takes {args.flac_ratio:g} of 16-bit PCM at 16 kHz; the corpus itself is not counted")


if __name__ == "__main__":
    main()
