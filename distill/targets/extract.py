"""Store what a teacher hands over - hidden layers, logits, posteriors, n best - so that students need not run it again.

    extract="python -m distill.bin.extract_targets --teacher exp/teacher --wav_scp dump/raw/train/wav.scp \\
        --student_config conf/train_student_full.yaml --output dump/targets/train --num_jobs 4"
    $extract --plan               # how much space and time it takes; refuses if the disk has less space
    $extract --job 1              # ... to 4, in parallel; shards that are complete are not made again
    $extract --merge              # sorted scps and manifest.json
    $extract --check              # later: are they still of this teacher, this audio, these layers, and all there?
    $extract --verify             # the same, and has the disk kept every byte?

What --check or --verify names is then made again by --job and --merge, shard by shard.

Without --plan, --job or --merge all three are done in one process.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.errors import UserError, cli
from distill.files import sha256
from distill.targets import store

SAMPLE_RATE = 16000
MEASURED_MIN = 10.0  # minutes of audio: for less --plan does not tell the time, as finding out would take as long
# Read when torch is loaded. Threads that spin while they wait for each other take the cores from the data loader and
# from any other job: on a busy machine of two cores a step took five times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


class Wanted(NamedTuple):
    """What to store.

    Attributes:
        layers: of the teacher.
        hidden_ms: milliseconds between the frames of these layers; logits are always stored at the teacher's rate.
        top_k: tokens of a frame of the graph's posterior, None: none.
        nbest: token sequences of an utterance, 1: none, as the best one follows from the logits.
    """

    layers: list[int]
    hidden_ms: int
    top_k: int | None = None
    nbest: int = 1


def wanted_by(config_path: Path, teacher_layers: int) -> Wanted:
    """What a student's training configuration asks for."""
    import yaml

    from distill.configuration import DistillConf, encoder_frame_ms_of, layer_map, read_conf

    if not config_path.is_file():
        raise UserError(f"{config_path}: not found; give the student's training configuration")
    config = yaml.safe_load(config_path.read_text(encoding="utf-8")) or {}
    conf = read_conf(DistillConf, "distill_conf", config.get("distill_conf") or {})
    network_conf = config.get("network_conf") or {}
    if conf is None or network_conf.get("layers") is None:
        raise UserError(f"{config_path}: network_conf.layers is missing; it says which layers to store")
    layers = sorted(set(conf.layer_map or layer_map(network_conf["layers"], teacher_layers))) if conf.alpha < 1 else []
    return Wanted(layers, encoder_frame_ms_of(network_conf), conf.posterior_top_k, conf.nbest)


def wanted(layers: str, student_configs: Sequence[Path], teacher_layers: int, teacher_ms: int) -> Wanted:
    """What all the students ask for; without any, every frame of every layer. ``layers``: auto, or numbers instead."""
    each = [wanted_by(path, teacher_layers) for path in student_configs]
    rates = {one.hidden_ms for one in each}
    top = [one.top_k for one in each if one.top_k is not None]
    if len(set(top)) > 1:
        raise UserError(f"{student_configs[1]}: posterior_top_k is not {student_configs[0]}'s; give both the same")
    if layers == "auto":
        chosen = sorted({layer for one in each for layer in one.layers}) if each else range(1, teacher_layers + 1)
    else:
        try:
            chosen = sorted({int(layer) for layer in layers.replace(",", " ").split()})
        except ValueError as error:
            raise UserError(f"--layers {layers}: must be auto or numbers such as 2,4,6") from error
        if chosen and not 1 <= chosen[0] <= chosen[-1] <= teacher_layers:
            raise UserError(f"--layers {layers}: the teacher has layers 1 to {teacher_layers}")
    several = {one.nbest for one in each if one.nbest > 1}
    if len(several) > 1:
        raise UserError(f"{student_configs[1]}: nbest is not {student_configs[0]}'s; give both the same")
    hidden_ms = rates.pop() if len(rates) == 1 else teacher_ms
    return Wanted(list(chosen), hidden_ms, top[0] if top else None, several.pop() if several else 1)


