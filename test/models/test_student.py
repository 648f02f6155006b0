"""The student: what it may see, what may not change its output, and what it takes over from a teacher."""

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import CHANNELS, TEACHER, VOCAB, batch, speech, student, teacher

from distill.errors import UserError
from distill.models.student import Student
from distill.models.teacher import Teacher

CONF = Path(__file__).parents[2] / "conf" / "students"
# Million parameters as published for S1 ... S5; F is ours and has at most 22.
PUBLISHED = {"s1": 95, "s2": 44, "s3": 27, "s4": 23, "s5": 22}


@pytest.mark.parametrize("name", [*PUBLISHED, "f"])
def test_parameters_of_the_configurations(name):
    conf = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    with torch.device("meta"):
        network = Student(32, **conf["network_conf"])
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    print(f"{name}: {millions:.1f} M")
    assert f"{millions:.1f} M" in (CONF / f"{name}.yaml").read_text()
    if name == "f":
        assert millions <= 22
    else:
        assert abs(millions - PUBLISHED[name]) <= 0.12 * PUBLISHED[name]


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@pytest.mark.parametrize(("chunk", "left", "ahead"), [(None, None, 0), (4, None, 0), (4, 3, 0), (4, 3, 2)])
@torch.no_grad()
def test_padding_and_batch_change_nothing(front_end, chunk, left, ahead):
    network = student(front_end)
    samples = [16000, 300, 7777, 1200]
    audio, lengths = batch(samples)
    together = network(audio, lengths, chunk, left, ahead)
    assert together.logits.shape == (4, int(together.lengths.max()), VOCAB)
    for b, n in enumerate(samples):
        alone = network(audio[b : b + 1, :n], lengths[b : b + 1], chunk, left, ahead)
        frames = network.frames(n)
        assert together.lengths[b] == alone.lengths[0] == frames == alone.logits.shape[1]
        torch.testing.assert_close(together.logits[b, :frames], alone.logits[0], atol=1e-5, rtol=0)
        frames //= network.logits_per_frame
        assert together.hidden_lengths[b] == frames
        for batched, single in zip(together.hidden, alone.hidden, strict=True):
            torch.testing.assert_close(batched[b, :frames], single[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 31999), chunk=st.sampled_from([1, 4, 8, 12]), ahead=st.sampled_from([0, 1, 5]))
@torch.no_grad()
def test_no_chunk_sees_beyond_its_end_and_the_look_ahead(front_end, position, chunk, ahead):
    network = student(front_end)
    audio = speech(32000)[None]
    changed = audio.clone()
    changed[0, position] += 0.5
    lengths = torch.tensor([32000])
    before, after = (network(x, lengths, chunk, None, ahead).logits for x in (audio, changed))
    difference = (before - after).abs().amax((0, 2)).view(-1, network.logits_per_frame).amax(1)
    hop = network.front_end.hop
    first_allowed = max(0, position - network.lookahead_samples - ahead * hop) // (chunk * hop) * chunk
    assert (difference[:first_allowed] < 1e-6).all()


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
@torch.no_grad()
def test_a_chunk_sees_all_of_itself_and_its_history(front_end):
    """That the last sample of a chunk reaches the chunk's first frame, and old audio the present."""
    network = student(front_end, logits_per_frame=1)  # so that logits are counted as chunks are
    audio = speech(32000)[None]
    lengths = torch.tensor([32000])
    chunk, hop = 8, network.front_end.hop
    reference = network(audio, lengths, chunk).logits
    changed = audio.clone()
    changed[0, 2 * chunk * hop - 1] += 0.5
    assert (network(changed, lengths, chunk).logits - reference)[0, chunk].abs().max() > 1e-4
    # with look-ahead also the last sample of that, and not the next one
    ahead = network(audio, lengths, chunk, None, 3).logits
    for sample, seen in (((2 * chunk + 3) * hop - 1, True), ((2 * chunk + 3) * hop + network.lookahead_samples, False)):
        changed = audio.clone()
        changed[0, sample] += 0.5
        moved = (network(changed, lengths, chunk, None, 3).logits - ahead)[0, chunk : 2 * chunk].abs().max()
        assert moved > 1e-4 if seen else moved < 1e-6
    changed = audio.clone()
    changed[0, :hop] *= 3
    assert (network(changed, lengths, chunk).logits - reference)[0, -1].abs().max() > 1e-6
    # three layers of 2 frames of history and kernels of 7 do not reach the beginning
    near = network(audio, lengths, 2, 2).logits - network(changed, lengths, 2, 2).logits
    reach = 3 * (2 + 2 + 6) + 4
    if near.shape[1] > reach:
        assert near[0, reach:].abs().max() < 1e-6


@torch.no_grad()
def test_takes_over_the_cnn_and_the_prediction_layer():
    source = teacher()
    for p in source.parameters():
        p.add_(0.01 * torch.randn_like(p))
    target = student()
    report = target.init_from_teacher(source)
    assert len(report) == 4 and all("not copied" not in line for line in report)
    cnn = source.encoder.feature_extractor.state_dict()
    assert all(torch.equal(value, cnn[name]) for name, value in target.front_end.state_dict().items())
    assert torch.equal(target.output.weight, source.output.weight)
    audio, lengths = batch([5000])
    torch.testing.assert_close(target.front_end(audio, lengths)[0], source._features(audio), atol=1e-5, rtol=0)
    of_other_tokens = student()
    before = of_other_tokens.output.weight.clone()
    report = of_other_tokens.init_from_teacher(source, same_tokens=False)
    assert report[3] == "prediction layer: not copied, the teacher has other tokens" and "not" not in report[0]
    assert torch.equal(of_other_tokens.output.weight, before)


