"""Targets of an utterance do not depend on its batch, and the device is not waited for utterance by utterance."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from far_device import far_device, to_far
from tiny_networks import VOCAB, speech, teacher

from distill.lfmmi import DenominatorGraph
from distill.targets.compute import extract_shard
from distill.targets.wanted import Wanted

LENGTHS = (30000, 16000, 52000, 17000, 8000, 16000, 300, 24000)


class Written:
    """Takes what a shard's writer would store, by utterance and stream."""

    def __init__(self) -> None:
        self.streams: dict[str, dict[str, np.ndarray]] = {}

    def write(self, utterance: str, streams: dict[str, np.ndarray]) -> None:
        self.streams[utterance] = {name: np.array(values) for name, values in streams.items()}

    def update(self, count: int) -> None:
        """Progress."""


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("audio")
    for number, samples in enumerate(LENGTHS):
        soundfile.write(root / f"{number}.wav", speech(samples, number).numpy(), 16000)
    return {f"u{number}": str(root / f"{number}.wav") for number in range(len(LENGTHS))}


def graph() -> DenominatorGraph:
    generator = torch.Generator().manual_seed(0)
    return DenominatorGraph.from_bigram(torch.randn(VOCAB, VOCAB, generator=generator).log_softmax(1))


def extracted(network, audio: dict[str, str], what: Wanted, batch_seconds: float) -> dict[str, dict[str, np.ndarray]]:
    written = Written()
    extract_shard(network, audio, what, graph(), batch_seconds, written, written)
    return written.streams


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("what", [Wanted([1, 3], 20), Wanted([2], 40, top_k=3), Wanted([], 20, nbest=3)])
def test_targets_are_those_of_each_utterance_alone(audio, norm, what):
    changes = {} if norm == "layer" else {"feat_extract_norm": "group", "do_stable_layer_norm": False}
    network = teacher(**changes)
    with torch.no_grad():
        network.output.weight.mul_(8)
    together, alone = (extracted(network, audio, what, seconds) for seconds in (60, 0.001))
    assert list(together) != list(audio) and together.keys() == audio.keys()
    for utterance, streams in alone.items():
        assert streams.keys() == together[utterance].keys() and len(streams) >= 2
        for name, values in streams.items():
            assert together[utterance][name].shape == values.shape
            np.testing.assert_allclose(together[utterance][name], values, atol=2e-4, err_msg=f"{utterance} {name}")
    assert len({len(streams["logits"]) for streams in alone.values()}) > 5


def test_the_device_is_waited_for_by_batch_not_by_utterance(audio):
    what, waits = Wanted([1, 3], 40, top_k=3), {}
    with far_device() as waited:
        network = to_far(teacher())
        for count in (2, len(audio)):
            waited.clear()
            streams = extracted(network, dict(list(audio.items())[:count]), what, 60)
            assert len(streams) == count
            waits[count] = dict(waited)
    assert waits[2] == waits[len(audio)], "one batch each"
    copies = [line for line in waits[2] if line.startswith("distill/checkpoints/device.py")]
    assert len(copies) == 1 and waits[2][copies[0]] == 5, "streams, which are copied while the next batch is computed"
    assert sum(waits[2].values()) <= 5 + 5, waits
