"""Posteriors of a network's tokens for decoders elsewhere, as Kaldi matrices.

A matrix has a row for each frame and a column for each token; column j belongs to the input label j + 1 of a decoding
graph, where 0 is epsilon. CTC's blank is column 0.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from distill.audio import SAMPLE_RATE, read_wav_scp
from distill.checkpoints.device import (
    HostCopies,
    batch_seconds_on,
    inference,
    padding_matters,
    pick_device,
    readers_for,
)
from distill.checkpoints.load import LoadedNetwork, load_network
from distill.data.batches import by_length, read_batches, sample_counts
from distill.errors import UserError
from distill.files import atomic_write
from distill.recognition.networks import batch_log_posteriors, chunk_of
from distill.targets.store import save_ark, write_two_columns

WINDOW = 64  # utterances that are sorted by length, so that batches need little padding
MIN_PRIOR = 1e-10  # a rarer token cannot be recognised, as with Kaldi's --prior-cutoff
IMPOSSIBLE = -1e10  # its log-likelihood


def log_posteriors(
    model: LoadedNetwork, audio: Mapping[str, str], chunk_ms: int | None = None, batch_seconds: float | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Natural logarithms of the posteriors of every utterance, in the order of ``audio``.

    Args:
        model: a teacher or a student.
        audio: audio file by utterance id.
        chunk_ms: a streaming student's posteriors as in a stream with chunks of this length; None: every frame sees the
            whole utterance.
        batch_seconds: padded audio that is computed at once; None: what suits the device.

    Yields:
        utterance id and (frames, tokens) float32 matrix.
    """
    chunk = chunk_of(model, chunk_ms)
    network = model.network
    device = next(network.parameters()).device
    most = int(batch_seconds_on(device, batch_seconds) * SAMPLE_RATE)
    utterances = list(audio)
    for start in range(0, len(utterances), WINDOW):
        window = {utterance: audio[utterance] for utterance in utterances[start : start + WINDOW]}
        batches = by_length(sample_counts(window), most, equal=padding_matters(network))
        matrices: dict[str, np.ndarray] = {}
        with inference(network):
            for batch in read_batches(window, batches, readers_for(device)):
                log_p, frames = batch_log_posteriors(network, batch, [chunk])[chunk]
                copies = HostCopies({"log_p": log_p, "frames": frames}).get()
                for utterance, matrix, count in zip(batch.utterances, copies["log_p"], copies["frames"], strict=True):
                    matrices[utterance] = matrix[:count]
        for utterance in window:
            yield utterance, matrices[utterance]


