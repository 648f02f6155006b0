"""A training step on a device that is not the CPU: the same loss and gradients, and how often the host waits for it."""

from collections import Counter

import numpy as np
import pytest
import torch
from far_device import far_device, to_far
from tiny_training import STUDENT, TEACHER, changed, speech_of

from distill.targets.frames import average_frames
from distill.targets.nbest import pack
from distill.training.distill_model import DistillModel
from distill.training.distill_task import DistillTask

MOST_WAITS = 3  # in a step, whatever it is trained on
AUGMENTED = {
    "augment_conf": {"gain_db": 6, "noise_snr_db": [10, 40], "prob": 0.7, "silence_s": 2.0},
    "mask_conf": {"times_per_s": 8.0},
}
FBANK = {"front_end": "fbank", "front_end_conf": {"channels": 16}}


def build(world, config, *options) -> DistillModel:
    torch.manual_seed(0)
    arguments = DistillTask.get_parser().parse_args(world.command("unused", config, *options))
    return DistillTask.build_model(arguments).train()


def batch_of(world, **streams):
    speech, lengths = speech_of(world)
    text = torch.tensor([[2, 3, 4], [3, 2, -1], [4, -1, -1], [2, 4, -1]])
    return {
        "speech": speech,
        "speech_lengths": lengths,
        "text": text,
        "text_lengths": (text >= 0).sum(1),
        "utt_id": [f"utterance{i}" for i in range(len(speech))],
        **streams,
    }


def loss_and_gradients(model, batch, seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    model.zero_grad()
    loss, stats, _ = model(**batch)
    loss.sum().backward()
    return stats, {name: parameter.grad for name, parameter in model.named_parameters()}


def waits_of_a_step(model, batch) -> Counter:
    """Waits of the fifth step; the loss and gradients of the first are compared with the CPU's.

    After steps 1, 2, 4, 8, ... the loss waits once more, to see whether the LF-MMI leaves utterances out.
    """
    for source in model.teachers:
        if not source.stored:
            source.network(torch.device("cpu"))  # loading it takes random numbers
    expected, expected_gradients = loss_and_gradients(model, batch, 1)
    with far_device() as waits:
        to_far(model)
        for source in model.teachers:
            for network in source._loaded:
                to_far(network)
        model.criterion._mmi.clear()
        far_batch = {name: to_far(x) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        stats, gradients = loss_and_gradients(model, far_batch, 1)
        for name, value in expected.items():
            assert stats[name].near.item() == pytest.approx(value.item(), rel=1e-4), name
        for name, gradient in expected_gradients.items():
            if gradient is not None:
                difference = (gradients[name].near - gradient).abs().max()
                assert difference <= 1e-5 + 1e-3 * gradient.abs().max(), name
        for seed in (2, 3):
            loss_and_gradients(model, far_batch, seed)
        waits.clear()
        loss_and_gradients(model, far_batch, 4)
    return waits


TARGETS = {
    "pseudo": {"target": "pseudo"},
    "bounded": {"target": "pseudo", "token_delay_ms": 40.0},
    "transcript": {"target": "transcript"},
    "posterior": {"target": "posterior"},
    "top_k": {"target": "posterior", "posterior_top_k": 2},
    "frame_kl": {"target": "frame_kl"},
    "hidden and logits": {"target": "none"},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "sections",
    [{}, {"network_conf": FBANK}, {"chunk_conf": {"chunk_ms": [160, 480], "hop": 0.5}}],
    ids=["cnn", "fbank", "chunks"],
)
def test_a_step_with_an_online_teacher(world, teacher, target, sections):
    config = changed(STUDENT, **sections, **AUGMENTED, distill_conf={**TARGETS[target], "weight_ctc": 0.5})
    waits = waits_of_a_step(build(world, config, "--teacher", str(teacher)), batch_of(world))
    assert sum(waits.values()) <= MOST_WAITS, waits


@pytest.mark.parametrize("target", [*TARGETS, "nbest", "bounded nbest"])
def test_a_step_with_stored_targets(world, teacher, stored, target):
    conf = {**TARGETS.get(target, {"target": "pseudo", "nbest": 2}), "weight_ctc": 0.5}
    if target.startswith("bounded"):
        conf["token_delay_ms"] = 40.0
    model = build(world, changed(STUDENT, **AUGMENTED, distill_conf=conf), "--teacher", str(teacher), *stored)
    batch = batch_of(world)
    frames = torch.tensor([model.network.frames(n) for n in batch["speech_lengths"].tolist()])
    generator = torch.Generator().manual_seed(0)

    def stream(width):
        return torch.randn(len(frames), int(frames.max()), width, generator=generator)

    streams = {"teacher_logits": stream(6), **{f"teacher_hidden_0{layer}": stream(24) for layer in (2, 4)}}
    if target == "top_k":
        streams |= {
            "teacher_posterior_ids": torch.tensor([3, 0]).expand(len(frames), int(frames.max()), 2).clone(),
            "teacher_posterior": stream(2).sigmoid() / 2,
        }
    streams |= {f"{name}_lengths": frames for name in streams}
    if target.endswith("nbest"):
        rows = [pack(torch.tensor([[2, 3], [4, 0]]), torch.tensor([2, 1]), torch.tensor([0.7, 0.3]))] * len(frames)
        streams["teacher_nbest"] = torch.from_numpy(np.stack(rows))
        streams["teacher_nbest_lengths"] = torch.tensor([len(row) for row in rows])
    waits = waits_of_a_step(model, {**batch, **streams})
    assert sum(waits.values()) <= MOST_WAITS, waits


def test_a_step_of_a_teacher_whose_frames_and_features_are_masked(world):
    config = changed(TEACHER, **{"augment_conf": AUGMENTED["augment_conf"]})
    masks = {"mask_time_prob": 0.3, "mask_time_length": 3, "mask_feature_prob": 0.3, "mask_feature_length": 4}
    config["network_conf"]["config"] |= masks
    config["distill_conf"] = {"target": "transcript", "weight_ctc": 0.5}
    model = build(world, config)
    waits = waits_of_a_step(model, batch_of(world))
    assert sum(waits.values()) <= MOST_WAITS, waits


def test_what_waits_is_counted():
    x = torch.arange(6.0)
    with far_device() as waits:
        far = to_far(x)
        far.sum().item()
        far.tolist()
        bool((far > 3).any())
        far[far > 3]
        far.cpu()
        torch.tensor([1.0, 2.0], device=far.device)
        x.to(far.device)
        assert sum(waits.values()) == 7
        x.pin_memory().to(far.device, non_blocking=True)
        far[far > 3] = 0.0
        torch.where(far > 1, far, far + 1).masked_fill(far > 2, 0.0)
        torch.zeros(3, device=far.device)
        assert sum(waits.values()) == 7
        with pytest.raises(RuntimeError, match="two devices"):
            far + x


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_averaging_frames_of_short_utterances(frames):
    x, lengths = torch.randn(3, frames, 2), torch.tensor([frames, 1, min(2, frames)])
    pooled, counts = average_frames(x, lengths, 2)
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        assert count == max(1, length // 2)
        expected = x[row, :2].mean(0) if length >= 2 else x[row, 0]
        torch.testing.assert_close(pooled[row, 0], expected)
