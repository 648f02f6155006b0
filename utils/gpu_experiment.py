"""A teacher, two students and their streaming versions on a few hours of speech, within minutes on one GPU.

    python utils/gpu_experiment.py --data data-*/corpus.zip --work exp --output results
    python utils/gpu_experiment.py --data data-*/corpus.zip --work exp --output results --device cpu --dry_run

All recordings (utils/gpu_data.py) are in the GPU's memory, as one corpus of characters; the sets are tested apart. The
teacher has wav2vec 2.0's architecture and is trained from scratch with CTC, masking and speed perturbation. Students F
and S5 are then trained as a recipe's stage 10 (conf/train_student_full.yaml) and 11 (conf/train_student_stream.yaml)
train them, with the teacher computed in every step; F also without a teacher. Each training has a number of seconds;
nothing is chosen on a test set: weights are the last ones, of a learning rate that falls to 0.

OUTPUT gets experiment.md, results.jsonl (a row per system, latency and test set) and curves.jsonl (losses), written as
they come. WORK/NAME has a network as trainings leave it, and NAME.float16 the same at half the size; both are what
`distill transcribe --model` reads. What is complete in WORK is not computed again, and a training that was cut off goes
on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gpu_data import Recordings, load
from torch import Tensor

from distill.bench.parts import LAYER_NORM, ROOT, student_conf
from distill.checkpoints.load import load_network
from distill.configuration import AugmentConf, ChunkConf, DistillConf, MaskConf, read_conf
from distill.decode.token_text import tokens_to_text
from distill.errors import UserError, cli
from distill.files import atomic_write
from distill.lfmmi import DenominatorGraph
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.recognition.networks import Chunk, chunk_of, student_outputs
from distill.scoring.counts import count_errors
from distill.scoring.significance import bootstrap
from distill.streaming import Recognizer
from distill.training.distill_model import DistillModel
from distill.training.loss_terms import greedy_tokens

RATE = 16000
SPEEDS = {0.9: (9, 10), 1.0: (1, 1), 1.1: (11, 10)}  # and the rates of a resampling that brings them about
LATENCIES: tuple[int | None, ...] = (160, 320, 480, 640, 960, None)
NETWORK = Student | Teacher
TEACHER: dict[str, Any] = {
    **LAYER_NORM,
    "conv_dim": student_conf("s5")["front_end_conf"]["channels"],  # so that S5 starts from the teacher's
    **{"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
    **{"num_conv_pos_embeddings": 64, "num_conv_pos_embedding_groups": 16, "hidden_dropout": 0.1},
    **{"activation_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.1, "attention_dropout": 0.0},
    **{"mask_time_prob": 0.1, "mask_time_length": 10, "mask_time_min_masks": 1},
    **{"mask_feature_prob": 0.05, "mask_feature_length": 16},
}
VALIDATIONS = 5  # of a training, each with a checkpoint
AUGMENT = AugmentConf(gain_db=6.0, noise_snr_db=(10.0, 40.0), prob=0.5)
MASK = MaskConf()


@dataclass(frozen=True)
class Training:
    """One training: what, for how long, and from what.

    Attributes:
        name: of its directory in WORK, and in the results.
        share: of the seconds for all trainings.
        lr: highest learning rate.
        batch_s: padded seconds of audio in a batch.
        student: in conf/students, or None for the teacher.
        init: the training whose weights it starts from.
        teacher: whether it has one.
        stream: whether it learns to stream.
    """

    name: str
    share: float
    lr: float
    batch_s: float
    student: str | None = None
    init: str | None = None
    teacher: bool = True
    stream: bool = False


TRAININGS = (
    Training("teacher", 190, 6e-4, 240, teacher=False),
    Training("student_f", 45, 1.5e-3, 300, "f"),
    Training("student_f_stream", 30, 7e-4, 300, "f", "student_f", stream=True),
    Training("student_s5", 45, 1e-3, 300, "s5"),
    Training("student_s5_stream", 30, 5e-4, 300, "s5", "student_s5", stream=True),
    Training("student_f_no_kd", 30, 1.5e-3, 300, "f", teacher=False),
)


def tiny(conf: dict[str, Any]) -> dict[str, Any]:
    """A student's or teacher's sizes for a dry run."""
    if "hidden_size" in conf:
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return {**conf, **small, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16}
    channels: Any = 16 if conf["front_end"] == "fbank" else [16] * 7
    return {**conf, "front_end_conf": {"channels": channels}, "width": 32, "layers": 2, "heads": 2, "ffn": 32}


class Bank:
    """Utterances in the memory of the device, and batches of them.

    Args:
        audio: (n,) int16 samples of each.
        texts: token ids of each.
        speeds: at which copies of the audio are kept; each epoch draws one for every utterance.
    """

    def __init__(
        self, audio: Sequence[np.ndarray], texts: Sequence[list[int]], device: torch.device, speeds: Sequence[float]
    ) -> None:
        from torchaudio.transforms import Resample

        self.texts, self.device, self.copies = texts, device, len(speeds)
        pieces: list[Tensor] = []
        for speed in speeds:
            resample = Resample(*SPEEDS[speed]).to(device)
            for samples in audio:
                x = torch.from_numpy(samples).to(device)
                if speed != 1.0:
                    x = resample(x.float()).round().clamp(-32768, 32767).to(torch.int16)
                pieces.append(x)
        self.lengths = torch.tensor([len(x) for x in pieces])
        self.samples = torch.cat(pieces)
        self.offsets = (self.lengths.cumsum(0) - self.lengths).to(device)
        self._device_lengths = self.lengths.to(device)

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """A batch as a training's forward takes it; row n + k len(self) is utterance n at the k-th speed."""
        chosen = torch.tensor(rows)
        longest = int(self.lengths[chosen].max())
        on_device = chosen.to(self.device)
        offsets, lengths = self.offsets[on_device], self._device_lengths[on_device]
        time = torch.arange(longest, device=self.device)
        places = (offsets[:, None] + time).clamp(max=len(self.samples) - 1)
        speech = torch.where(time < lengths[:, None], self.samples[places].float() / 32768, 0.0)
        texts = [self.texts[row % len(self)] for row in rows]
        text = torch.full((len(rows), max(map(len, texts))), -1)
        for line, tokens in zip(text, texts, strict=True):
            line[: len(tokens)] = torch.tensor(tokens)
        counts = torch.tensor([len(tokens) for tokens in texts])
        token_ids = {"text": text.to(self.device), "text_lengths": counts.to(self.device)}
        return {"speech": speech, "speech_lengths": lengths, **token_ids}

    def grouped(self, rows: Sequence[int], samples: float) -> list[list[int]]:
        """Rows by growing length, in batches of at most so many padded samples."""
        batches: list[list[int]] = []
        for row in sorted(rows, key=lambda row: int(self.lengths[row])):
            if batches and (len(batches[-1]) + 1) * int(self.lengths[row]) <= samples:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def epochs(self, samples: float, seed: int, first_sorted: bool) -> Iterator[list[int]]:
        """Batches without end; those of the first epoch by growing length, if asked for."""
        rng = random.Random(seed)
        epoch = 0
        while True:
            rows = [n + len(self) * rng.randrange(self.copies) for n in range(len(self))]
            batches = self.grouped(rows, samples)
            if epoch or not first_sorted:
                rng.shuffle(batches)
            yield from batches
            epoch += 1


