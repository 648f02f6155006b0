"""Training steps on the device equal those on the CPU, bf16 is close, and a checkpoint goes on where it was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from small_graphs import random_text
from tiny_networks import CHANNELS, TEACHER, VOCAB, batch, student, teacher
from torch import Tensor

from distill.configuration import ChunkConf, DistillConf
from distill.lfmmi import DenominatorGraph
from distill.training.distill_model import DistillModel

pytestmark = pytest.mark.gpu

TOKENS = ["<blank>", *map(str, range(1, VOCAB))]
STEPS = 4
CONFS = {
    "stage 1": DistillConf(alpha=0.8, beta=0.8, target="pseudo", weight_ctc=0.5),
    "posterior": DistillConf(alpha=0.8, beta=0.8, target="posterior"),
    "transcript": DistillConf(alpha=1.0, beta=1.0, target="transcript", weight_ctc=0.5),
}
CHUNK = ChunkConf(chunk_ms=320, hop=0.5, left_ms=640)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a teacher and a denominator graph."""
    root = tmp_path_factory.mktemp("gpu")
    network = teacher()
    with torch.no_grad():
        network.output.weight.mul_(4)  # so that its best path has tokens
    (root / "teacher").mkdir()
    config = {"network": "teacher", "network_conf": {"config": {**TEACHER, "conv_dim": list(CHANNELS)}}}
    (root / "teacher/config.yaml").write_text(yaml.safe_dump({**config, "token_list": TOKENS, "token_type": "word"}))
    torch.save({f"network.{key}": value for key, value in network.state_dict().items()}, root / "teacher/model.pth")
    DenominatorGraph.from_text(random_text(VOCAB, 60), 2, VOCAB).save(root / "den.npz")
    return root


def build(world: Path, name: str, front_end: str, chunk: ChunkConf | None, exact: bool) -> DistillModel:
    """The model of a training, in training mode; ``exact``: networks in float64."""
    conf = DistillConf(**{**CONFS[name].__dict__, "graph": str(world / "den.npz")})
    model = DistillModel(student(front_end, dropout=0.0), TOKENS, conf, teacher=str(world / "teacher"), chunk=chunk)
    if exact:
        model.network.double()
        model.teachers[0].network(torch.device("cpu")).double()
    return model.train()


def inputs(device: torch.device, exact: bool) -> dict[str, Tensor]:
    speech, lengths = batch([16000, 12345, 8000, 3000])
    text = torch.tensor([[1, 2, 3, 4, 5], [3, 4, 5, -1, -1], [6, 7, -1, -1, -1], [8, -1, -1, -1, -1]])
    on_device = {"text": text.to(device), "text_lengths": (text > 0).sum(1).to(device)}
    return {
        "speech": (speech.double() if exact else speech).to(device),
        "speech_lengths": lengths.to(device),
    } | on_device


def train(
    model: DistillModel, device: torch.device, steps: int, exact: bool = False, bf16: bool = False
) -> tuple[torch.optim.Optimizer, list[float]]:
    """Train and return the optimiser and the loss of each step."""
    model.to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return optimiser, go_on(model, optimiser, device, steps, exact, bf16)


def go_on(
    model: DistillModel,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    steps: int,
    exact: bool = False,
    bf16: bool = False,
) -> list[float]:
    losses = []
    for _ in range(steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _, _ = model(**inputs(device, exact))
        optimiser.zero_grad()
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("chunk", [None, CHUNK], ids=["full", "chunks"])
@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@pytest.mark.parametrize("name", CONFS)
def test_steps(device, world, name, front_end, chunk):
    model = build(world, name, front_end, chunk, exact=False)
    _, losses = train(model, device, STEPS)
    expected_model = build(world, name, front_end, chunk, exact=True)
    _, expected = train(expected_model, torch.device("cpu"), STEPS, exact=True)
    assert losses == pytest.approx(expected, rel=1e-3)
    assert losses[-1] < 0.98 * losses[0]
    start = build(world, name, front_end, chunk, exact=False).state_dict()
    moved = error = 0.0
    for key, value in expected_model.state_dict().items():
        moved += float((value - start[key]).square().sum())
        error += float((model.state_dict()[key].cpu() - value).square().sum())
    assert error**0.5 < 0.01 * moved**0.5


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@pytest.mark.parametrize("name", CONFS)
def test_steps_in_bfloat16(device, world, name, front_end):
    """The same losses, within 3 % before the weights move apart, from float32 weights that stay float32."""
    model = build(world, name, front_end, CHUNK, exact=False)
    optimiser, losses = train(model, device, STEPS, bf16=True)
    _, expected = train(build(world, name, front_end, CHUNK, exact=False), device, STEPS)
    assert losses[0] == pytest.approx(expected[0], rel=0.03) and losses != expected
    assert losses == pytest.approx(expected, rel=0.15)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_checkpoint_goes_on_where_it_was_saved(device, world, tmp_path):
    """Written after two steps, loaded by a new model, whose next steps are those of the one that was not stopped."""
    _, expected = train(build(world, "stage 1", "fbank", None, exact=False), device, STEPS)
    model = build(world, "stage 1", "fbank", None, exact=False)
    optimiser, losses = train(model, device, 2)
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, tmp_path / "checkpoint.pth")
    del model, optimiser
    model = build(world, "stage 1", "fbank", None, exact=False)
    with torch.no_grad():
        model.network.output.weight.zero_()
    model.to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    saved = torch.load(tmp_path / "checkpoint.pth", map_location=device, weights_only=True)
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    assert [*losses, *go_on(model, optimiser, device, STEPS - 2)] == pytest.approx(expected, rel=1e-4)
