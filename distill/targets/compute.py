"""Run a teacher over a shard's audio and write its outputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill.audio import SAMPLE_RATE, check_at_once, read_audio
from distill.checkpoints.device import HostCopies, inference, padding_matters, readers_for
from distill.checkpoints.load import load_network
from distill.data.batches import Batch, by_length, read_batches, sample_counts
from distill.lfmmi.loss import top_occupancies
from distill.models.transfer import send
from distill.targets import store
from distill.targets.codebooks import LOGITS, Codebooks, encode_logits
from distill.targets.frames import average_frames
from distill.targets.nbest import best_sequences, pack
from distill.targets.wanted import Wanted

NBEST = ("nbest tokens", "nbest lengths", "nbest weights")
EVERY = 3  # of the frames for codebooks, one of so many


def extract_shard(
    teacher: Any,
    audio: dict[str, str],
    what: Wanted,
    graph: Any,
    batch_seconds: float,
    writer: Any,
    progress: Any,
    codebooks: Codebooks | None = None,
) -> None:
    """Run the teacher over a shard's utterances and write every stream.

    Hidden layers are averaged to frames of ``what.hidden_ms``; everything else is at the teacher's frame rate.
    ``graph`` is the denominator graph of posteriors and n best, None if they are not wanted. With ``codebooks`` hidden
    layers and logits are written as codes.
    """
    device = next(teacher.parameters()).device
    most = int(batch_seconds * SAMPLE_RATE)
    batches = by_length(sample_counts(audio), most, equal=padding_matters(teacher))
    computed: tuple[Batch, HostCopies[str]] | None = None
    for batch in read_batches(audio, batches, readers_for(device)):
        # The device computes this batch while the one before is written.
        tensors = teacher_outputs(teacher, batch, what, graph)
        following = batch, HostCopies(coded(tensors, codebooks) if codebooks is not None else tensors)
        if computed is not None:
            write_batch(*computed, writer, progress)
        computed = following
    if computed is not None:
        write_batch(*computed, writer, progress)


def teacher_outputs(teacher: Any, batch: Batch, what: Wanted, graph: Any) -> dict[str, torch.Tensor]:
    """Every stream of a batch (B, T, D) by name, and as ``NAME frames`` (B,) its frames; float32.

    The sequences of ``nbest`` are ``nbest tokens``, ``nbest lengths`` and ``nbest weights``, see
    :func:`best_sequences`.
    """
    for utterance, samples in zip(batch.utterances, batch.audio, strict=True):
        check_at_once(len(samples), utterance)
    with inference(teacher):
        output = teacher(send(batch.speech, next(teacher.parameters()).device), batch.lengths)
    with torch.no_grad():
        factor = what.hidden_ms // teacher.encoder_frame_ms
        streams = {"logits": (output.logits, output.lengths)}
        for layer in what.layers:
            hidden = average_frames(output.hidden[layer - 1], output.hidden_lengths, factor)
            streams[store.hidden_stream(layer)] = hidden
        if what.top_k is not None or what.nbest > 1:
            log_probs = output.logits.float().log_softmax(-1)
        if what.top_k is not None:
            top = top_occupancies(graph, log_probs, output.lengths, what.top_k)
            streams["posterior_ids"], streams["posterior"] = ((x, output.lengths) for x in top)
        tensors = {name: x.float() for name, (x, _) in streams.items()}
        tensors |= {f"{name} frames": frames for name, (_, frames) in streams.items()}
        if what.nbest > 1:
            nbest = best_sequences(graph, log_probs, output.lengths, what.nbest)
            tensors |= zip(NBEST, nbest, strict=True)
    return tensors


def coded(tensors: dict[str, torch.Tensor], codebooks: Codebooks) -> dict[str, torch.Tensor]:
    """What :func:`teacher_outputs` gives, with hidden layers (B, T, D) and logits (B, T, V) as codes, uint8."""
    layers = {stream_of(layer): layer for layer in codebooks.layers}
    result = {name: codebooks.encode(layers[name], x) if name in layers else x for name, x in tensors.items()}
    return result if LOGITS in codebooks.layers else result | {"logits": encode_logits(tensors["logits"])}


def stream_of(layer: int) -> str:
    """Name of the stream that is coded by a layer's codebooks."""
    return "logits" if layer == LOGITS else store.hidden_stream(layer)


def sample_frames(
    teacher: Any, audio: dict[str, str], what: Wanted, coded_layers: Sequence[int], batch_seconds: float
) -> dict[int, torch.Tensor]:
    """Frames (M, D) of the layers that are to be coded, for the training of their codebooks, float16.

    Every third frame of utterances from all of a data set is taken, as neighbours hardly differ.
    """
    counts, layers = sample_counts(audio), what._replace(top_k=None, nbest=1)
    batches = by_length(counts, int(batch_seconds * SAMPLE_RATE), equal=padding_matters(teacher))
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in coded_layers}
    for batch in read_batches(audio, batches, readers_for(next(teacher.parameters()).device)):
        tensors = teacher_outputs(teacher, batch, layers, None)
        for layer in coded_layers:
            name = stream_of(layer)
            for hidden, frames in zip(tensors[name], tensors[f"{name} frames"].tolist(), strict=True):
                parts[layer].append(hidden[:frames:EVERY].half())
    return {layer: torch.cat(frames) for layer, frames in parts.items()}


def write_batch(batch: Batch, copies: HostCopies[str], writer: Any, progress: Any) -> None:
    """Write the outputs of :func:`teacher_outputs`, utterance by utterance."""
    arrays = copies.get()
    names = [name for name in arrays if f"{name} frames" in arrays]
    for i, utterance in enumerate(batch.utterances):
        of_utterance = {name: arrays[name][i, : arrays[f"{name} frames"][i]] for name in names}
        if NBEST[0] in arrays:
            of_utterance["nbest"] = pack(*(arrays[name][i] for name in NBEST))
        writer.write(utterance, of_utterance)
    progress.update(len(batch.utterances))


def real_time_factor(directory: Path, device: torch.device, files: list[str], seconds: float = 4.0) -> float:
    """Seconds of computation that the teacher takes for a second of audio, from about ``seconds`` of these files."""
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
        with inference(teacher):
            teacher(speech, torch.tensor([speech.shape[1]], device=device)).logits.cpu()
        took = time.perf_counter() - started
    return took / (speech.shape[1] / SAMPLE_RATE)
