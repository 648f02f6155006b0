"""What a teacher of full size costs (random weights): extraction of its targets, and training steps with it.

    make bench

Makes wav2vec 2.0 Large (24 layers of 1024) or Base in Hugging Face's format, adopts it as a recipe does, and measures
in separate processes: extraction of the logits and of the layers that the student is compared with, beside the forward
computation of the same batches alone; a training step of a student without a teacher, with stored targets, and with the
teacher in the trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from distill.audio import SAMPLE_RATE
from distill.bench.parts import LAYER_NORM, TEACHERS, benchmark_parser, noise, peak_mb, student_conf, write_json

TOKENS = ["<blank>", "<unk>", "<space>", *"abcdefghijklmnopqrstuvwxyz'", "<sos/eos>"]


def make_teacher(size: str, directory: Path) -> None:
    """Write a Wav2Vec2ForCTC of random weights in Hugging Face's format, and adopt it.

    Its CNN is that of Large-LV60; Base's, with group norm, needs about half the computation.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    from distill.checkpoints.adopt import adopt_teacher

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}
    vocabulary |= {letter: 5 + i for i, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ'")}
    torch.manual_seed(0)
    source = directory / "source"
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(vocabulary), **TEACHERS[size], **LAYER_NORM)).save_pretrained(source)
    (source / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (directory / "tokens.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    adopt_teacher(source, directory / "tokens.txt", "char", directory / "teacher")


def make_audio(directory: Path, seconds: int) -> None:
    """Write noise in utterances of 15 s, and their wav.scp."""
    lines = []
    for number in range(max(1, seconds // 15)):
        path = directory / f"utt{number:03d}.wav"
        soundfile.write(path, noise(15, number), SAMPLE_RATE)
        lines.append(f"{path.stem} {path}\n")
    (directory / "wav.scp").write_text("".join(lines), encoding="utf-8")


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_extraction(directory: Path, student: str, rounds: int) -> dict[str, object]:
    """Seconds of extraction and of the forward computation alone, in turns; bytes written; peak memory."""
    from tqdm import tqdm

    from distill.audio import read_audio, read_wav_scp
    from distill.checkpoints.load import load_network
    from distill.configuration import layer_map
    from distill.data.batches import by_length
    from distill.models.teacher import Teacher
    from distill.targets import store
    from distill.targets.compute import extract_shard
    from distill.targets.wanted import Wanted

    audio = read_wav_scp(directory / "wav.scp")
    teacher = load_network(directory / "teacher").network
    student_layers = student_conf(student)["layers"]
    assert isinstance(teacher, Teacher)
    layers = sorted(set(layer_map(student_layers, teacher.config.num_hidden_layers)))
    speech = {utterance: read_audio(path, SAMPLE_RATE) for utterance, path in audio.items()}
    padded = []
    for batch in by_length({u: len(x) for u, x in speech.items()}, 60 * SAMPLE_RATE):
        padded.append((torch.from_numpy(np.stack([speech[u] for u in batch])), [len(speech[u]) for u in batch]))

    @torch.no_grad()
    def bare() -> None:
        for x, lengths in padded:
            teacher(x, torch.tensor(lengths))

    def extract() -> None:
        shard, checksums = directory / "targets/data/0001", dict.fromkeys(audio, "0" * 16)
        with store.TargetWriter(shard, "float32", {}, checksums) as writer, tqdm(disable=True) as bar:
            extract_shard(teacher, audio, Wanted(layers, 20), None, 60, writer, bar)

    bare()
    seconds: dict[str, list[float]] = {"bare": [], "extract": []}
    for _ in range(rounds):
        seconds["bare"].append(timed(bare))
        seconds["extract"].append(timed(extract))
    written = sum(file.stat().st_size for file in (directory / "targets").glob("data/*.ark"))
    parameters = sum(p.numel() for p in teacher.parameters())
    audio_s = sum(len(x) for x in speech.values()) / SAMPLE_RATE
    return {
        **seconds,
        "layers": layers,
        "bytes": written,
        "audio_s": audio_s,
        "parameters": parameters,
        "peak_mb": peak_mb(),
    }


def measure_step(directory: Path, student: str, teacher: str, rounds: int) -> dict[str, object]:
    """Seconds of a training step of 60 s of audio; ``teacher`` is none, stored or online."""
    from distill.audio import read_audio, read_wav_scp
    from distill.configuration import DistillConf
    from distill.lfmmi import DenominatorGraph
    from distill.models.student import Student
    from distill.targets.store import StoredStream, StoredTargets, hidden_stream
    from distill.training.distill_model import DistillModel
    from distill.training.teacher_targets import StoredFormat

    audio = list(read_wav_scp(directory / "wav.scp").items())[:4]
    speech = torch.from_numpy(np.stack([read_audio(path, SAMPLE_RATE) for _, path in audio]))
    rng = np.random.default_rng(0)
    text = torch.from_numpy(rng.integers(3, len(TOKENS) - 1, (len(audio), 200)))
    lines = [list(map(int, row)) for row in rng.integers(3, len(TOKENS) - 1, (50, 40))]
    graph = directory / "den.npz"
    DenominatorGraph.from_text(lines, order=2, vocab_size=len(TOKENS)).save(graph)
    torch.manual_seed(0)
    settings = {"target": "none", "weight_ctc": 1.0} if teacher == "none" else {"target": "posterior"}
    teacher_dir = None if teacher == "none" else str(directory / "teacher")
    model = DistillModel(
        Student(len(TOKENS), **student_conf(student)),
        TOKENS,
        DistillConf(graph=str(graph), **settings),
        teacher_dir,
        StoredFormat(20) if teacher == "stored" else None,
    )
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    streams: dict[str, torch.Tensor] = {}
    if teacher == "stored":
        stored = StoredTargets(directory / "targets")
        layers = model.teachers[0].layer_map
        for name in ["logits", *(hidden_stream(layer) for layer in sorted(set(layers)))]:
            matrices = StoredStream(stored, name)
            x = torch.from_numpy(np.stack([matrices[utterance] for utterance, _ in audio]))
            streams |= {f"teacher_{name}": x, f"teacher_{name}_lengths": torch.full((len(x),), x.shape[1])}

    def step() -> None:
        lengths = torch.full((len(speech),), speech.shape[1])
        loss, _, _ = model(speech, lengths, text, torch.full((len(text),), text.shape[1]), **streams)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    step()
    return {
        "seconds": [timed(step) for _ in range(rounds)],
        "audio_s": speech.numel() / SAMPLE_RATE,
        "peak_mb": peak_mb(),
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--teacher", choices=tuple(TEACHERS), default="large", help="(default: large)")
    parser.add_argument("--student", default="s3", help="a name in conf/students (default: s3)")
    parser.add_argument("--seconds", type=int, default=60, help="of audio to extract (default: 60)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; medians are shown (default: 3)")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)  # one measurement, in a directory that is prepared
    args = parser.parse_args()
    if args.part:
        part, directory = args.part[0], Path(args.part[1])
        if part == "prepare":
            make_teacher(args.teacher, directory)
        elif part == "extract":
            print(json.dumps(measure_extraction(directory, args.student, args.rounds)))
        else:
            print(json.dumps(measure_step(directory, args.student, part, args.rounds)))
        return
    with tempfile.TemporaryDirectory() as temporary:

        def run(part: str) -> str:
            command = [
                sys.executable,
                "-m",
                "distill.bench.targets",
                "--teacher",
                args.teacher,
                "--student",
                args.student,
            ]
            command += ["--rounds", str(args.rounds), "--part", part, temporary]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        make_audio(Path(temporary), args.seconds)
        run("prepare")
        report = {part: json.loads(run(part)) for part in ("extract", "none", "stored", "online")}
    extract = report["extract"]
    bare, whole = statistics.median(extract["bare"]), statistics.median(extract["extract"])
    print(
        f"{args.teacher}, {extract['parameters'] / 1e6:.0f} M parameters, {os.cpu_count()} cores: "
        f"{len(extract['layers'])} layers and logits of {extract['audio_s']:.0f} s of audio in {whole:.1f} s, "
        f"{whole / bare:.3f} times the forward computation alone; "
        f"{extract['bytes'] * 3600 / extract['audio_s'] / 1e9:.2f} GB an hour as float32; "
        f"peak memory {extract['peak_mb'] / 1000:.1f} GB"
    )
    plain = statistics.median(report["none"]["seconds"])
    for part in ("none", "stored", "online"):
        seconds = statistics.median(report[part]["seconds"])
        print(
            f"{args.student}, a step of {report[part]['audio_s']:.0f} s of audio, teacher {part}: {seconds:.1f} s "
            f"({seconds / plain:.2f} times a CTC step without a teacher); "
            f"peak memory {report[part]['peak_mb'] / 1000:.1f} GB"
        )
    write_json(args.output, report)


if __name__ == "__main__":
    main()