def sample_counts(wav_scp: Path, audio: dict[str, str]) -> list[int]:
    """Samples of every utterance, from utt2num_samples beside wav.scp or else from the audio files' headers."""
    counts = wav_scp.parent / "utt2num_samples"
    if counts.is_file():
        known = store.read_two_columns(counts)
        if audio.keys() <= known.keys():
            return [int(known[utterance]) for utterance in audio]
    import soundfile

    from distill.audio import read_audio

    result = []
    for path in audio.values():
        try:
            result.append(soundfile.info(path).frames)
        except (RuntimeError, OSError):
            result.append(len(read_audio(path, SAMPLE_RATE)))
    return result


def batches(lengths: dict[str, int], samples: int) -> list[list[str]]:
    """Utterances of a shard by falling length, in batches of at most ``samples`` padded samples."""
    made: list[list[str]] = []
    for utterance in sorted(lengths, key=lambda u: -lengths[u]):
        if made and lengths[made[-1][0]] * (len(made[-1]) + 1) <= samples:
            made[-1].append(utterance)
        else:
            made.append([utterance])
    return made


def extract_shard(
    teacher: Any,
    audio: dict[str, str],
    what: Wanted,
    graph: Any,
    device: str,
    batch_seconds: float,
    writer: Any,
    progress: Any,
) -> None:
    """Run the teacher over a shard's utterances and write every stream.

    Hidden layers are averaged to frames of ``what.hidden_ms``; everything else is at the teacher's frame rate.
    ``graph`` is the denominator graph of posteriors and n best, None if they are not wanted.
    """
    import numpy as np
    import torch

    from distill.audio import read_audio
    from distill.lfmmi.loss import top_occupancies
    from distill.targets.frames import average_frames
    from distill.targets.nbest import best_sequences, pack

    speech = {utterance: read_audio(path, SAMPLE_RATE) for utterance, path in audio.items()}
    for batch in batches({u: len(x) for u, x in speech.items()}, int(batch_seconds * SAMPLE_RATE)):
        lengths = torch.tensor([len(speech[u]) for u in batch])
        padded = np.zeros((len(batch), int(lengths.max())), dtype=np.float32)
        for row, utterance in zip(padded, batch, strict=True):
            row[: len(speech[utterance])] = speech[utterance]
        with torch.no_grad():
            output = teacher(torch.from_numpy(padded).to(device), lengths.to(device))
            factor = what.hidden_ms // teacher.encoder_frame_ms
            streams = {"logits": (output.logits, output.lengths)}
            for layer in what.layers:
                hidden = average_frames(output.hidden[layer - 1], output.hidden_lengths, factor)
                streams[store.hidden_stream(layer)] = hidden
            log_probs = output.logits.float().log_softmax(-1)
            nbest = best_sequences(graph, log_probs, output.lengths, what.nbest) if what.nbest > 1 else None
            if what.top_k is not None:
                top = top_occupancies(graph, log_probs, output.lengths, what.top_k)
                streams["posterior_ids"], streams["posterior"] = ((x, output.lengths) for x in top)
        matrices = {name: x.float().cpu().numpy() for name, (x, _) in streams.items()}
        frames = {name: lengths.tolist() for name, (_, lengths) in streams.items()}
        for i, utterance in enumerate(batch):
            of_utterance = {name: x[i, : frames[name][i]] for name, x in matrices.items()}
            if nbest is not None:
                of_utterance["nbest"] = pack(*(x[i] for x in nbest))
            writer.write(utterance, of_utterance)
        progress.update(len(batch))


