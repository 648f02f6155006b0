"""Streams on the device: what comes out is what the masked network puts out, and what the CPU recognises."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import VOCAB, masked, speech, student

from distill.streaming import Recognizer

pytestmark = pytest.mark.gpu

CONFIG = {"token_type": "word", "chunk_conf": {"chunk_ms": 480, "hop": 0.5, "left_ms": 1000}}
TOKENS = ["<blank>", *map(str, range(1, VOCAB))]


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@pytest.mark.parametrize(("left_ms", "ahead_ms"), [(None, 0), (0, 0), (800, 160)])
@torch.no_grad()
def test_stream_equals_masked_forward(device, front_end, left_ms, ahead_ms):
    network = student(front_end).to(device)
    frame_ms = network.encoder_frame_ms
    chunk, left, ahead = 320 // frame_ms, None if left_ms is None else left_ms // frame_ms, ahead_ms // frame_ms
    for seed, samples in enumerate((450, 8000, 50123)):
        audio = speech(samples, seed).to(device)
        whole = masked(network, audio, chunk, left, ahead)
        state = network.initial_state(1, chunk, left, ahead)
        pieces = [network.stream(piece[None], state) for piece in audio.split(1777)]
        stream = torch.cat([*pieces, network.stream(audio[None, :0], state, flush=True)], 1)[0]
        assert stream.shape == whole.shape
        assert (stream.log_softmax(-1) - whole.log_softmax(-1)).abs().max() < 1e-3


def recognised(network: torch.nn.Module, seconds: float, seed: int) -> list[str]:
    """Texts of the results of one stream, whose audio comes in pieces of 0.1 s."""
    stream, results = Recognizer(network, TOKENS, CONFIG).create_stream(), []
    for piece in speech(int(16000 * seconds), seed).split(1600):
        stream.accept(piece)
        results += stream.decode()
    stream.finish()
    return [result["text"] for result in results + stream.decode()]


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_a_stream_recognises_what_it_does_on_the_cpu(device, front_end):
    here = recognised(student(front_end), 4.0, 0)
    assert recognised(student(front_end).to(device), 4.0, 0) == here
    assert len(set(here)) > 5


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_streams_together_recognise_what_each_does_alone(device, front_end):
    network = student(front_end).to(device)
    seconds = [1.0, 2.3, 3.1, 4.0, 4.0]
    recognizer = Recognizer(network, TOKENS, CONFIG)
    streams = [recognizer.create_stream() for _ in seconds]
    audio = [speech(int(16000 * s), seed) for seed, s in enumerate(seconds)]
    texts: list[list[str]] = [[] for _ in seconds]
    for start in range(0, max(map(len, audio)), 1600):
        active = [n for n, x in enumerate(audio) if start < len(x)]
        for n in active:
            streams[n].accept(audio[n][start : start + 1600])
        for n, results in zip(active, recognizer.decode([streams[n] for n in active]), strict=True):
            texts[n] += [result["text"] for result in results]
    for stream in streams:
        stream.finish()
    for n, results in enumerate(recognizer.decode(streams)):
        texts[n].append(results[-1]["text"])
        assert texts[n] == recognised(network, seconds[n], n)
