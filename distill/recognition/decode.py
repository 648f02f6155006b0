"""Recognition of test sets with a teacher or a student, in batches.

The log-posteriors of a streaming student are those of its masked network over whole utterances, which equal those of a
stream. A sample of the utterances is recognised one at a time as well, chunk by chunk where the network streams: that
checks the equality, and tells the speed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.audio import MOST_AT_ONCE_S, SAMPLE_RATE, check_at_once, read_wav_scp
from distill.checkpoints.device import (
    HostCopies,
    batch_seconds_on,
    half_precision,
    inference,
    padding_matters,
    pick_device,
    readers_for,
)
from distill.checkpoints.load import LoadedNetwork, load_network
from distill.data.batches import Batch, by_length, read_batches, sample_counts
from distill.decode.greedy import BestTokens
from distill.decode.hypothesis import RecordingSearch
from distill.decode.settings import DecodeConf, search_factory
from distill.decode.stream_results import NO_RULES, StreamDecoder
from distill.errors import UserError
from distill.files import atomic_write
from distill.recognition.hypotheses import HypothesisFile, result_row
from distill.recognition.networks import Chunk, batch_log_posteriors, chunk_of, log_posteriors
from distill.streaming import Recognizer

SAMPLE = 20  # utterances of a set that are recognised one at a time as well
# Largest difference of a log-posterior between a batch and one utterance alone: absolute, and per nat of its size
ABSOLUTE_BOUND, RELATIVE_BOUND = 1e-3, 1e-4

Row = dict[str, Any]


@dataclass(frozen=True)
class BatchConf:
    """How a job computes.

    Attributes:
        device: auto (a GPU if there is one), cpu or cuda.
        batch_seconds: padded audio of a batch, 0 for one utterance at a time; None: what suits the device. Longer
            utterances are recognised one at a time.
        sample: utterances of each set that are recognised one at a time as well, at least 1.
        threads: CPU threads.
    """

    device: str = "auto"
    batch_seconds: float | None = None
    sample: int = SAMPLE
    threads: int = 1

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise UserError(f"--sample {self.sample}: must be at least 1, as the speed is measured on these utterances")


def decode_sets(
    model: Path,
    data_dirs: Sequence[Path],
    chunk_ms: Sequence[int | None],
    decoders: Sequence[DecodeConf],
    output: Path | None = None,
    job: int = 1,
    num_jobs: int = 1,
    how: BatchConf | None = None,
) -> None:
    """Recognise Kaldi data directories with every decoder at every chunk length.

    Writes OUTPUT/decode_480ms/SET/hyp.JOB.jsonl, with a row per utterance (:func:`result_row`), and about.json in the
    same directory (:func:`describe`). Files that exist are kept, as are directories with ``text``, which
    :func:`distill.recognition.kaldi_text.write_kaldi_text` writes after all jobs; what a killed job left is continued.

    Args:
        model: a training's directory or a packed model.
        data_dirs: with wav.scp.
        chunk_ms: chunk lengths; None for full context.
        decoders: decoders and their settings.
        output: directory to write below; None: ``model``.
        job: this job, from 1, of ``num_jobs``; takes every ``num_jobs``-th utterance.
        how: see :class:`BatchConf`.

    Raises:
        UserError: the job's number, the model, its data or a setting cannot be used; or what was computed in a batch
            is not what the utterance gives alone.
    """
    how = how or BatchConf()
    if output is None and model.is_file():
        raise UserError(f"{model}: is a packed model; give --output DIR for the results")
    if not 1 <= job <= num_jobs:
        raise UserError(f"--job {job}: must be from 1 to --num_jobs {num_jobs}")
    torch.set_num_threads(how.threads)
    tables = {data_dir: read_wav_scp(data_dir / "wav.scp") for data_dir in data_dirs}
    shares = {data_dir: dict(list(table.items())[job - 1 :: num_jobs]) for data_dir, table in tables.items()}
    total = len(decoders) * len(chunk_ms) * sum(map(len, shares.values()))
    loaded = load_network(model, pick_device(how.device, job))
    settings = [Setting(loaded, conf, length) for conf in decoders for length in chunk_ms]
    count = how.sample // num_jobs + (job <= how.sample % num_jobs)
    with tqdm(total=total, desc=model.name, unit="utt", mininterval=1) as progress, inference(loaded.network):
        for data_dir, audio in shares.items():
            paths = {s: (output or model) / s.folder / data_dir.name / f"hyp.{job}.jsonl" for s in settings}
            # A directory with text was complete before, whatever the number of jobs was then.
            done = {s for s, path in paths.items() if path.is_file() or path.with_name("text").is_file()}
            missing = {setting: path for setting, path in paths.items() if setting not in done}
            progress.update((len(paths) - len(missing)) * len(audio))
            for setting, path in missing.items() if job == 1 else ():
                with atomic_write(path.with_name("about.json")) as stream:
                    json.dump(describe(loaded, setting, how.threads), stream, indent=1)
            with contextlib.ExitStack() as stack:
                files = {setting: stack.enter_context(HypothesisFile(path)) for setting, path in missing.items()}
                if files:
                    decode_set(SetToDecode(loaded, audio, data_dir, files, how), count, progress)


class Setting:
    """A decoder at a chunk length.

    Attributes:
        chunk: in encoder frames; None: full context, as with every network that does not stream.
        folder: such as decode_480ms, decode_full, or decode_480ms_beam.
    """

    def __init__(self, loaded: LoadedNetwork, conf: DecodeConf, chunk_ms: int | None) -> None:
        network, token_list, config = loaded
        self.conf, self.chunk_ms = conf, chunk_ms
        self.greedy = conf.decoder == "greedy"
        self._new_search = search_factory(conf, token_list, config)
        self._scores: list[Tensor] = []  # of the utterance that is recognised alone
        self._recognizer = Recognizer(
            network,
            token_list,
            config,
            chunk_ms,
            new_search=lambda: RecordingSearch(self._new_search(), self._scores.append),
        )
        self._warm = False
        self.chunk: Chunk = chunk_of(loaded, chunk_ms) if self._recognizer.streaming else None
        name = "decode_full" if chunk_ms is None else f"decode_{chunk_ms}ms"
        self.folder = name if self.greedy else f"{name}_{conf.decoder}"

    def row(self, utterance: str, audio: np.ndarray, scores: np.ndarray | BestTokens) -> Row:
        """The row of an utterance from its (N,) samples and the scores of all its frames."""
        about = self._recognizer.token_list, self._recognizer.token_type, self._recognizer.frame_ms
        decoder = StreamDecoder(*about, NO_RULES, self._new_search)
        decoder.receive(audio)
        decoder.accept_last(scores if isinstance(scores, BestTokens) else torch.from_numpy(scores))
        result = decoder.finish()
        return result_row(utterance, result, decoder.hypotheses, *about, len(audio) / SAMPLE_RATE)

    def row_alone(self, utterance: str, audio: np.ndarray) -> tuple[Row, np.ndarray]:
        """The row of an utterance that is recognised on its own, chunk by chunk if the network streams.

        It has the seconds of computation as ``compute_s``. The second value are its (T, V) log-posteriors.
        """
        recognizer = self._recognizer
        if not recognizer.streaming:
            check_at_once(len(audio), utterance)
        if not self._warm:  # the first one's time would include the allocation of memory
            recognizer.recognize(torch.zeros(SAMPLE_RATE))
            self._warm = True
        self._scores.clear()
        started = time.perf_counter()
        stream = recognizer.create_stream()
        stream.accept(audio)
        stream.finish()
        (*_, result) = stream.decode()
        compute_s = time.perf_counter() - started
        about = recognizer.token_list, recognizer.token_type, recognizer.frame_ms
        row = result_row(utterance, result, stream.hypotheses, *about, len(audio) / SAMPLE_RATE)
        scores = self._scores if self.chunk is not None else self._scores[-1:]  # others compute all audio again
        return {**row, "compute_s": compute_s}, log_posteriors(torch.cat(scores)).cpu().numpy()

    def check(
        self, row: Row, alone: Row, in_batch: np.ndarray, one: np.ndarray, audio: np.ndarray, data_dir: Path
    ) -> None:
        """Check that (N,) samples alone give what they gave in a batch: (T, V) log-posteriors within bounds, and text.

        Texts may differ where the best tokens or paths are equally good within the bounds.

        Raises:
            UserError: it does not.
        """
        where = f"{data_dir}: {row['utterance']}, {self.folder}"
        cure = "--batch_seconds 0 recognises without batches; please report this with the model's config.yaml"
        if in_batch.shape != one.shape:
            raise UserError(f"{where}: {len(in_batch)} frames in a batch, {len(one)} on its own; {cure}")
        excess = np.abs(in_batch - one) - RELATIVE_BOUND * np.abs(one)
        if not excess.max() <= ABSOLUTE_BOUND:
            frame = int(excess.max(1).argmax())
            difference = np.abs(in_batch - one)[frame].max()
            raise UserError(
                f"{where}: a log-posterior of frame {frame} in a batch is {difference:.2g} off what the utterance "
                f"gives on its own; {cure}"
            )
        if row["text"] != alone["text"]:
            again = self.row(row["utterance"], audio, one)
            if again["text"] != alone["text"]:
                raise UserError(f"{where}: {row['text']!r} in a batch, {alone['text']!r} on its own; {cure}")


class SetToDecode(NamedTuple):
    """A job's share of a data set, by utterance, and the files that are to be written of it."""

    loaded: LoadedNetwork
    audio: Mapping[str, str]
    data_dir: Path
    files: Mapping[Setting, HypothesisFile]
    how: BatchConf


