"""Batches of audio for recognition and extraction: sorted by length, padded, and read while the network computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.audio import SAMPLE_RATE, read_audio, read_wav_scp
from distill.files import atomic_write, text_lines

READ_AHEAD = 2  # batches that are read while one is computed
HEADER_READERS = 8  # threads; they wait for the disk


def sample_counts(audio: Mapping[str, str], table: Path | None = None) -> dict[str, int]:
    """Samples of every utterance, from a Kaldi utt2num_samples or else from the audio files' headers.

    Args:
        audio: audio file by utterance id.
        table: utt2num_samples; it may be missing, or lack utterances.
    """
    if table is not None and table.is_file():
        fields = (line.split() for _, line in text_lines(table, "expected lines of an utterance id and a number"))
        known = {pair[0]: int(pair[1]) for pair in fields if len(pair) == 2 and pair[1].isdecimal()}
        if audio.keys() <= known.keys():
            return {utterance: known[utterance] for utterance in audio}
    import soundfile

    def count(path: str) -> int:
        try:
            return soundfile.info(path).frames
        except (RuntimeError, OSError):
            return len(read_audio(path))

    with ThreadPoolExecutor(HEADER_READERS, "headers") as pool:
        return dict(zip(audio, pool.map(count, audio.values()), strict=True))


def write_sample_counts(data: Path, output: Path) -> None:
    """Write a line with the number of samples of every utterance of a data directory, in the order of its wav.scp."""
    counts = sample_counts(read_wav_scp(data / "wav.scp"), data / "utt2num_samples")
    with atomic_write(output) as stream:
        stream.writelines(f"{utterance} {count}\n" for utterance, count in counts.items())


def by_length(lengths: Mapping[str, int], samples: int, equal: bool = False) -> list[list[str]]:
    """Utterances by falling length, in batches of at most ``samples`` padded samples, or of one longer utterance.

    Args:
        equal: utterances of a batch are equally long, for networks whose outputs padding would change.
    """
    result: list[list[str]] = []
    for utterance in sorted(lengths, key=lambda u: -lengths[u]):
        longest = lengths[result[-1][0]] if result else 0
        fits = bool(result) and longest * (len(result[-1]) + 1) <= samples
        if fits and not (equal and lengths[utterance] != longest):
            result[-1].append(utterance)
        else:
            result.append([utterance])
    return result


class Batch(NamedTuple):
    """Utterances on the host: ids, (N,) float32 samples of each, (B, N) audio padded with zeros and (B,) lengths."""

    utterances: list[str]
    audio: list[np.ndarray]
    speech: Tensor
    lengths: Tensor


def padded(utterances: Sequence[str], audio: Sequence[np.ndarray]) -> Batch:
    """A batch of utterances."""
    lengths = torch.tensor([len(samples) for samples in audio])
    speech = torch.zeros(len(audio), int(lengths.max()))
    for row, samples in zip(speech, audio, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    return Batch(list(utterances), list(audio), speech, lengths)


def read_batches(audio: Mapping[str, str], batches: Iterable[Sequence[str]], readers: int = 1) -> Iterator[Batch]:
    """Read and pad batches of utterances, the next :data:`READ_AHEAD` of them while the caller works on one.

    Args:
        audio: audio file by utterance id.
        batches: ids of each batch.
        readers: threads that read; decoding of audio does not hold Python's lock.
    """
    with ThreadPoolExecutor(readers, "audio") as pool:

        def start(batch: Sequence[str]) -> tuple[Sequence[str], list[Future[np.ndarray]]]:
            return batch, [pool.submit(read_audio, audio[utterance], SAMPLE_RATE) for utterance in batch]

        under_way: list[tuple[Sequence[str], list[Future[np.ndarray]]]] = []
        try:
            for batch in batches:
                under_way.append(start(batch))
                if len(under_way) > READ_AHEAD:
                    utterances, files = under_way.pop(0)
                    yield padded(utterances, [file.result() for file in files])
            for utterances, files in under_way:
                yield padded(utterances, [file.result() for file in files])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
