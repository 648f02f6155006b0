"""First weights of a new teacher's CNN: trained to put out log-mel features, which need no transcripts.

A CNN with random weights hides the audio from the layers above it. With CTC alone a small wav2vec 2.0 spends most of
its first training on learning a spectrum, which this does in a minute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.audio import SAMPLE_RATE, read_audio
from distill.configuration import AugmentConf
from distill.errors import UserError
from distill.models.fbank import SHIFT, kaldi_fbank, mel_filters, povey_window
from distill.models.teacher import Teacher
from distill.training.augment import augment

BATCH, SECONDS = 8, 1.3  # stretches of audio in a step
BINS = 80
RATE, WARMUP = 2e-3, 50  # highest learning rate, and the steps until it is reached; it then falls to 0 linearly
LOG_INTERVAL = 100  # steps


def train_cnn_on_log_mel(
    network: Teacher,
    audio: Sequence[str | Path],
    steps: int,
    augmentation: AugmentConf | None = None,
    bfloat16: bool = False,
) -> float:
    """Train the CNN and the feature projection so that log-mel features are a linear map of what they put out.

    The loss is the mean squared error of the map, which is thrown away afterwards, with every bin scaled to zero mean
    and unit variance over the first batch. Targets of a frame of 20 ms are the two log-mel frames that begin in it. The
    CNN is trained whether or not the network has ``freeze_cnn``.

    Args:
        network: a new teacher with wav2vec 2.0's CNN; it is changed in place.
        audio: files of 16 kHz, of which stretches are drawn at random.
        steps: batches to train on.
        augmentation: gain and noise of the audio; log-mel features are those of the augmented audio.
        bfloat16: compute the network in bfloat16 on the CPU.

    Returns:
        the mean squared error of the last batch; 1 is the error of a constant.

    Raises:
        UserError: the network has no CNN, or an audio file cannot be read.
    """
    if "CNN" not in network.parts():
        raise UserError("cnn_log_mel_steps: this network has no CNN; leave it out")
    device = network.output.weight.device
    readout = nn.Linear(network.width, 2 * BINS, device=device)
    parameters = [p for module in (*network.parts().values(), readout) for p in module.parameters()]
    trained = [parameter.requires_grad for parameter in parameters]
    frozen, network.freeze_cnn = network.freeze_cnn, False
    optimizer = torch.optim.AdamW([p.requires_grad_(True) for p in parameters], lr=RATE, betas=(0.9, 0.98))
    warmup = min(WARMUP, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * (1 - step / steps)
    )
    mean, deviation, error, begin = torch.zeros(1), torch.ones(1), float("nan"), time.monotonic()
    for step in range(steps):
        speech = torch.stack([_stretch(audio[int(torch.randint(len(audio), ()))]) for _ in range(BATCH)]).to(device)
        lengths = torch.full((BATCH,), speech.shape[1])
        if augmentation is not None:
            speech = augment(speech, lengths, augmentation)
        target = log_mel_pairs(speech)  # (B, T, 2 BINS)
        if step == 0:
            mean, deviation = target.mean((0, 1)), target.std((0, 1)).clamp(min=1e-3)
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            features = network.projected_features(speech, lengths)[:, : target.shape[1]]  # (B, T, width)
            predicted = readout(features)
        loss = F.mse_loss(predicted.float(), (target - mean) / deviation)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % LOG_INTERVAL == 0 or step + 1 == steps:
            error = float(loss.detach())
            left = (time.monotonic() - begin) * (steps / (step + 1) - 1)
            logging.info(f"CNN to log-mel: step {step + 1} of {steps}, mse {error:.3f}, {left:.0f} s left")
    optimizer.zero_grad()
    for parameter, trains in zip(parameters, trained, strict=True):
        parameter.requires_grad_(trains)
    network.freeze_cnn = frozen
    return error


def log_mel_pairs(speech: Tensor) -> Tensor:
    """(B, N) audio -> (B, T, 2 BINS): for each whole frame of 20 ms, the two log-mel frames that begin in it."""
    window, filters = povey_window().to(speech), mel_filters(BINS).to(speech)
    frames = kaldi_fbank(speech, window, filters)  # (B, 2 T or 2 T + 1, BINS)
    return frames[:, : frames.shape[1] // 2 * 2].unflatten(1, (-1, 2)).flatten(2)


def _stretch(path: str | Path) -> Tensor:
    """SECONDS of a file from a random sample on, padded with zeros: (N,)."""
    samples, count = torch.from_numpy(read_audio(path)), int(SECONDS * SAMPLE_RATE) // SHIFT * SHIFT
    begin = int(torch.randint(max(0, len(samples) - count) + 1, ()))
    stretch = samples[begin : begin + count]
    return F.pad(stretch, (0, count - len(stretch)))