class Corpus:
    """All sets: the training sets as one bank with speed perturbation, validation sets as one, each test set apart."""

    def __init__(self, sets: dict[str, Recordings], device: torch.device) -> None:
        chosen = {
            kind: {name: sets[name] for name in sorted(sets) if name.endswith(f"_{kind}")}
            for kind in ("train", "valid", "test")
        }
        if missing := [kind for kind in chosen if not chosen[kind]]:
            raise UserError(f"no {' and no '.join(missing)} set in these archives; give all that were packed")
        characters = sorted({c for r in chosen["train"].values() for text in r.texts for c in text} - {" "})
        self.tokens = ["<blank>", "<unk>", *characters, "<space>", "<sos/eos>"]
        self._ids = {token: number for number, token in enumerate(self.tokens)} | {" ": len(self.tokens) - 2}
        self.train = self._bank(chosen["train"], device, list(SPEEDS))
        self.valid = self._bank(chosen["valid"], device, [1.0])
        self.tests = chosen["test"]
        self.test_banks = {name: self._bank({name: r}, device, [1.0]) for name, r in self.tests.items()}
        self.hours = {kind: sum(r.seconds for r in chosen[kind].values()) / 3600 for kind in chosen}
        squares = sum(float(np.square(x, dtype=np.float64).sum()) for r in chosen["train"].values() for x in r.audio)
        self.level = math.sqrt(squares / (3600 * RATE * self.hours["train"])) / 32768

    def ids(self, text: str) -> list[int]:
        return [self._ids.get(c, 1) for c in text]

    def _bank(self, sets: dict[str, Recordings], device: torch.device, speeds: list[float]) -> Bank:
        texts = [self.ids(text) for r in sets.values() for text in r.texts]
        return Bank([x for r in sets.values() for x in r.audio], texts, device, speeds)


