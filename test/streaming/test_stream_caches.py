"""Streams whose past is stacked: as many operations for many streams as for one, and each stream's own results."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
import yaml
from far_device import FAR, FarTensor, far_device, to_far
from tiny_networks import CHANNELS, VOCAB, speech, student
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill.streaming import StreamingRecognizer, accept_together

TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]
assert len(TOKENS) == VOCAB
CONFIG = {"token_type": "char", "chunk_conf": {"chunk_ms": 480, "left_ms": 800, "hop": 0.5}}
CHUNK = 3840  # samples from one chunk to the next


def run_alone(network, audio, chunk, left, ahead) -> torch.Tensor:
    """Logits (T, V) of one stream on its own."""
    return network.stream(audio[None], network.initial_state(1, chunk, left, ahead), flush=True)[0]


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@pytest.mark.parametrize(("left", "ahead"), [(16, 0), (None, 3), (0, 2), (5, 4), (None, 0)])
@torch.no_grad()
def test_streams_of_any_phase_that_come_and_go(front_end, left, ahead):
    """At random twelve streams begin, wait, go on in groups of any size, and end; each gives what it gives alone."""
    network, rng = student(front_end), np.random.default_rng(0)
    audio = [speech(int(rng.integers(200, 60000)), n) for n in range(12)]
    waiting, running, done = list(range(12)), {}, {}
    caches, sizes, slices = set(), set(), set()
    step = network.blocks[0].forward

    def look(*arguments, **keywords):
        slices.add(isinstance(keywords["step"].rows, slice))
        return step(*arguments, **keywords)

    network.blocks[0].forward = look
    while waiting or running:
        if waiting and rng.random() < 0.9:
            running[waiting.pop()] = (network.initial_state(1, 4, left, ahead), [0], [])
        for n, (state, position, _) in running.items():
            if rng.random() < 0.6:
                network.receive(audio[n][None, position[0] : position[0] + 4000], state)
                position[0] += 4000
        ready = [n for n, (state, _, _) in running.items() if network.has_chunk(state) and rng.random() < 0.8]
        sizes.add(len(ready))
        if ready:
            chunks = network.stream_together([running[n][0] for n in ready])
            for n, chunk in zip(ready, chunks, strict=True):
                running[n][2].append(chunk)
                caches.add(id(running[n][0].caches))
        for n in [n for n, (_, position, _) in running.items() if position[0] >= len(audio[n])]:
            state, _, pieces = running.pop(n)
            pieces.append(network.stream(audio[n][None, :0], state, flush=True))
            done[n] = torch.cat(pieces, 1)[0]
    assert max(sizes) > 3
    assert slices == ({True} if left is None else {True, False}), "the test should meet both ways to choose slots"
    for n, logits in done.items():
        torch.testing.assert_close(logits, run_alone(network, audio[n], 4, left, ahead), atol=2e-5, rtol=0)


def sessions_after(network, count: int, chunks: int) -> list[StreamingRecognizer]:
    """Sessions that have taken in the same number of chunks, together."""
    sessions = [StreamingRecognizer(network, TOKENS, CONFIG, 480) for _ in range(count)]
    for step in range(chunks + 2):
        pieces = [speech(CHUNK * (chunks + 2), n)[CHUNK * step : CHUNK * (step + 1)] for n in range(count)]
        accept_together(sessions, pieces)
    return sessions


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@torch.no_grad()
def test_a_round_of_many_sessions_takes_as_many_operations_as_one_and_waits_once(front_end):
    """On a device that is not there: the logits of all sessions come back from it in one copy."""
    operations, waits = {}, {}
    for count in (1, 32):
        with far_device() as waited:
            network = to_far(student(front_end))
            sessions = sessions_after(network, count, 5)
            assert sessions[0].stream.state.caches.features.device == FAR
            waited.clear()
            with FarCount() as counted:
                results = accept_together(sessions, [speech(CHUNK, n) for n in range(count)])
            assert all(len(found) == 1 for found in results)
            operations[count], waits[count] = counted.total, dict(waited)
    for waited in waits.values():
        assert [count for line, count in waited.items() if line.endswith("to host")] == [1]
        assert sum(waited.values()) <= 2, "besides, the audio of all sessions may be sent in one copy"
    assert operations[32] < 1.1 * operations[1] and operations[1] > 100, operations


class FarCount(TorchDispatchMode):
    """Counts operations on tensors of the far device."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += any(isinstance(x, FarTensor) for x in tree_leaves((args, kwargs)))
        return function(*args, **(kwargs or {}))


def test_slots_are_given_back_and_taken_again():
    network = student()
    sessions = [StreamingRecognizer(network, TOKENS, CONFIG, 480) for _ in range(6)]
    accept_together(sessions, [speech(3 * CHUNK, n) for n in range(6)])
    caches = sessions[0].stream.state.caches
    assert all(session.stream.state.caches is caches for session in sessions) and caches.used == 6
    slots = caches.slots
    for session in sessions[1:4]:
        session.reset()
    del sessions[4:]
    gc.collect()
    assert caches.used == 1
    accept_together(sessions, [speech(3 * CHUNK, n) for n in range(4)])
    assert caches.used == 4 and caches.slots == slots
    assert len({row for session in sessions for row in session.stream.state.rows}) == 4


def test_sessions_that_were_loaded_one_by_one_can_be_given_together(tmp_path):
    conf = {"front_end": "cnn", "front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2}
    conf |= {"ffn": 48, "kernel": 7}
    config = {"network": "student", "network_conf": conf, "token_list": TOKENS, **CONFIG}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    weights = {f"network.{name}": tensor for name, tensor in student().state_dict().items()}
    torch.save(weights, tmp_path / "model.pth")
    loaded = [StreamingRecognizer.from_pretrained(tmp_path, chunk_ms=480, endpoint_ms=800) for _ in range(3)]
    shared = [loaded[0].new_session() for _ in range(3)]
    audio = [speech(30000, n).numpy() for n in range(3)]
    results = [accept_together(sessions, audio) for sessions in (loaded, shared)]
    texts = [[found[-1]["text"] for found in some] for some in results]
    assert texts[0] == texts[1] and all(texts[0])