def test_reports_what_does_not_fit():
    narrow = student(front_end_conf={"channels": (4,) * 7}, width=16)
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    report = narrow.init_from_teacher(teacher())
    assert len(report) == 4 and all("not copied" in line for line in report)
    assert "(8, 1, 10) in the teacher and (4, 1, 10) here" in report[0]
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())
    group = Teacher(VOCAB, {**TEACHER, "feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False})
    assert "not copied" in student().init_from_teacher(group)[0]
    assert "not copied" in student("fbank").init_from_teacher(teacher())[0]


@torch.no_grad()
def test_a_cnn_copied_from_a_teacher_that_normalises_expects_audio_of_the_level_given():
    source = Teacher(VOCAB, TEACHER, normalize=True).eval()
    for layer in source.encoder.feature_extractor.conv_layers:
        layer.conv.bias.normal_()  # without a bias the layer norm would hide the level
    quiet, lengths = 0.05 * speech(8000)[None], torch.tensor([8000])
    level = float(quiet.square().mean().sqrt())
    target = student()
    assert f"level {level:.3g}" in target.init_from_teacher(source, level)[-1]
    expected = source._features((quiet - quiet.mean()) / quiet.std())
    torch.testing.assert_close(target.front_end(quiet, lengths)[0], expected, atol=1e-2, rtol=1e-2)
    target.init_from_teacher(source, 1.0)
    assert (target.front_end(quiet, lengths)[0] - expected).abs().max() > 0.1
    with pytest.raises(ValueError, match="level"):
        target.init_from_teacher(source)


@torch.no_grad()
def test_a_mask_applies_to_the_log_mel_and_to_what_the_cnn_puts_out():
    for front_end, hop, bins in (("fbank", 160, 80), ("cnn", 320, 16)):
        seen = []

        def mask(features, frame_samples, seen=seen):
            seen.append((features.shape[2], frame_samples))
            return torch.zeros_like(features)

        network = student(front_end)
        first, second = (network(speech(8000, seed)[None], torch.tensor([8000]), mask=mask).logits for seed in (0, 1))
        assert seen == [(bins, hop)] * 2
        torch.testing.assert_close(first, second)


@torch.no_grad()
def test_a_log_mel_student_puts_out_two_logit_frames_for_each_encoder_frame():
    network = student("fbank")
    assert (network.logits_per_frame, network.frame_ms, network.encoder_frame_ms) == (2, 20, 40)
    output = network(*batch([16000]))
    frames = int(output.hidden_lengths)
    assert output.lengths == 2 * frames and output.logits.shape == (1, 2 * frames, VOCAB)
    first, second = (
        torch.nn.functional.linear(output.hidden[-1], weight, bias)
        for weight, bias in zip(network.output.weight.chunk(2), network.output.bias.chunk(2), strict=True)
    )
    torch.testing.assert_close(output.logits[:, 0::2], first)
    torch.testing.assert_close(output.logits[:, 1::2], second)
    assert (first - second).abs().max() > 0.1
    one = student("fbank", logits_per_frame=1)
    assert one.frame_ms == 40 and one(*batch([16000])).logits.shape == (1, frames, VOCAB)


def test_bad_configurations_are_refused():
    with pytest.raises(UserError, match="logits_per_frame: 3 does not divide a frame of 40 ms"):
        student("fbank", logits_per_frame=3)
    with pytest.raises(UserError, match="front_end"):
        Student(5, "mfcc")
    with pytest.raises(UserError, match="heads"):
        Student(5, front_end_conf={"channels": CHANNELS}, width=30, heads=4)


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_blocks_begin_close_to_the_identity(front_end):
    """With large first weights a student learns from transcripts alone in two to three times as many steps."""
    torch.manual_seed(0)
    channels = {"channels": CHANNELS} if front_end == "cnn" else {"channels": 32}
    network = Student(VOCAB, front_end, channels, width=64, heads=2).eval()
    audio, lengths = speech(8000)[None], torch.tensor([8000])
    first = torch.nn.functional.layer_norm(network.features(audio, lengths)[0], (64,))
    last = network(audio, lengths).hidden[-1]
    assert torch.nn.functional.cosine_similarity(first, last, dim=-1).mean() > 0.8


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_learns_from_scratch(front_end):
    """Three tones at Adam's 1e-3 within a few dozen steps, gradients finite through masked padding."""
    network = student(front_end, dropout=0.0).train()
    time = torch.arange(8000) / 16000
    audio = torch.stack([0.3 * torch.sin(2 * torch.pi * hertz * time) for hertz in (300, 900, 2000)])
    lengths = torch.tensor([8000, 6000, 7000])
    audio = audio * (torch.arange(8000) < lengths[:, None])
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(60):
        output = network(audio, lengths, 4, 8)
        loss = sum(
            torch.nn.functional.cross_entropy(output.logits[b, :n], torch.full((n,), b + 1))
            for b, n in enumerate(output.lengths.tolist())
        )
        optimiser.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())
        optimiser.step()
    assert loss.item() < 0.3