def decode_set(work: SetToDecode, sample: int, progress: tqdm) -> None:
    """Recognise a job's share of a data set with every setting; ``sample`` utterances of it also alone."""
    network, files = work.loaded.network, work.files
    device = next(network.parameters()).device
    progress.update(sum(len(file.done) for file in files.values()))
    names = list(work.audio)
    alone = {names[i * len(names) // sample] for i in range(sample)} if names else set()
    missing = {u: path for u, path in work.audio.items() if any(u not in file.done for file in files.values())}
    counts = sample_counts(missing, work.data_dir / "utt2num_samples")
    most = int(batch_seconds_on(device, work.how.batch_seconds) * SAMPLE_RATE)
    batches = by_length(counts, most, equal=padding_matters(network))
    computed: tuple[Batch, HostCopies[tuple]] | None = None
    for batch in read_batches(missing, batches, readers_for(device)):
        if len(batch.audio[0]) > min(most, MOST_AT_ONCE_S * SAMPLE_RATE):  # the longest of them
            for utterance, samples in zip(batch.utterances, batch.audio, strict=True):
                for setting, file in files.items():
                    if utterance not in file.done:
                        file.write(setting.row_alone(utterance, samples)[0])
                        progress.update()
            continue
        # The device computes this batch while the one before is decoded here.
        following = batch, start_batch(work, batch, alone)
        if computed is not None:
            write_rows(work, *computed, alone, progress)
        computed = following
    if computed is not None:
        write_rows(work, *computed, alone, progress)


def start_batch(work: SetToDecode, batch: Batch, alone: set[str]) -> HostCopies[tuple]:
    """Compute a batch, and copy to the host by chunk what its settings need.

    That is ``frames`` (B,); for greedy decoding ``ids`` and ``values`` (B, T) of the best token of each frame; for
    other decoders ``all`` log-posteriors (B, T, V); and those of utterances that are compared, (T, V) by number.
    """
    tensors: dict[tuple, Tensor] = {}
    chunks = dict.fromkeys(setting.chunk for setting in work.files)
    for chunk, (log_p, frames) in batch_log_posteriors(work.loaded.network, batch, chunks).items():
        tensors[chunk, "frames"] = frames
        kinds = {setting.greedy for setting in work.files if setting.chunk == chunk}
        if True in kinds:
            tensors[chunk, "values"], tensors[chunk, "ids"] = log_p.max(-1)
        if False in kinds:
            tensors[chunk, "all"] = log_p
        for number, utterance in enumerate(batch.utterances):
            if utterance in alone:
                tensors[chunk, number] = log_p[number]
    return HostCopies(tensors)


def write_rows(work: SetToDecode, batch: Batch, copies: HostCopies[tuple], alone: set[str], progress: tqdm) -> None:
    """Decode a batch with every setting, and write a row for each utterance that has none yet."""
    scores = copies.get()
    compare = not half_precision(work.loaded.network)
    for number, (utterance, audio) in enumerate(zip(batch.utterances, batch.audio, strict=True)):
        for setting, file in work.files.items():
            if utterance in file.done:
                continue
            chunk = setting.chunk
            frames = scores[chunk, "frames"][number]
            if setting.greedy:
                best = (scores[chunk, name][number, :frames] for name in ("ids", "values"))
                row = setting.row(utterance, audio, BestTokens(*best))
            else:
                row = setting.row(utterance, audio, scores[chunk, "all"][number, :frames])
            if utterance in alone:
                row_alone, log_p = setting.row_alone(utterance, audio)
                if compare:
                    setting.check(row, row_alone, scores[chunk, number][:frames], log_p, audio, work.data_dir)
                row = row_alone
            file.write(row)
            progress.update()
    for file in work.files.values():
        file.flush()


def describe(loaded: LoadedNetwork, setting: Setting, threads: int) -> dict[str, Any]:
    """Contents of about.json: the network's size, where it was computed, and the decoder's settings.

    ``text`` is "tokens" if phones are recognised without a lexicon, else "words".
    """
    conf, token_type = setting.conf, loaded.config.get("token_type", "char")
    has_words = token_type != "phn" or (conf.decoder == "wfst" and conf.lm_unit == "word")
    parameters = list(loaded.network.parameters())
    device = parameters[0].device
    about: dict[str, Any] = {
        "params": sum(p.numel() for p in parameters),
        "model_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": "bfloat16" if half_precision(loaded.network) else "float32",
        "threads": threads,
        "chunk_ms": setting.chunk_ms,
        "decoder": conf.decoder,
        "text": "words" if has_words else "tokens",
    }
    if conf.decoder != "greedy":
        about["lm"] = None if conf.lm is None else str(conf.lm)
        about |= {"lm_weight": conf.lm_weight, "word_bonus": conf.word_bonus, "nbest": conf.nbest}
        about["beam"] = conf.wfst_beam if conf.decoder == "wfst" else conf.beam
    return about