class Experiment:
    """The trainings and evaluations, in WORK and OUTPUT."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.started = time.monotonic()
        self.work, self.output, self.dry_run = args.work, args.output, args.dry_run
        self.device = torch.device(args.device)
        self.limit_s, self.trainings_s, self.evaluation_s = args.limit_s, args.trainings_s, args.evaluation_s
        self.work.mkdir(parents=True, exist_ok=True)
        self.output.mkdir(parents=True, exist_ok=True)
        sets = load(args.data, args.threads, 12 if self.dry_run else None)
        self.corpus = Corpus(sets, self.device)
        self.graph = self.work / "den.npz"
        size = len(self.corpus.tokens)
        DenominatorGraph.from_text(self.corpus.train.texts, 3, size).save(self.graph)
        hours = ", ".join(f"{kind} {hours:.2f} h" for kind, hours in self.corpus.hours.items())
        self.record({"corpus": hours, "tokens": size, "loaded_s": round(self.elapsed, 1)})

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def record(self, row: dict[str, Any], file: str = "curves.jsonl") -> None:
        """Print a row and append it to a file at once."""
        line = json.dumps(row)
        print(line if len(line) < 400 else line[:400] + " ...", flush=True)
        for folder in (self.output, self.work):
            with open(folder / file, "a") as stream:
                stream.write(line + "\n")

    def run(self) -> None:
        """Train and evaluate what is not there yet, and write the report after each."""
        self.report()
        for number, training in enumerate(TRAININGS):
            if not (self.work / training.name / "model.pth").is_file():
                left = sum(t.share for t in TRAININGS[number:] if not (self.work / t.name / "model.pth").is_file())
                waiting = len(TRAININGS) - number
                spare = self.limit_s - self.elapsed - self.evaluation_s * waiting
                seconds = min(self.trainings_s, spare) * training.share / left
                if seconds <= 0:
                    self.record({"training": training.name, "left_out": "no time is left"})
                    continue
                self.trainings_s -= seconds
                self.train(training, seconds)
            self.evaluate(training)
            self.report()

    def network_conf(self, training: Training) -> dict[str, Any]:
        if training.student is None:
            return {"config": tiny(TEACHER) if self.dry_run else TEACHER, "normalize": True}
        conf = student_conf(training.student)
        return {**(tiny(conf) if self.dry_run else conf), "dropout": 0.1}

    def build(self, training: Training) -> tuple[DistillModel, dict[str, Any]]:
        """The model of a training, and its configuration."""
        conf: dict[str, Any] = {"target": "none", "weight_ctc": 1.0}
        chunk: ChunkConf | None = None
        config: dict[str, Any] = {"network": "teacher" if training.student is None else "student"}
        if training.teacher:
            stage = "stream" if training.stream else "full"
            shipped = yaml.safe_load((ROOT / f"conf/train_student_{stage}.yaml").read_text())
            conf = {**shipped["distill_conf"], "graph": str(self.graph)}
            chunk = read_conf(ChunkConf, "chunk_conf", shipped.get("chunk_conf"))
            config["chunk_conf"] = shipped.get("chunk_conf")
        config |= {"network_conf": self.network_conf(training), "distill_conf": conf, "token_type": "char"}
        torch.manual_seed(1)
        vocab_size = len(self.corpus.tokens)
        network: NETWORK
        if training.student is None:
            network = Teacher(vocab_size, **config["network_conf"])
        elif training.init is not None:
            network = load_network(self.work / training.init).network
            network.dropout.p = config["network_conf"]["dropout"]
        else:
            network = Student(vocab_size, **config["network_conf"])
            if training.teacher:
                teacher = load_network(self.work / "teacher").network
                assert isinstance(teacher, Teacher)
                self.record(
                    {"training": training.name, "from_teacher": network.init_from_teacher(teacher, self.corpus.level)}
                )
        model = DistillModel(
            network,
            self.corpus.tokens,
            DistillConf(**conf),
            teacher=str(self.work / "teacher") if training.teacher else None,
            chunk=chunk,
            augmentation=AUGMENT,
            masking=None if training.student is None else MASK,
        )
        return model.to(self.device), {**config, "token_list": self.corpus.tokens}

    def train(self, training: Training, seconds: float) -> None:
        """Train for so many seconds, in bfloat16 and tf32, and save the network."""
        torch.set_float32_matmul_precision("high")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model, config = self.build(training)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            parameters, lr=training.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=self.device.type == "cuda"
        )
        directory = self.work / training.name
        directory.mkdir(exist_ok=True)
        checkpoint, step, before = directory / "checkpoint.pth", 0, 0.0
        if checkpoint.is_file():
            saved = torch.load(checkpoint, map_location=self.device, weights_only=True)
            model.load_state_dict(saved["model"])
            optimiser.load_state_dict(saved["optimiser"])
            step, before = saved["step"], saved["seconds"]
            seconds += before  # those of its first part are spent, and not of this run
        started = time.monotonic()
        samples = RATE * (20 if self.dry_run else training.batch_s)
        audio_s, trained_s, validations = 0.0, 0.0, int(VALIDATIONS * before / seconds)
        for rows in self.corpus.train.epochs(samples, seed=step, first_sorted=training.student is None and step == 0):
            spent = before + time.monotonic() - started
            progress = min(1.0, spent / seconds)
            if progress >= (validations + 1) / VALIDATIONS or (progress == 1.0 and step):
                validations += 1
                row = {"training": training.name, "step": step, "seconds": round(spent, 1), **self.validate(model)}
                self.record(row)
                if progress == 1.0:
                    break
                with atomic_write(checkpoint, "wb") as stream:
                    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                    torch.save({**state, "step": step, "seconds": spent}, stream)
            for group in optimiser.param_groups:
                group["lr"] = training.lr * rise_and_fall(progress)
            if isinstance(model.network, Teacher):
                # Half of the batches have none: trained with masks alone, a network from scratch comes to need them.
                model.network.config.mask_time_prob = config["network_conf"]["config"]["mask_time_prob"] * (step % 2)
            began = time.monotonic()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                batch = self.corpus.train.batch(rows)
                loss, stats, _ = model(**batch)
            optimiser.zero_grad()
            loss.sum().backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            if torch.isfinite(norm):
                optimiser.step()
            step += 1
            audio_s += float(self.corpus.train.lengths[torch.tensor(rows)].sum()) / RATE
            trained_s += time.monotonic() - began
            if step % 50 == 1:
                terms = {name: round(float(term), 4) for name, term in stats.items()}
                shown = {"training": training.name, "step": step, "seconds": round(spent, 1)}
                shown |= {"audio_a_second": round(audio_s / trained_s), "gradient": round(float(norm), 3)}
                self.record({**shown, **terms})
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        size = sum(p.numel() for p in model.network.parameters())
        summary = {"steps": step, "audio_h": round(audio_s / 3600, 2), "audio_a_second": round(audio_s / trained_s)}
        self.record(
            {"finished": training.name, "params": size, **summary, "peak_gib": peak, "not_finite": model.not_finite}
        )
        self.save(model.network, config, directory)
        checkpoint.unlink(missing_ok=True)

    @torch.no_grad()
    def validate(self, model: DistillModel) -> dict[str, float]:
        """Means of the terms over the utterances of the validation sets."""
        model.eval()
        sums: dict[str, float] = {}
        bank = self.corpus.valid
        for rows in bank.grouped(range(len(bank)), RATE * 600):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                _, stats, _ = model(**bank.batch(rows))
            for name, term in stats.items():
                sums[name] = sums.get(name, 0.0) + float(term) * len(rows)
        model.train()
        return {f"valid_{name}": round(value / len(bank), 4) for name, value in sums.items()}

    def save(self, network: NETWORK, config: dict[str, Any], directory: Path) -> None:
        """Write a network as trainings leave it, and beside it once more in float16."""
        half = directory.with_name(f"{directory.name}.float16")
        half.mkdir(exist_ok=True)
        for folder, dtype in ((half, torch.float16), (directory, torch.float32)):
            weights = {f"network.{key}": value.to("cpu", dtype) for key, value in network.state_dict().items()}
            (folder / "config.yaml").write_text(yaml.safe_dump({**config, "distill_conf": None}))
            with atomic_write(folder / "model.pth", "wb") as stream:
                torch.save(weights, stream)

    def results(self) -> list[dict[str, Any]]:
        path = self.work / "results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def evaluate(self, training: Training) -> None:
        """Recognise the test sets at every latency, in float32, and write a row for each."""
        torch.set_float32_matmul_precision("highest")
        done = {(row["system"], row["test_set"], row["latency_ms"]) for row in self.results()}
        model = load_network(self.work / training.name, self.device)
        network, _, config = model
        for chunk_ms in LATENCIES if training.stream else (None,):
            chunk = chunk_of(model, chunk_ms)
            for name, recordings in self.corpus.tests.items():
                if (training.name, name, chunk_ms) in done:
                    continue
                started = time.monotonic()
                texts = self.recognise(network, self.corpus.test_banks[name], chunk)
                counts = count_errors([t.split() for t in recordings.texts], [t.split() for t in texts])
                words, sub, dele, ins = (sum(column) for column in zip(*counts, strict=True))
                row: dict[str, Any] = {"system": training.name, "test_set": name, "latency_ms": chunk_ms}
                row |= {"decoder": "greedy", "wer": 100 * (sub + dele + ins) / words, "sub": sub, "del": dele}
                row |= {"ins": ins, "words": words, "utterances": len(texts)}
                row["params"] = sum(p.numel() for p in network.parameters())
                row["seconds"] = round(time.monotonic() - started, 2)
                if chunk_ms == 480:
                    row["streamed_identical"] = self.streamed_identical(network, config, recordings, texts)
                row["examples"] = list(zip(recordings.texts[:3], texts[:3], strict=True))
                self.record({**row, "errors": [[c.words, c.errors] for c in counts]}, "results.jsonl")

    @torch.no_grad()
    def recognise(self, network: NETWORK, bank: Bank, chunk: Chunk) -> list[str]:
        """Greedy texts in the order of the bank; with a chunk they are those of a stream."""
        texts = [""] * len(bank)
        for rows in bank.grouped(range(len(bank)), RATE * 600):
            batch = bank.batch(rows)
            speech, lengths = batch["speech"], batch["speech_lengths"]
            if isinstance(network, Teacher):
                output = network(speech, lengths)
            else:
                output = student_outputs(network, speech, lengths, [chunk])[chunk]
            for row, tokens in zip(rows, greedy_tokens(output.logits, output.lengths), strict=True):
                texts[row] = tokens_to_text([self.corpus.tokens[k] for k in tokens], "char")
        return texts

    def streamed_identical(
        self, network: NETWORK, config: dict[str, Any], recordings: Recordings, texts: list[str], count: int = 4
    ) -> str:
        """Of the first utterances, how many a stream at 480 ms recognises as the batch did."""
        recognizer = Recognizer(network, self.corpus.tokens, config, 480)
        identical = 0
        for audio, text in list(zip(recordings.audio, texts, strict=True))[:count]:
            identical += recognizer.recognize(audio.astype(np.float32) / 32768)["text"] == text
        return f"{identical}/{min(count, len(texts))}"

    def report(self) -> None:
        """Write the tables of error rates with 95 % intervals, and of the trainings."""
        rows, lines = self.results(), ["## Experiment", ""]
        curves = self.work / "curves.jsonl"
        curve_rows = [json.loads(line) for line in curves.read_text().splitlines()]
        lines += [f"Corpus: {row['corpus']}; {row['tokens']} tokens." for row in curve_rows if "corpus" in row][-1:]
        for name in self.corpus.tests:
            of_set = [row for row in rows if row["test_set"] == name]
            if not of_set:
                continue
            lines += [
                "",
                f"### {name}",
                "",
                "| system | latency (ms) | WER, 95 % interval | S / D / I | beside the teacher |",
            ]
            lines += ["|---|---|---|---|---|"]
            first = next((n for n, row in enumerate(of_set) if row["system"] == "teacher"), None)
            errors = [np.array(row["errors"]) for row in of_set]
            intervals = bootstrap(errors, [None if n == first else first for n in range(len(of_set))])
            for row, interval in zip(of_set, intervals, strict=True):
                relative = interval.get("relative_loss")
                columns = (
                    row["system"],
                    "full" if row["latency_ms"] is None else str(row["latency_ms"]),
                    f"{row['wer']:.1f} ({interval['low']:.1f} to {interval['high']:.1f})",
                    f"{row['sub']} / {row['del']} / {row['ins']} of {row['words']}",
                    "-" if relative is None else f"{relative:+.1f} %",
                )
                lines.append(f"| {' | '.join(columns)} |")
        finished = [row for row in curve_rows if "finished" in row]
        if finished:
            lines += [
                "",
                "### Trainings",
                "",
                "| training | parameters | steps | audio (h) | audio a second (s) | GiB |",
            ]
            lines += ["|---|---|---|---|---|---|"]
            for row in finished:
                gib = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
                lines.append(
                    f"| {row['finished']} | {row['params'] / 1e6:.1f} M | {row['steps']:,} | {row['audio_h']:.1f} "
                    f"| {row['audio_a_second']:,} | {gib} |"
                )
        identical = [
            f"{row['system']} {row['streamed_identical']} ({row['test_set']})"
            for row in rows
            if "streamed_identical" in row
        ]
        if identical:
            lines += ["", f"Recognised identically by a session at 480 ms and in a batch: {', '.join(identical)}."]
        with atomic_write(self.output / "experiment.md") as stream:
            stream.write("\n".join(lines) + "\n")


def rise_and_fall(progress: float) -> float:
    """Share of the highest learning rate: up over the first 8 %, the same to 40 %, down to 1 % at the end."""
    if progress < 0.4:
        return min(1.0, progress / 0.08 + 0.01)
    return max(0.01, (1 - progress) / 0.6)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="archives of utils/gpu_data.py")
    parser.add_argument("--work", type=Path, required=True, help="directory of networks and checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="directory of report and curves")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="(default: cuda)")
    parser.add_argument("--threads", type=int, default=16, help="that decode audio (default: 16)")
    parser.add_argument("--limit_s", type=float, default=480, help="seconds that all may take (default: 480)")
    parser.add_argument("--trainings_s", type=float, default=370, help="of these for trainings (default: 370)")
    parser.add_argument("--evaluation_s", type=float, default=8, help="kept for each evaluation (default: 8)")
    parser.add_argument(
        "--dry_run", action="store_true", help="tiny networks, 12 utterances of each set, no time limit"
    )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device; for a trial give --device cpu --dry_run")
    if args.dry_run:
        args.limit_s, args.trainings_s, args.evaluation_s = 1e9, 3.0, 0.0
    torch.backends.cudnn.allow_tf32 = False  # of evaluations; trainings compute convolutions in bfloat16
    Experiment(args).run()


if __name__ == "__main__":
    main()
