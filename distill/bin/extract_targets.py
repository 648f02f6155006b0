"""Store what a teacher hands over - hidden layers and logits - so that students need not run it again.

    extract="python -m distill.bin.extract_targets --teacher exp/teacher --wav_scp dump/raw/train/wav.scp \\
        --student_config conf/train_student_full.yaml --output dump/targets/train --num_jobs 4"
    $extract --plan               # how much space it takes; refuses if the disk has less
    $extract --job 1              # ... to 4, in parallel; shards that are complete are not made again
    $extract --merge              # sorted scps and manifest.json
    $extract --verify             # later: has the disk kept every byte? --job and --merge then mend what is named

Without --plan, --job or --merge all three are done in one process.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from distill.errors import UserError, cli
from distill.targets import store

SAMPLE_RATE = 16000
# Read when torch is loaded. Threads that spin while they wait for each other take the cores from the data loader and
# from any other job: on a busy machine of two cores a step took five times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def wanted_layers(layers: str, student_config: Path | None, teacher_layers: int) -> list[int]:
    """Teacher layers to store: those given, or those that the student's layer map names (all without a student)."""
    if layers != "auto":
        try:
            chosen = sorted({int(layer) for layer in layers.replace(",", " ").split()})
        except ValueError as error:
            raise UserError(f"--layers {layers}: must be auto or numbers such as 2,4,6") from error
        if chosen and not 1 <= chosen[0] <= chosen[-1] <= teacher_layers:
            raise UserError(f"--layers {layers}: the teacher has layers 1 to {teacher_layers}")
        return chosen
    if student_config is None:
        return list(range(1, teacher_layers + 1))
    import yaml

    from distill.tasks.losses import layer_map
    from distill.tasks.settings import DistillConf, read_conf

    if not student_config.is_file():
        raise UserError(f"{student_config}: not found; give the student's training configuration")
    config = yaml.safe_load(student_config.read_text(encoding="utf-8")) or {}
    conf = read_conf(DistillConf, "distill_conf", config.get("distill_conf") or {})
    student_layers = (config.get("network_conf") or {}).get("layers")
    if conf is None or student_layers is None:
        raise UserError(f"{student_config}: network_conf.layers is missing; it says which layers to store")
    if conf.alpha == 1:
        return []
    return sorted(set(conf.layer_map or layer_map(student_layers, teacher_layers)))


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
    layers: list[int],
    device: str,
    batch_seconds: float,
    writer: Any,
    progress: Any,
) -> None:
    """Run the teacher over a shard's utterances and write every stream."""
    import numpy as np
    import torch

    from distill.audio import read_audio

    speech = {utterance: read_audio(path, SAMPLE_RATE) for utterance, path in audio.items()}
    for batch in batches({u: len(x) for u, x in speech.items()}, int(batch_seconds * SAMPLE_RATE)):
        lengths = torch.tensor([len(speech[u]) for u in batch])
        padded = np.zeros((len(batch), int(lengths.max())), dtype=np.float32)
        for row, utterance in zip(padded, batch, strict=True):
            row[: len(speech[utterance])] = speech[utterance]
        with torch.no_grad():
            output = teacher(torch.from_numpy(padded).to(device), lengths.to(device))
        streams = {f"hidden_{layer:02d}": output.hidden[layer - 1] for layer in layers}
        streams["logits"] = output.logits
        matrices = {name: x.float().cpu().numpy() for name, x in streams.items()}
        for i, (utterance, frames) in enumerate(zip(batch, output.lengths.tolist(), strict=True)):
            writer.write(utterance, {name: x[i, :frames] for name, x in matrices.items()})
        progress.update(len(batch))


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="directory of the trained teacher")
    parser.add_argument("--wav_scp", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="such as dump/targets/train")
    parser.add_argument("--student_config", type=Path, help="its layer map says which layers to store")
    parser.add_argument("--layers", default="auto", help="auto, or numbers such as 2,4,6 (default: auto)")
    parser.add_argument("--dtype", choices=tuple(store.COMPRESSION), default="float32", help="(default: float32)")
    parser.add_argument("--batch_seconds", type=float, default=60, help="padded audio in a batch (default: 60)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--num_jobs", type=int, default=1)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--show_layers", action="store_true", help="only print the layers that would be stored")
    part.add_argument("--plan", action="store_true", help="only print the space it takes")
    part.add_argument("--job", type=int, help="only do this job's shards, from 1 to --num_jobs")
    part.add_argument("--merge", action="store_true", help="only join what the jobs made")
    part.add_argument(
        "--check", action="store_true", help="see that every ark has its size; a damaged shard is then made anew"
    )
    part.add_argument("--verify", action="store_true", help="the same, and read every byte")
    args = parser.parse_args(argv)
    if args.job is not None and not 1 <= args.job <= args.num_jobs:
        raise UserError(f"--job {args.job}: must be from 1 to --num_jobs {args.num_jobs}")

    from distill.audio import read_wav_scp
    from distill.tasks.load import load_network, model_checksum, network_shape, read_config

    layer_count, width, frame_ms = network_shape(args.teacher)
    layers = wanted_layers(args.layers, args.student_config, layer_count)
    if args.show_layers:
        print(*layers)
        return
    checksum = model_checksum(args.teacher)
    audio = read_wav_scp(args.wav_scp)
    checksums: dict[str, str] = {}
    dimensions = {f"hidden_{layer:02d}": width for layer in layers}
    dimensions["logits"] = len(read_config(args.teacher)["token_list"])
    data = args.output / "data"
    cut = store.shards(audio)
    names = [f"{number:04d}" for number in range(1, len(cut) + 1)]
    everything = not (args.plan or args.job or args.merge or args.check or args.verify)

    def about(utterances: list[str]) -> dict[str, Any]:
        checksums.update((utterance, store.audio_checksum(audio[utterance])) for utterance in utterances)
        audio_list = store.audio_list_checksum({utterance: checksums[utterance] for utterance in utterances})
        return {"teacher": checksum, "dtype": args.dtype, "layers": layers, "audio": audio_list}

    if args.check or args.verify:
        damage = {name: store.find_damage(data / name, args.verify) for name in names}
        broken = [name for name in names if damage[name] is not None]
        for name in broken:
            (data / name / "done.json").unlink(missing_ok=True)
        if broken:
            more = f" (and {len(broken) - 1} more shards)" if len(broken) > 1 else ""
            raise UserError(f"{damage[broken[0]]}{more}; extract again (stage 8), the other shards are kept")
        return
    if args.plan or everything:
        samples = sample_counts(args.wav_scp, audio)
        frames = [n // (frame_ms * SAMPLE_RATE // 1000) for n in samples]
        needed = store.planned_bytes(frames, dimensions, args.dtype)
        there = sum(file.stat().st_size for file in data.glob("*/*.ark")) if data.is_dir() else 0
        free = store.check_space(args.output, max(0, needed - there))
        print(
            f"{args.output}: {len(audio)} utterances, {sum(samples) / SAMPLE_RATE / 3600:.2f} h, "
            f"{len(dimensions)} streams as {args.dtype}: {needed / 1e9:.2f} GB, "
            f"of which {there / 1e9:.2f} GB are there; {free / 1e9:.0f} GB are free",
            flush=True,
        )
    if args.job or everything:
        import torch
        from tqdm import tqdm

        if "OMP_NUM_THREADS" not in os.environ:  # jobs side by side share the cores
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.num_jobs))
        todo = list(zip(names, cut, strict=True))[(args.job or 1) - 1 :: args.num_jobs if args.job else 1]
        teacher = None
        with tqdm(total=sum(len(utterances) for _, utterances in todo), desc=args.output.name, unit="utt") as progress:
            for name, utterances in todo:
                description = about(utterances)
                if store.shard_done(data / name, description):
                    progress.update(len(utterances))
                    continue
                if teacher is None:
                    teacher = load_network(args.teacher, torch.device(args.device)).network
                with store.TargetWriter(data / name, args.dtype, description) as writer:
                    mine = {utterance: audio[utterance] for utterance in utterances}
                    extract_shard(teacher, mine, layers, args.device, args.batch_seconds, writer, progress)
    if args.merge or everything:
        for name, utterances in zip(names, cut, strict=True):
            if not store.shard_done(data / name, about(utterances)):
                raise UserError(f"{data / name}: not complete; run the jobs again, finished shards are kept")
        manifest = {
            "version": 1,
            "teacher": checksum,
            "layers": layers,
            "streams": dimensions,
            "frame_ms": frame_ms,
            "dtype": args.dtype,
            "utterances": len(audio),
            "audio": store.audio_list_checksum(checksums),
        }
        store.merge(args.output, names, manifest, checksums)
        print(f"{args.output}: targets of {len(audio)} utterances, layers {layers or 'none'} and logits")


if __name__ == "__main__":
    main()
