"""Log-posteriors of whole utterances in batches: with full context, or as a stream in chunks computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.audio import END_SILENCE, check_at_once
from distill.checkpoints.load import LoadedNetwork
from distill.configuration import ChunkConf, frames_of_chunk, read_conf
from distill.data.batches import Batch
from distill.errors import UserError
from distill.models.cnn import frame_counts
from distill.models.output import NetworkOutput
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.models.transfer import send

# Encoder frames of a chunk, of its history (None: all) and of its look-ahead; None: full context
Chunk = tuple[int, int | None, int] | None


def chunk_of(model: LoadedNetwork, chunk_ms: int | None) -> Chunk:
    """The chunk of a streaming student.

    Raises:
        UserError: the model was not trained for chunks, or the length is no multiple of its frames.
    """
    if chunk_ms is None:
        return None
    conf = read_conf(ChunkConf, "chunk_conf", model.config.get("chunk_conf") or None)
    frame_ms = model.network.encoder_frame_ms
    if conf is None or isinstance(model.network, Teacher):
        raise UserError(f"--chunk_ms {chunk_ms}: this model is not a streaming student; leave the option out")
    return conf.in_frames(frames_of_chunk(chunk_ms, frame_ms), frame_ms)


def batch_log_posteriors(
    network: Student | Teacher, batch: Batch, chunks: Iterable[Chunk]
) -> dict[Chunk, tuple[Tensor, Tensor]]:
    """(B, T, V) natural log-posteriors on the network's device, and (B,) frames on the host, for each of the chunks.

    A student's front end, the largest part of those with a CNN, is computed once for all of them.

    Raises:
        UserError: an utterance is too long to be computed at once.
    """
    for utterance, samples in zip(batch.utterances, batch.audio, strict=True):
        check_at_once(len(samples), utterance)
    # Lengths stay on the host, which then need not ask the device for them.
    speech, lengths = send(batch.speech, next(network.parameters()).device), batch.lengths
    if isinstance(network, Teacher):
        outputs = {chunk: network(speech, lengths) for chunk in chunks}
    else:
        outputs = student_outputs(network, speech, lengths, list(chunks))
    return {chunk: (log_posteriors(output.logits), output.lengths) for chunk, output in outputs.items()}


def student_outputs(
    network: Student, speech: Tensor, lengths: Tensor, chunks: Sequence[Chunk]
) -> dict[Chunk, NetworkOutput]:
    """What a student puts out of audio (B, N), padded with zeros, with (B,) samples each, for each of the chunks."""
    longest = max((chunk[0] + chunk[2] for chunk in chunks if chunk), default=0)
    silence = END_SILENCE + longest * network.front_end.hop if longest else 0
    x, frames = network.features(F.pad(speech, (0, silence)), lengths)
    outputs: dict[Chunk, NetworkOutput] = {}
    for chunk in chunks:
        if chunk is None:
            outputs[chunk] = network.recognise(x[:, : int(frames.max())], frames)
            continue
        # As in a stream, silence completes the last chunk and its look-ahead.
        size, _, lookahead = chunk
        spoken = frame_counts(network.front_end, lengths + END_SILENCE)
        complete = torch.div(spoken + size - 1, size, rounding_mode="floor") * size
        seen = complete + lookahead
        output = network.recognise(x[:, : int(seen.max())], seen, *chunk)
        outputs[chunk] = output._replace(lengths=complete * network.logits_per_frame, hidden_lengths=complete)
    return outputs


def log_posteriors(logits: Tensor) -> Tensor:
    """Natural log-posteriors of logits, in float32 whatever these are in."""
    return torch.log_softmax(logits, -1, dtype=torch.float32)
