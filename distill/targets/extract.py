"""Extraction of a teacher's outputs, so that students can be trained without running it again.

A data set is cut into shards. Jobs write them in parallel, a merge joins them, and a shard that is complete and up to
date is not computed again. See :mod:`distill.targets.store` for the files.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.audio import SAMPLE_RATE, read_wav_scp
from distill.checkpoints.load import load_network, model_checksum, network_shape, read_config
from distill.configuration import code_bytes, logit_codes
from distill.errors import UserError
from distill.files import sha256
from distill.targets import checks, space, store
from distill.targets.audio_checksums import AudioChecksums
from distill.targets.shards import cut, number_of_shards, planned_shards
from distill.targets.wanted import wanted

if TYPE_CHECKING:
    from distill.targets.codebooks import Codebooks

SAMPLED_FRAMES = 50_000  # for codebooks: some two hundred for each codeword
MEASURED_MIN = 10.0  # minutes of audio: below this the plan does not predict the time, as measuring takes as long


@dataclass
class Extraction:
    """The extraction of one data set; all of its modes are functions of this module.

    Args:
        teacher: directory of its training.
        wav_scp: the audio.
        output: directory of the targets, such as dump/targets/train.
        student_config: training configurations of the students, which say what to store.
        graph: file of the denominator graph, needed for posteriors and n-best.
        layers: ``auto``, or numbers such as "2,4,6".
        dtype: a key of :data:`distill.targets.store.COMPRESSION`.
        batch_seconds: padded audio of a batch; None: what suits the device.
        device: auto (a GPU if there is one), cpu or cuda.
        num_jobs: parallel jobs, which share the shards and the CPU cores.
    """

    teacher: Path
    wav_scp: Path
    output: Path
    student_config: Sequence[Path] = ()
    graph: Path | None = None
    layers: str = "auto"
    dtype: str = "float32"
    batch_seconds: float | None = None
    device: str = "auto"
    num_jobs: int = 1
    # of the audio, by utterance; a job computes only those of its shards, as reading audio takes time
    checksums: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shape = network_shape(self.teacher)
        self.what = wanted(self.layers, self.student_config, self.shape.layers, self.shape.encoder_frame_ms)
        self.graph_checksum = None
        if self.what.top_k is not None or self.what.nbest > 1:
            if self.graph is None or not self.graph.is_file():
                option = "nbest" if self.what.top_k is None else "posterior_top_k"
                raise UserError(f"--graph {self.graph or ''}: {option} needs the denominator graph; make it (stage 6)")
            self.graph_checksum = sha256(self.graph)

    @cached_property
    def streams(self) -> dict[str, int]:
        """Dimension of every stream by name."""
        vocab_size = len(read_config(self.teacher)["token_list"])
        dimensions = {store.hidden_stream(layer): self.shape.width for layer in self.what.layers}
        dimensions["logits"] = vocab_size
        if self.what.top_k is not None:
            dimensions |= dict.fromkeys(("posterior_ids", "posterior"), min(self.what.top_k, vocab_size))
        if self.what.nbest > 1:
            dimensions["nbest"] = self.what.nbest  # an upper bound, in numbers for each frame
        return dimensions

    @cached_property
    def teacher_checksum(self) -> str:
        return model_checksum(self.teacher)

    @cached_property
    def audio(self) -> dict[str, str]:
        """Location of every utterance's audio."""
        return read_wav_scp(self.wav_scp)

    @cached_property
    def samples(self) -> dict[str, int]:
        """Samples of every utterance at 16 kHz."""
        from distill.data.batches import sample_counts

        return sample_counts(self.audio, self.wav_scp.parent / "utt2num_samples")

    @cached_property
    def milliseconds(self) -> dict[str, int]:
        """Length of every utterance."""
        return {utterance: count * 1000 // SAMPLE_RATE for utterance, count in self.samples.items()}

    @cached_property
    def shards(self) -> dict[str, list[str]]:
        """Utterances by the name of their shard, the same ones whatever the number of jobs."""

        def first() -> list[str]:
            times = list(self.milliseconds.values())
            count = number_of_shards(len(times), sum(times), self.planned(self.streams, self.dtype))
            return cut(self.milliseconds, count)

        contents = {"streams": self.streams, "dtype": self.dtype, "hidden_ms": self.what.hidden_ms}
        return planned_shards(self.output / "shards.json", contents, self.audio, first)

    def planned(self, dimensions: Mapping[str, int], dtype: str) -> int:
        """Bytes that streams of these dimensions take."""
        rates = {n: self.what.hidden_ms if n.startswith("hidden_") else self.shape.frame_ms for n in dimensions}
        streams = {name: (dimension, rates[name]) for name, dimension in dimensions.items()}
        return space.planned_bytes(list(self.milliseconds.values()), streams, dtype)

    @property
    def codebooks_path(self) -> Path:
        """File of the codebooks, which the data sets of a recipe share."""
        return self.output.with_name(store.CODEBOOKS)

    @property
    def coded_layers(self) -> list[int]:
        """Layers that have codebooks; 0 are the logits."""
        return [0] * bool(logit_codes(self.streams["logits"])) + self.what.layers

    def codebooks(self) -> Codebooks:
        """The codebooks, of this teacher and these layers.

        Raises:
            UserError: missing or damaged, or of others.
        """
        from distill.targets.codebooks import Codebooks

        codebooks = Codebooks.load(self.codebooks_path)
        of_these = sorted(codebooks.layers) == self.coded_layers and codebooks.hidden_ms == self.what.hidden_ms
        if codebooks.teacher != self.teacher_checksum or not of_these:
            raise UserError(
                f"{self.codebooks_path}: codebooks of another teacher or other layers; extract again (stage 8)"
            )
        return codebooks

    @cached_property
    def _codebooks_in_use(self) -> dict[str, Any]:
        if self.dtype != "codebook":
            return {}
        self.codebooks()
        return {"codebooks": sha256(self.codebooks_path)}

    def path(self, shard: str) -> Path:
        """A shard's files without their suffixes."""
        return self.output / "data" / shard

    @cached_property
    def audio_checksums(self) -> AudioChecksums:
        """Reader of the audio's checksums, with what earlier runs have left."""
        caches = sorted(self.output.glob(f"{checks.CACHE}.*"))
        return AudioChecksums(self.output / checks.CACHE, *caches)

    def read_checksums(self, utterances: Iterable[str]) -> None:
        """Compute the audio's checksums, which :meth:`description` needs."""
        self.checksums.update(self.audio_checksums.of({utterance: self.audio[utterance] for utterance in utterances}))

    def description(self, utterances: Sequence[str]) -> dict[str, Any]:
        """What a shard of these utterances is computed from, as its index states it."""
        return self._codebooks_in_use | {
            "teacher": self.teacher_checksum,
            "dtype": self.dtype,
            "layers": self.what.layers,
            "audio": store.audio_list_checksum({u: self.checksums[u] for u in utterances}),
            "hidden_ms": self.what.hidden_ms,
            "top_k": self.what.top_k,
            "nbest": self.what.nbest,
            "graph": self.graph_checksum,
        }

    def manifest(self) -> dict[str, Any]:
        """Content of manifest.json, but for what the merge adds."""
        return self._codebooks_in_use | {
            "version": store.VERSION,
            "teacher": self.teacher_checksum,
            "layers": self.what.layers,
            "streams": self.streams,
            "frame_ms": self.shape.frame_ms,
            "hidden_ms": self.what.hidden_ms,
            "graph": self.graph_checksum,
            "dtype": self.dtype,
            "utterances": len(self.audio),
        }

    def discard_manifest(self) -> None:
        """Until the next merge the shards are not those that the manifest describes."""
        (self.output / "manifest.json").unlink(missing_ok=True)


def show_streams(extraction: Extraction) -> None:
    """Print what would be stored, on one line."""
    streams = (f"{name}:{size}" for name, size in extraction.streams.items())
    print(*streams, f"hidden layers every {extraction.what.hidden_ms} ms")


def run(mode: str | None, job: int | None, extraction: Extraction) -> None:
    """One mode of the command by name, or one job; with neither, plan, every shard and the merge in this process."""
    if job is not None:
        extract_job(extraction, job)
    elif mode is None:
        plan(extraction)
        if extraction.dtype == "codebook":
            train_codebooks(extraction)
        extract_job(extraction)
        merge(extraction)
    elif mode == "verify":
        check(extraction, verify=True)
    else:
        modes = {"train_codebooks": train_codebooks, "merge": merge, "check": check}
        ({"show_streams": show_streams, "plan": plan} | modes)[mode](extraction)


def train_codebooks(extraction: Extraction) -> None:
    """Train the codebooks on a sample of the audio, before the jobs; any of this teacher and these layers are kept."""
    import torch
    from tqdm import tqdm

    from distill.checkpoints.device import batch_seconds_on, pick_device
    from distill.targets.codebooks import Codebooks
    from distill.targets.codebooks import train_codebooks as train
    from distill.targets.compute import EVERY, sample_frames, stream_of

    with contextlib.suppress(UserError):
        extraction.codebooks()
        print(f"{extraction.codebooks_path}: there already")
        return
    device = pick_device(extraction.device)
    teacher = load_network(extraction.teacher, device).network
    wanted_ms = SAMPLED_FRAMES * EVERY * extraction.what.hidden_ms
    stride = max(1, sum(extraction.milliseconds.values()) // wanted_ms)
    audio = {utterance: extraction.audio[utterance] for utterance in sorted(extraction.audio)[::stride]}
    seconds = batch_seconds_on(device, extraction.batch_seconds)
    coded = extraction.coded_layers
    frames = sample_frames(teacher, audio, extraction.what, coded, seconds) if coded else {}
    del teacher
    layers = {}
    with torch.no_grad():
        for layer in tqdm(coded, desc="codebooks", unit="layer"):
            count = code_bytes(extraction.shape.width) if layer else logit_codes(extraction.streams["logits"])
            layers[layer] = train(layer, frames.pop(layer), count)
    extraction.output.mkdir(parents=True, exist_ok=True)
    Codebooks(layers, extraction.teacher_checksum, extraction.what.hidden_ms).save(extraction.codebooks_path)
    print(f"{extraction.codebooks_path}: codebooks of {', '.join(stream_of(layer) for layer in coded)}")


def extract_job(extraction: Extraction, job: int | None = None) -> None:
    """Compute the shards of one job, from 1 to ``num_jobs``; None: all of them."""
    import torch
    from tqdm import tqdm

    from distill.checkpoints.device import batch_seconds_on, pick_device
    from distill.lfmmi import DenominatorGraph
    from distill.targets.compute import extract_shard

    if job is not None and not 1 <= job <= extraction.num_jobs:
        raise UserError(f"--job {job}: must be from 1 to --num_jobs {extraction.num_jobs}")
    if "OMP_NUM_THREADS" not in os.environ:  # jobs side by side share the cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // extraction.num_jobs))
    todo = list(extraction.shards.items())
    if job is not None:
        todo = todo[job - 1 :: extraction.num_jobs]
    teacher = None
    graph = None
    codebooks = extraction.codebooks() if extraction.dtype == "codebook" else None
    if extraction.graph_checksum is not None and extraction.graph is not None:
        graph = DenominatorGraph.load(extraction.graph)
    count = sum(len(utterances) for _, utterances in todo)
    extraction.read_checksums(utterance for _, utterances in todo for utterance in utterances)
    extraction.output.mkdir(parents=True, exist_ok=True)
    extraction.audio_checksums.save(extraction.output / f"{checks.CACHE}.{job or 0}")
    with tqdm(total=count, desc=extraction.output.name, unit="utt") as progress:
        for name, utterances in todo:
            description = extraction.description(utterances)
            if store.shard_done(extraction.path(name), description):
                progress.update(len(utterances))
                continue
            extraction.discard_manifest()
            if teacher is None:
                device = pick_device(extraction.device, job or 1)
                teacher = load_network(extraction.teacher, device).network
                seconds = batch_seconds_on(device, extraction.batch_seconds)
                codebooks = codebooks and codebooks.to(device)
            path, checksums = extraction.path(name), extraction.checksums
            with store.TargetWriter(path, extraction.dtype, description, checksums) as writer:
                audio = {utterance: extraction.audio[utterance] for utterance in utterances}
                extract_shard(teacher, audio, extraction.what, graph, seconds, writer, progress, codebooks)


def merge(extraction: Extraction) -> None:
    """Join the shards that the jobs wrote; each must be complete and up to date."""
    extraction.read_checksums(extraction.audio)
    for name, utterances in extraction.shards.items():
        if not store.shard_done(extraction.path(name), extraction.description(utterances)):
            raise UserError(f"{extraction.path(name)}: not complete; run the jobs again, finished shards are kept")
    extraction.audio_checksums.save(extraction.output / checks.CACHE)
    for cache in extraction.output.glob(f"{checks.CACHE}.*"):
        cache.unlink()
    store.merge(extraction.output, list(extraction.shards), extraction.manifest(), extraction.audio)
    print(f"{extraction.output}: targets of {len(extraction.audio)} utterances, {', '.join(extraction.streams)}")


def check(extraction: Extraction, verify: bool = False) -> None:
    """Check that every shard is what this extraction would compute, from the audio as it is now, and undamaged.

    Shards that are not lose their index, so that the next job computes them again. ``verify`` reads every byte of the
    targets and what the checksums of all audio are made from; otherwise files are compared by their sizes, audio also
    by its times.

    Raises:
        UserError: that names the first shard, or the first merged file, that is damaged or out of date.
    """
    from tqdm import tqdm

    if verify:
        extraction.audio_checksums = AudioChecksums(trust=False)
    extraction.read_checksums(extraction.audio)
    problems = []
    shards = tqdm(extraction.shards.items(), desc=extraction.output.name, unit="shard", delay=5)
    for name, utterances in shards:
        path = extraction.path(name)
        problem = checks.find_damage(path, verify)
        if problem is None:
            expected = extraction.description(utterances)
            problem = checks.find_change(path, expected, {u: extraction.checksums[u] for u in utterances})
        if problem is not None:
            problems.append(problem)
            store.index_path(path).unlink(missing_ok=True)
    if problems:
        extraction.discard_manifest()
        more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; extract again (stage 8), the other shards are kept")
    problem = checks.find_loose_ends(extraction.output, list(extraction.shards), extraction.manifest())
    if problem is not None:
        raise UserError(f"{problem}; extract again (stage 8), every shard is kept")
    if extraction.audio_checksums.changed:
        with contextlib.suppress(OSError):  # the targets may be read-only
            extraction.audio_checksums.save(extraction.output / checks.CACHE)


def plan(extraction: Extraction) -> None:
    """Print the space that the targets take and, for more than :data:`MEASURED_MIN` of audio, the time.

    Raises:
        UserError: if the disk has less space; it names what would fit.
    """
    what, streams, output = extraction.what, extraction.streams, extraction.output
    samples, planned = list(extraction.samples.values()), extraction.planned
    needed = planned(streams, extraction.dtype)
    present = sum(file.stat().st_size for file in (output / "data").glob("*.ark"))
    every_other = {n: d for i, (n, d) in enumerate(streams.items()) if i % 2 or not n.startswith("hidden")}
    smaller = {f"--target_dtype {dtype}": planned(streams, dtype) for dtype in ("float16", "compressed", "codebook")}
    smaller["every other layer as float16"] = planned(every_other, "float16")
    smaller["every other layer, compressed"] = planned(every_other, "compressed")
    free = space.check_space(output, max(0, needed - present), smaller)
    hours = sum(samples) / SAMPLE_RATE / 3600
    print(
        f"{output}: {len(samples)} utterances, {hours:.2f} h, layers at {what.hidden_ms} ms, as {extraction.dtype}: "
        f"{needed / 1e9:.2f} GB, of which {present / 1e9:.2f} GB are there; {free / 1e9:.0f} GB are free"
    )
    sizes = {name: planned({name: dimension}, extraction.dtype) / 1e9 for name, dimension in streams.items()}
    print("  " + ", ".join(f"{name} {size:.3g} GB" for name, size in sizes.items()))
    absent = (part for name, part in extraction.shards.items() if not store.index_path(extraction.path(name)).exists())
    missing = [utterance for part in absent for utterance in part]
    share = len(missing) / len(samples)
    if share * hours * 60 > MEASURED_MIN:
        from distill.checkpoints.device import pick_device
        from distill.targets.compute import real_time_factor

        files = [extraction.audio[utterance] for utterance in missing]
        factor = real_time_factor(extraction.teacher, pick_device(extraction.device), files)
        minutes = factor * hours * 60 * share
        print(
            f"  to be computed: {100 * share:.0f} %; on one machine like this one about {minutes:.1f} min "
            f"({factor:.3f} of real time)"
        )
    sys.stdout.flush()
