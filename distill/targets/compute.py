"""Run a teacher over a shard's audio and write its outputs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.audio import SAMPLE_RATE, read_audio
from distill.checkpoints.load import load_network
from distill.lfmmi.loss import top_occupancies
from distill.targets import store
from distill.targets.frames import average_frames
from distill.targets.nbest import best_sequences, pack
from distill.targets.wanted import Wanted


def batches(lengths: dict[str, int], samples: int) -> list[list[str]]:
    """Utterances of a shard by falling length, in batches of at most ``samples`` padded samples."""
    result: list[list[str]] = []
    for utterance in sorted(lengths, key=lambda u: -lengths[u]):
        if result and lengths[result[-1][0]] * (len(result[-1]) + 1) <= samples:
            result[-1].append(utterance)
        else:
            result.append([utterance])
    return result


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
