"""Speed on a GPU: LF-MMI, training steps, extraction, recognition, streams. Writes a page with the card's name.

    make bench-gpu
    python -m distill.bench.gpu --device cpu --tiny        # sizes of a test, to try it without a GPU

Networks have their full size and random weights, audio is noise: neither changes what is computed. A measurement that
fails is named on the page, and the others go on. The page is written anew after each, with the figures as JSON beside.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from distill.audio import SAMPLE_RATE
from distill.bench.device import Device, Parts
from distill.bench.parts import LAYER_NORM, ROOT, TEACHERS, TOKENS, noise, student_conf
from distill.checkpoints.device import batch_seconds_on, inference
from distill.checkpoints.load import LoadedNetwork
from distill.configuration import ChunkConf, DistillConf, student_frame_ms, with_student
from distill.decode.settings import DecodeConf
from distill.errors import cli
from distill.files import atomic_write
from distill.lfmmi import DenominatorGraph, LFMMILoss
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.recognition.decode import BatchConf, Setting, SetToDecode, decode_set
from distill.recognition.hypotheses import HypothesisFile
from distill.streaming import Recognizer
from distill.targets.compute import extract_shard
from distill.targets.store import hidden_stream
from distill.targets.wanted import Wanted
from distill.training.distill_model import DistillModel
from distill.training.loss_terms import pad_tokens
from distill.training.teacher_targets import StoredFormat

Rows = list[dict[str, Any]]
STREAM = ChunkConf(chunk_ms=480, hop=0.5, left_ms=6000)  # of a session; a chunk of 480 ms every 240 ms


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        batch, frames: of the LF-MMI.
        vocabularies: numbers of tokens with blank.
        teacher: wav2vec 2.0's configuration.
        utterance_s: seconds of each utterance.
        batch_s: seconds of audio in a training batch.
        inference_s: seconds of audio that are extracted from and recognised.
        sessions: numbers of concurrent streams.
        rounds: chunks of each stream that are not timed, so that its history is full.
    """

    batch: int = 8
    frames: int = 750
    vocabularies: tuple[int, ...] = (30, 100, 500, 5000)
    teacher: dict[str, Any] | None = None
    utterance_s: float = 15.0
    batch_s: tuple[int, ...] = (300, 1200)
    inference_s: int = 3000
    sessions: tuple[int, ...] = (1, 32, 256)
    rounds: int = 26
    tiny: bool = False

    def teacher_conf(self) -> dict[str, Any]:
        return self.teacher or {**TEACHERS["large"], **LAYER_NORM}

    def student_conf(self, name: str) -> dict[str, Any]:
        """network_conf of a student; the tiny ones keep their front end's kind."""
        conf = student_conf(name)
        if not self.tiny:
            return conf
        channels: Any = 16 if conf["front_end"] == "fbank" else [16] * 7
        return {**conf, "front_end_conf": {"channels": channels}, "width": 16, "layers": 2, "heads": 2, "ffn": 16}