def mean_posteriors(matrices: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    """(tokens,) mean of the posteriors over all frames: the tokens' priors, as the network has them."""
    total, frames = np.zeros(1), 0
    for _, log_p in matrices:
        total = total + np.exp(log_p.astype(np.float64)).sum(0)
        frames += len(log_p)
    return total / frames


def read_priors(path: Path, tokens: int) -> np.ndarray:
    """(tokens,) priors from a Kaldi vector in text form, ``[ 0.9 0.05 ... ]``; counts are divided by their sum.

    Raises:
        UserError: the file is missing, or is not such a vector.
    """
    try:
        values = np.array(path.read_text(encoding="utf-8").strip().strip("[]").split(), dtype=np.float64)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; make it with local/compute_posteriors.sh --mean true") from None
    except ValueError:
        raise UserError(f"{path}: not a vector of numbers; expected [ P0 P1 ... ]") from None
    if len(values) != tokens or not np.isfinite(values).all() or values.min() < 0 or values.sum() <= 0:
        raise UserError(f"{path}: must hold {tokens} counts or probabilities, one for each token of the model")
    return values / values.sum()


def write_priors(path: Path, priors: np.ndarray) -> None:
    """Write (tokens,) priors as a Kaldi vector in text form."""
    with atomic_write(path) as stream:
        stream.write(f" [ {' '.join(f'{value:.9g}' for value in priors)} ]\n")


def log_likelihoods(
    matrices: Iterable[tuple[str, np.ndarray]], priors: np.ndarray, scale: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Log-likelihoods up to a constant of each frame, by Bayes' rule: log-posterior minus ``scale`` times log-prior."""
    log_priors = np.log(np.maximum(priors, MIN_PRIOR)).astype(np.float32)
    for utterance, log_p in matrices:
        likelihoods = log_p - np.float32(scale) * log_priors
        likelihoods[:, priors < MIN_PRIOR] = IMPOSSIBLE
        yield utterance, likelihoods


def write_matrices(matrices: Iterable[tuple[str, np.ndarray]], wspecifier: str) -> int:
    """Write matrices as a binary Kaldi ark; a file appears when it is complete.

    Args:
        matrices: id and (rows, columns) float32 matrix of each utterance.
        wspecifier: as Kaldi's programs take it: ``ark:FILE``, ``ark:-`` (standard output) or ``ark,scp:FILE,SCP_FILE``.

    Returns:
        number of matrices.

    Raises:
        UserError: another wspecifier, or the program that reads standard output has ended.
    """
    kind, _, names = wspecifier.partition(":")
    ark, _, scp = names.partition(",") if kind == "ark,scp" else (names, "", "")
    if kind not in ("ark", "ark,scp") or not ark or (kind == "ark,scp" and (not scp or ark == "-")):
        raise UserError(f"{wspecifier}: must be ark:FILE, ark:- or ark,scp:FILE,SCP_FILE")
    places: dict[str, str] = {}
    count = 0
    with _binary_output(ark) as stream:
        for utterance, matrix in matrices:
            if scp:
                places[utterance] = f"{ark}:{stream.tell() + len(utterance.encode()) + 1}"
            save_ark(stream, {utterance: np.ascontiguousarray(matrix, dtype=np.float32)})
            count += 1
    if scp:
        write_two_columns(scp, places)
    return count


@contextlib.contextmanager
def _binary_output(name: str) -> Iterator[IO[bytes]]:
    if name != "-":
        with atomic_write(name, "wb") as stream:
            yield stream
        return
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Python would flush once more when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError("ark:-: the program that reads the posteriors has ended before the last one") from None


def compute_posteriors(
    model_dir: Path,
    data_dir: Path,
    target: str,
    *,
    chunk_ms: int | None = None,
    priors: Path | None = None,
    prior_scale: float = 1.0,
    mean: bool = False,
    job: int = 1,
    num_jobs: int = 1,
    batch_seconds: float | None = None,
    device: str = "auto",
) -> int:
    """Write log-posteriors, log-likelihoods or the mean posteriors of a data set.

    Args:
        model_dir: directory of a trained teacher or student, or a packed model.
        data_dir: Kaldi data directory with wav.scp.
        target: a Kaldi wspecifier; with ``mean`` the file of the mean.
        chunk_ms, batch_seconds: see :func:`log_posteriors`.
        priors, prior_scale: file of the tokens' priors and their scale, see :func:`log_likelihoods`; None: posteriors.
        mean: write the mean posteriors instead, for ``priors``.
        job, num_jobs: take every ``num_jobs``-th utterance from the ``job``-th on, counted from 1.
        device: see :func:`pick_device`.

    Returns:
        number of utterances.
    """
    if not 1 <= job <= num_jobs:
        raise UserError(f"--job {job}: must be from 1 to --num_jobs {num_jobs}")
    audio = dict(list(read_wav_scp(data_dir / "wav.scp").items())[job - 1 :: num_jobs])
    model = load_network(model_dir, pick_device(device, job))
    known = None if priors is None else read_priors(priors, len(model.token_list))
    matrices: Iterable[tuple[str, np.ndarray]] = log_posteriors(model, audio, chunk_ms, batch_seconds)
    matrices = tqdm(matrices, total=len(audio), desc=data_dir.name, unit="utt", mininterval=1)
    if mean:
        write_priors(Path(target), mean_posteriors(matrices))
        return len(audio)
    if known is not None:
        matrices = log_likelihoods(matrices, known, prior_scale)
    return write_matrices(matrices, target)