def real_time_factor(directory: Path, device: str, files: list[str], seconds: float = 4.0) -> float:
    """Seconds of computation that the teacher takes for a second of audio, from about ``seconds`` of these files."""
    import torch

    from distill.audio import read_audio
    from distill.checkpoints.load import load_network

    pieces: list[Any] = []
    for path in files:
        pieces.append(torch.from_numpy(read_audio(path, SAMPLE_RATE)))
        if sum(map(len, pieces)) >= seconds * SAMPLE_RATE:
            break
    speech = torch.cat(pieces)[None, : int(seconds * SAMPLE_RATE)].to(device)
    teacher = load_network(directory, device).network
    took = 0.0
    for _ in range(2):  # what only the first one needs does not count
        started = time.perf_counter()
        with torch.no_grad():
            teacher(speech, torch.tensor([speech.shape[1]], device=device)).logits.cpu()
        took = time.perf_counter() - started
    return took / (speech.shape[1] / SAMPLE_RATE)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="directory of the trained teacher")
    parser.add_argument("--wav_scp", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="such as dump/targets/train")
    parser.add_argument(
        "--student_config",
        type=Path,
        nargs="+",
        default=[],
        help="training configurations of the students: their layer maps say which layers to store, their front end at "
        "which frame rate, posterior_top_k and nbest what else",
    )
    parser.add_argument("--graph", type=Path, help="denominator graph (stage 6), for posterior_top_k and nbest")
    parser.add_argument("--layers", default="auto", help="auto, or numbers such as 2,4,6 (default: auto)")
    parser.add_argument("--dtype", choices=tuple(store.COMPRESSION), default="float32", help="(default: float32)")
    parser.add_argument("--batch_seconds", type=float, default=60, help="padded audio in a batch (default: 60)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--num_jobs", type=int, default=1)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--show_streams", action="store_true", help="only print what would be stored")
    part.add_argument(
        "--plan",
        action="store_true",
        help="only print the space and, for more than ten minutes of audio, the time it takes",
    )
    part.add_argument("--job", type=int, help="only do this job's shards, from 1 to --num_jobs")
    part.add_argument("--merge", action="store_true", help="only join what the jobs made")
    part.add_argument(
        "--check",
        action="store_true",
        help="see that every shard was made as these options say, from the audio as it is now, and that its files have "
        "their sizes; another shard is then made anew",
    )
    part.add_argument("--verify", action="store_true", help="the same, and read every byte")
    args = parser.parse_args(argv)
    if args.job is not None and not 1 <= args.job <= args.num_jobs:
        raise UserError(f"--job {args.job}: must be from 1 to --num_jobs {args.num_jobs}")

    from distill.audio import read_wav_scp
    from distill.checkpoints.load import load_network, model_checksum, network_shape, read_config

    shape = network_shape(args.teacher)
    what = wanted(args.layers, args.student_config, shape.layers, shape.encoder_frame_ms)
    vocab_size = len(read_config(args.teacher)["token_list"])
    dimensions = {store.hidden_stream(layer): shape.width for layer in what.layers}
    dimensions["logits"] = vocab_size
    graph_checksum = None
    if what.top_k is not None or what.nbest > 1:
        if args.graph is None or not args.graph.is_file():
            option = "nbest" if what.top_k is None else "posterior_top_k"
            raise UserError(f"--graph {args.graph or ''}: {option} needs the denominator graph; make it (stage 6)")
        graph_checksum = sha256(args.graph)
    if what.top_k is not None:
        dimensions |= dict.fromkeys(("posterior_ids", "posterior"), min(what.top_k, vocab_size))
    if what.nbest > 1:
        dimensions["nbest"] = what.nbest  # numbers for each frame: more than there will be
    if args.show_streams:
        print(*(f"{name}:{size}" for name, size in dimensions.items()), f"hidden layers every {what.hidden_ms} ms")
        return
    checksum = model_checksum(args.teacher)
    audio = read_wav_scp(args.wav_scp)
    checksums: dict[str, str] = {}
    data, manifest_path = args.output / "data", args.output / "manifest.json"
    cut = store.shards(audio)
    names = [f"{number:04d}" for number in range(1, len(cut) + 1)]
    everything = not (args.plan or args.job or args.merge or args.check or args.verify)

    def about(utterances: list[str]) -> dict[str, Any]:
        checksums.update((utterance, store.audio_checksum(audio[utterance])) for utterance in utterances)
        audio_list = store.audio_list_checksum({utterance: checksums[utterance] for utterance in utterances})
        made = {"teacher": checksum, "dtype": args.dtype, "layers": what.layers, "audio": audio_list}
        return {**made, "hidden_ms": what.hidden_ms, "top_k": what.top_k, "nbest": what.nbest, "graph": graph_checksum}

    def manifest() -> dict[str, Any]:  # once the checksums of all the audio are known
        return {
            "version": 2,
            "teacher": checksum,
            "layers": what.layers,
            "streams": dimensions,
            "frame_ms": shape.frame_ms,
            "hidden_ms": what.hidden_ms,
            "graph": graph_checksum,
            "dtype": args.dtype,
            "utterances": len(audio),
            "audio": store.audio_list_checksum(checksums),
        }

    if args.check or args.verify:
        from tqdm import tqdm

        problems = []
        for name, utterances in zip(tqdm(names, desc=args.output.name, unit="shard", delay=5), cut, strict=True):
            problem = store.find_damage(data / name, args.verify)
            if problem is None:
                expected = about(utterances)
                problem = store.find_change(data / name, expected, {u: checksums[u] for u in utterances})
            if problem is not None:
                problems.append(problem)
                (data / name / "done.json").unlink(missing_ok=True)
        if problems:
            manifest_path.unlink(missing_ok=True)
            more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
            raise UserError(f"{problems[0]}{more}; extract again (stage 8), the other shards are kept")
        if loose := store.find_loose_ends(args.output, names, manifest(), checksums):
            raise UserError(f"{loose}; extract again (stage 8), every shard is kept")
        return
    if args.plan or everything:
        samples = sample_counts(args.wav_scp, audio)
        milliseconds = [n * 1000 // SAMPLE_RATE for n in samples]

        def planned(dimensions: dict[str, int], dtype: str) -> int:
            rates = {n: what.hidden_ms if n.startswith("hidden_") else shape.frame_ms for n in dimensions}
            return store.planned_bytes(milliseconds, {n: (d, rates[n]) for n, d in dimensions.items()}, dtype)

        needed = planned(dimensions, args.dtype)
        there = sum(file.stat().st_size for file in data.glob("*/*.ark")) if data.is_dir() else 0
        every_other = {n: d for i, (n, d) in enumerate(dimensions.items()) if i % 2 or not n.startswith("hidden")}
        smaller = {f"--target_dtype {dtype}": planned(dimensions, dtype) for dtype in ("float16", "compressed")}
        smaller["every other layer as float16"] = planned(every_other, "float16")
        smaller["every other layer, compressed"] = planned(every_other, "compressed")
        free = store.check_space(args.output, max(0, needed - there), smaller)
        of_a_stream = {n: planned({n: d}, args.dtype) / 1e9 for n, d in dimensions.items()}
        hours = sum(samples) / SAMPLE_RATE / 3600
        print(
            f"{args.output}: {len(audio)} utterances, {hours:.2f} h, layers at {what.hidden_ms} ms, as {args.dtype}: "
            f"{needed / 1e9:.2f} GB, of which {there / 1e9:.2f} GB are there; {free / 1e9:.0f} GB are free"
        )
        print("  " + ", ".join(f"{name} {size:.3g} GB" for name, size in of_a_stream.items()))
        lacking = [
            utterances for name, utterances in zip(names, cut, strict=True) if not (data / name / "done.json").exists()
        ]
        share = sum(map(len, lacking)) / len(audio)
        if share * hours * 60 > MEASURED_MIN:
            factor = real_time_factor(args.teacher, args.device, [audio[u] for u in lacking[0]])
            minutes = factor * hours * 60 * share
            print(
                f"  to be computed: {100 * share:.0f} %; on one machine like this one about {minutes:.1f} min "
                f"({factor:.3f} of real time)"
            )
        sys.stdout.flush()
    if args.job or everything:
        import torch
        from tqdm import tqdm

        from distill.lfmmi import DenominatorGraph

        if "OMP_NUM_THREADS" not in os.environ:  # jobs side by side share the cores
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.num_jobs))
        todo = list(zip(names, cut, strict=True))[(args.job or 1) - 1 :: args.num_jobs if args.job else 1]
        teacher = None
        graph = DenominatorGraph.load(args.graph) if graph_checksum is not None else None
        with tqdm(total=sum(len(utterances) for _, utterances in todo), desc=args.output.name, unit="utt") as progress:
            for name, utterances in todo:
                description = about(utterances)
                if store.shard_done(data / name, description):
                    progress.update(len(utterances))
                    continue
                manifest_path.unlink(missing_ok=True)  # until the merge these are not the targets it tells of
                if teacher is None:
                    teacher = load_network(args.teacher, torch.device(args.device)).network
                with store.TargetWriter(data / name, args.dtype, description) as writer:
                    mine = {utterance: audio[utterance] for utterance in utterances}
                    extract_shard(teacher, mine, what, graph, args.device, args.batch_seconds, writer, progress)
    if args.merge or everything:
        for name, utterances in zip(names, cut, strict=True):
            if not store.shard_done(data / name, about(utterances)):
                raise UserError(f"{data / name}: not complete; run the jobs again, finished shards are kept")
        store.merge(args.output, names, manifest(), checksums)
        print(f"{args.output}: targets of {len(audio)} utterances, {', '.join(dimensions)}")


if __name__ == "__main__":
    main()