TINY_TEACHER = {
    **LAYER_NORM,
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    **{"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
TINY = Sizes(2, 40, (30, 200), TINY_TEACHER, 1.0, (4,), 4, (1, 3), 2, True)


def audio(seconds: float, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, N) noise and (B,) samples."""
    generator = torch.Generator(device).manual_seed(0)
    samples = int(seconds * SAMPLE_RATE)
    speech = 0.05 * torch.randn(count, samples, generator=generator, device=device)
    return speech, torch.full((count,), samples, device=device)


def random_tokens(vocab_size: int, count: int, length: int) -> list[list[int]]:
    """Token ids of falling frequency (Zipf's), without repetitions in a row."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, vocab_size)
    lines = rng.choice(np.arange(1, vocab_size), (count, 2 * length), p=weights / weights.sum()).tolist()
    return [[k for n, k in enumerate(line) if n == 0 or k != line[n - 1]][:length] for line in lines]


def lfmmi(device: Device, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Forward and backward of the LF-MMI with bigrams of random text, beside torch's ctc_loss."""
    for vocab_size in sizes.vocabularies:
        graph = DenominatorGraph.from_text(random_tokens(vocab_size, 4000, 20), 2, vocab_size)
        criterion = LFMMILoss(graph, reduction="sum")
        generator = torch.Generator(device.device).manual_seed(0)
        logits = torch.randn(sizes.batch, sizes.frames, vocab_size, generator=generator, device=device.device)
        log_probs = logits.log_softmax(-1)
        lengths = torch.full((sizes.batch,), sizes.frames, device=device.device)
        padded = pad_tokens(random_tokens(vocab_size, sizes.batch, sizes.frames // 10))
        tokens, token_lengths = (x.to(device.device) for x in padded)

        def gradient(loss: Callable[[Tensor], Tensor], log_probs: Tensor = log_probs) -> Callable[[], Tensor]:
            def run() -> Tensor:
                x = log_probs.detach().requires_grad_()
                return torch.autograd.grad(loss(x), x)[0]

            return run

        def whole(
            x: Tensor, criterion: LFMMILoss = criterion, batch: tuple = (lengths, tokens, token_lengths)
        ) -> Tensor:
            return criterion(x, *batch)

        def denominator(x: Tensor, graph: DenominatorGraph = graph, lengths: Tensor = lengths) -> Tensor:
            return graph.score(x, lengths).sum()

        def ctc(x: Tensor, tokens: Tensor = tokens, counts: tuple[Tensor, Tensor] = (lengths, token_lengths)) -> Tensor:
            return torch.nn.functional.ctc_loss(x.transpose(0, 1), tokens.clamp(min=0), *counts, reduction="sum")

        row: dict[str, Any] = {"V": vocab_size, "listed arcs": len(graph.automaton.arc_node)}
        device.reset_peak()
        row["loss_s"] = device.seconds(gradient(whole))
        row["peak_gib"] = device.peak_gib()
        row["denominator_s"] = device.seconds(gradient(denominator))
        row["ctc_s"] = device.seconds(gradient(ctc))
        counts = device.counts(gradient(whole))
        row |= {"kernels": counts.kernels, "kernels_a_frame": counts.kernels / sizes.frames, "waits": counts.waits}
        exact = graph.score(log_probs.double(), lengths)
        row["error"] = float((graph.score(log_probs, lengths) - exact).abs().max())
        yield row


def write_teacher(folder: Path, sizes: Sizes) -> Path:
    """The directory of a teacher with random weights, as a training leaves it."""
    torch.manual_seed(0)
    network = Teacher(len(TOKENS), sizes.teacher_conf())
    folder.mkdir()
    config = {"network": "teacher", "network_conf": {"config": sizes.teacher_conf()}, "token_list": TOKENS}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "token_type": "word"}))
    torch.save({f"network.{key}": value for key, value in network.state_dict().items()}, folder / "model.pth")
    return folder


def training_model(name: str, sizes: Sizes, teacher: Path | None, stored: bool, graph: Path) -> DistillModel:
    """A student as conf/train_student_full.yaml trains it; without a teacher with CTC alone."""
    shipped = yaml.safe_load((ROOT / "conf/train_student_full.yaml").read_text())
    conf = DistillConf(**shipped["distill_conf"], graph=str(graph))
    if teacher is None:
        conf = DistillConf(target="none", weight_ctc=1.0)
    network_conf = with_student(shipped, {"network_conf": sizes.student_conf(name)})["network_conf"]
    torch.manual_seed(0)
    return DistillModel(
        Student(len(TOKENS), **network_conf),
        TOKENS,
        conf,
        teacher=None if teacher is None else str(teacher),
        stored=StoredFormat(student_frame_ms(network_conf)[1]) if stored else None,
    ).train()


def stored_targets(model: DistillModel, frames: int, batch: int, device: torch.device) -> dict[str, Tensor]:
    """Random outputs of the teacher as an extraction stores them: logits per 20 ms, layers per encoder frame."""
    source = model.teachers[0]
    hidden = frames * 20 // model.network.encoder_frame_ms
    streams = {"teacher_logits": torch.randn(batch, frames, len(TOKENS), device=device)}
    streams |= {
        f"teacher_{hidden_stream(layer)}": torch.randn(batch, hidden, source.width, device=device)
        for layer in set(source.layer_map)
    }
    return streams | {f"{name}_lengths": torch.full((batch,), x.shape[1], device=device) for name, x in streams.items()}


def training(device: Device, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Steps in bfloat16 autocast with AdamW: seconds of audio a second, memory, the share of each part."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = write_teacher(folder / "teacher", sizes)
        graph = folder / "den.npz"
        DenominatorGraph.from_text(random_tokens(len(TOKENS), 4000, 60), 2, len(TOKENS)).save(graph)
        for student, targets in (("s3", "online"), ("f", "online"), ("f", "stored"), ("f", "none")):
            of_teacher = None if targets == "none" else teacher
            model = training_model(student, sizes, of_teacher, targets == "stored", graph).to(device.device)
            for batch_s in sizes.batch_s:
                row = {"student": student.upper(), "targets": targets, "batch_s": batch_s}
                try:
                    yield row | training_step(device, sizes, model, batch_s)
                except torch.OutOfMemoryError:
                    yield row | {"error": "out of memory"}
            del model


def training_step(device: Device, sizes: Sizes, model: DistillModel, batch_s: int) -> dict[str, Any]:
    """Figures of one step of ``batch_s`` seconds of audio."""
    count = max(1, int(batch_s / sizes.utterance_s))
    speech, lengths = audio(sizes.utterance_s, count, device.device)
    padded = pad_tokens(random_tokens(len(TOKENS), count, int(10 * sizes.utterance_s)))
    text, text_lengths = (x.to(device.device) for x in padded)
    batch: dict[str, Any] = {"speech": speech, "speech_lengths": lengths, "text": text, "text_lengths": text_lengths}
    if model.teachers and model.teachers[0].stored:
        batch |= stored_targets(model, int(50 * sizes.utterance_s), count, device.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.on_gpu)
    parts = Parts(device)

    def step(parts: Parts | None = None) -> None:
        with torch.autocast(device.device.type, torch.bfloat16):
            loss, _, _ = model(**batch)
        if parts is not None:
            parts.begin("backward")
        optimiser.zero_grad()
        loss.sum().backward()
        if parts is not None:
            parts.end("backward")
            parts.begin("optimiser")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        if parts is not None:
            parts.end("optimiser")

    device.reset_peak()
    seconds = device.seconds(step)
    row: dict[str, Any] = {"step_s": seconds, "audio_a_second": count * sizes.utterance_s / seconds}
    row |= {"peak_gib": device.peak_gib()} | device.counts(step)._asdict()
    hooks = [*parts.watch(model.network, "student"), *parts.watch(model.criterion, "loss")]
    for source in model.teachers:
        source.targets = parts.timed(source.targets, "teacher")  # type: ignore[method-assign]
    with parts.part("whole"):
        step(parts)
    for hook in hooks:
        hook.remove()
    for source in model.teachers:
        del source.targets  # the method again
    whole = parts.seconds.pop("whole")
    row["shares"] = {name: seconds / whole for name, seconds in parts.seconds.items()}
    return row


def write_audio(folder: Path, sizes: Sizes) -> dict[str, str]:
    """Recordings of noise, ``inference_s`` seconds in all: path by utterance id."""
    import soundfile

    paths = {}
    for number in range(max(1, int(sizes.inference_s / sizes.utterance_s))):
        paths[f"utterance{number:04d}"] = str(folder / f"{number}.wav")
        soundfile.write(paths[f"utterance{number:04d}"], noise(sizes.utterance_s, number), SAMPLE_RATE)
    return paths


class NoWriter:
    """Takes what an extraction would store."""

    def write(self, utterance: str, streams: dict[str, np.ndarray]) -> None:
        pass


def extraction(device: Device, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The teacher's logits, and every other of its layers averaged to 40 ms, from files to arrays on the host."""
    torch.manual_seed(0)
    teacher = Teacher(len(TOKENS), sizes.teacher_conf()).to(device.device).eval()
    layers = list(range(2, len(teacher.encoder.encoder.layers) + 1, 2))
    with tempfile.TemporaryDirectory() as name, tqdm(disable=True) as progress:
        audio = write_audio(Path(name), sizes)
        seconds = batch_seconds_on(device.device, None)

        def run() -> None:
            extract_shard(teacher, audio, Wanted(layers, 40), None, seconds, NoWriter(), progress)

        row = {"layers": len(layers), "audio_a_second": sizes.inference_s / device.seconds(run)}
        yield row | device.counts(run)._asdict()


def recognition(device: Device, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Students on a data set as stage 12 recognises it, from files to a line of JSON for each utterance."""
    contexts: dict[str, list[int | None]] = {"full": [None], "480 ms": [480], "all": [160, 320, 480, 640, 960, None]}
    how = BatchConf(device.device.type)
    with tempfile.TemporaryDirectory() as name, tqdm(disable=True) as progress:
        folder = Path(name)
        audio = write_audio(folder, sizes)
        for student in ("s3", "s5", "f"):
            torch.manual_seed(0)
            network = Student(len(TOKENS), **sizes.student_conf(student)).to(device.device).eval()
            loaded = LoadedNetwork(network, TOKENS, {"token_type": "word", "chunk_conf": STREAM.__dict__})
            for context, lengths in contexts.items():
                settings = [Setting(loaded, DecodeConf(), length) for length in lengths]
                paths = (folder / f"{number}.jsonl" for number in itertools.count())

                def run(loaded: LoadedNetwork = loaded, settings: list = settings, paths: Iterator = paths) -> None:
                    with inference(loaded.network), ExitStack() as stack:
                        files = {setting: stack.enter_context(HypothesisFile(next(paths))) for setting in settings}
                        decode_set(SetToDecode(loaded, audio, folder, files, how), 0, progress)

                row: dict[str, Any] = {"network": student.upper(), "context": context}
                row["audio_a_second"] = sizes.inference_s / device.seconds(run)
                yield row | device.counts(run)._asdict()


def streams(device: Device, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Rounds of concurrent sessions: the next 240 ms of each, recognised in one batch."""
    config = {"token_list": TOKENS, "token_type": "word", "chunk_conf": STREAM.__dict__}
    for name in ("s5", "f"):
        torch.manual_seed(0)
        network = Student(len(TOKENS), **sizes.student_conf(name)).to(device.device).eval()
        for count in sizes.sessions:
            recognizer = Recognizer(network, TOKENS, config)
            streams = [recognizer.create_stream() for _ in range(count)]
            pieces = 0.05 * torch.randn(count, recognizer.step_ms * SAMPLE_RATE // 1000)

            def turn(recognizer: Recognizer = recognizer, streams: list = streams, pieces: Tensor = pieces) -> None:
                for stream, piece in zip(streams, pieces, strict=True):
                    stream.accept(piece)
                recognizer.decode(streams)

            for _ in range(sizes.rounds):
                turn()
            seconds = device.seconds(turn)
            row = {"network": name.upper(), "sessions": count, "round_s": seconds, "step_s": recognizer.step_ms / 1000}
            yield row | device.counts(turn)._asdict()


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 1 else f"{1000 * seconds:.0f}"


def gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


SECTIONS: dict[
    str, tuple[Callable[[Device, Sizes], Iterator[dict[str, Any]]], str, dict[str, Callable[[dict], str]]]
] = {
    "LF-MMI": (
        lfmmi,
        "Forward and backward in milliseconds, of transcripts of a token in ten frames; the denominator is a bigram.",
        {
            "V": lambda r: f"{r['V']:,}",
            "LF-MMI": lambda r: milliseconds(r["loss_s"]),
            "its denominator": lambda r: milliseconds(r["denominator_s"]),
            "ctc_loss": lambda r: milliseconds(r["ctc_s"]),
            "LF-MMI / ctc_loss": lambda r: f"{r['loss_s'] / r['ctc_s']:.1f}",
            "kernels": lambda r: f"{r['kernels']:,} ({r['kernels_a_frame']:.2f} a frame)",
            "waits": lambda r: str(r["waits"]),
            "GiB": lambda r: gib(r["peak_gib"]),
            "error (nats)": lambda r: f"{r['error']:.1g}",
        },
    ),
    "Training": (
        training,
        "A step in bfloat16 autocast with AdamW; S3's CNN is the teacher's and not trained. Targets: computed in the "
        "step by wav2vec 2.0 Large (online), read from storage (stored), or none (CTC alone).",
        {
            "student": lambda r: r["student"],
            "targets": lambda r: r["targets"],
            "batch (s)": lambda r: f"{r['batch_s']:,}",
            "audio a second (s)": lambda r: r["error"] if "error" in r else f"{r['audio_a_second']:,.0f}",
            "step (ms)": lambda r: "-" if "error" in r else milliseconds(r["step_s"]),
            "GiB": lambda r: "-" if "error" in r else gib(r["peak_gib"]),
            "kernels": lambda r: "-" if "error" in r else f"{r['kernels']:,}",
            "waits": lambda r: "-" if "error" in r else str(r["waits"]),
            "shares": lambda r: ", ".join(f"{name} {100 * share:.0f} %" for name, share in r.get("shares", {}).items()),
        },
    ),
    "Extraction": (
        extraction,
        "The teacher's logits and every other of its layers, averaged to 40 ms, of recordings on disk; kept in memory.",
        {
            "layers": lambda r: str(r["layers"]),
            "audio a second (s)": lambda r: f"{r['audio_a_second']:,.0f}",
            "kernels": lambda r: f"{r['kernels']:,}",
            "waits": lambda r: str(r["waits"]),
        },
    ),
    "Recognition": (
        recognition,
        "Recordings on disk with greedy decoding: in full context, in chunks of 480 ms, or at 160, 320, 480, 640 and "
        "960 ms and in full context at once.",
        {
            "student": lambda r: r["network"],
            "context": lambda r: r["context"],
            "audio a second (s)": lambda r: f"{r['audio_a_second']:,.0f}",
            "kernels": lambda r: f"{r['kernels']:,}",
            "waits": lambda r: str(r["waits"]),
        },
    ),
    "Streams": (
        streams,
        "Sessions with chunks of 480 ms that advance by 240 ms and 6 s of history, computed together. A round is the "
        "next 240 ms of each; its share of these is the load of the GPU.",
        {
            "student": lambda r: r["network"],
            "sessions": lambda r: str(r["sessions"]),
            "round (ms)": lambda r: milliseconds(r["round_s"]),
            "load": lambda r: f"{100 * r['round_s'] / r['step_s']:.1f} %",
            "kernels": lambda r: f"{r['kernels']:,}",
            "waits": lambda r: str(r["waits"]),
        },
    ),
}


def page(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Speed on a GPU",
        "",
        f"Measured on {report['date']} on {report['device']}, with torch {report['torch']}; written by "
        "`make bench-gpu`. Networks have random weights. A wait is a synchronisation of the host with the device.",
    ]
    for name, (_, explanation, columns) in SECTIONS.items():
        rows, failure = report["rows"].get(name, []), report["failures"].get(name)
        if not rows and failure is None:
            continue
        lines += ["", f"## {name}", "", explanation, ""]
        if rows:
            lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(show(row) for show in columns.values())} |" for row in rows]
        if failure is not None:
            lines += ["", f"Not measured to the end: {failure}"]
    return "\n".join(lines) + "\n"


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="(default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="networks and batches of a test")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--budget_s", type=float, default=1.0, help="seconds to repeat a measurement for (default: 1)")
    parser.add_argument("--output", type=Path, help="write the page here, and the figures beside it as .json")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("note: no CUDA device, so nothing was measured")
        return
    torch.set_float32_matmul_precision("high")  # tf32, as in training
    device, sizes = Device(args.device, 0.0 if args.tiny else args.budget_s), TINY if args.tiny else Sizes()
    report: dict[str, Any] = {"date": f"{datetime.date.today():%d %B %Y}", "device": device.name()}
    report |= {"torch": torch.__version__, "rows": {}, "failures": {}}
    for name in args.sections:
        measure, _, columns = SECTIONS[name]
        rows: Rows = report["rows"].setdefault(name, [])
        try:
            for row in measure(device, sizes):
                rows.append(row)
                print(f"{name}: " + ", ".join(f"{key} {show(row)}" for key, show in columns.items()), flush=True)
                write(args.output, report)
        except Exception as error:  # the others are worth having
            traceback.print_exc()
            report["failures"][name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        write(args.output, report)
        if device.on_gpu:
            torch.cuda.empty_cache()


def write(output: Path | None, report: dict[str, Any]) -> None:
    if output is not None:
        with atomic_write(output) as stream:
            stream.write(page(report))
        with atomic_write(output.with_suffix(".json")) as stream:
            json.dump(report, stream, indent=1)


if __name__ == "__main__":
    main()
