import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.configuration import AugmentConf, ChunkConf, DistillConf, MaskConf, layer_map, read_conf
from distill.errors import UserError
from distill.targets.frames import average_frames
from distill.training import loss_terms
from distill.training.augment import augment, draw_silence, mask_features, pink, surround_with_silence


def test_masked_mse_matches_numpy_and_ignores_padding():
    rng = np.random.default_rng(0)
    student, target = rng.normal(size=(3, 7, 5)), rng.normal(size=(3, 7, 5))
    lengths = [7, 3, 1]
    expected = [((student[b, :n] - target[b, :n]) ** 2).mean() for b, n in enumerate(lengths)]
    student[1, 3:] = 1e6
    got = loss_terms.masked_mse(torch.tensor(student), torch.tensor(target), torch.tensor(lengths))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)


def test_masked_cosine_and_frame_kl_match_numpy():
    rng = np.random.default_rng(0)
    student, target = rng.normal(size=(3, 7, 5)), rng.normal(size=(3, 7, 5))
    lengths = [7, 3, 0]

    def mean(per_frame: np.ndarray) -> list[float]:
        return [per_frame[b, :n].mean() if n else 0.0 for b, n in enumerate(lengths)]

    norm = np.linalg.norm
    cosine = mean(1 - (student * target).sum(-1) / (norm(student, axis=-1) * norm(target, axis=-1)))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (target, student))
    divergence = mean((p * np.log(p / q)).sum(-1))
    tensors = torch.tensor(student), torch.tensor(target), torch.tensor(lengths)
    np.testing.assert_allclose(loss_terms.masked_cosine(*tensors).numpy(), cosine, rtol=1e-10)
    np.testing.assert_allclose(loss_terms.frame_kl(*tensors).numpy(), divergence, rtol=1e-10)
    assert loss_terms.frame_kl(tensors[0], tensors[0], tensors[2]).abs().max() < 1e-12


@pytest.mark.parametrize("loss", [loss_terms.masked_mse, loss_terms.masked_cosine, loss_terms.frame_kl])
def test_padding_gets_no_gradient_even_where_it_is_not_finite(loss):
    student = torch.tensor([0.5, -0.2]).repeat(1, 4, 1).requires_grad_()
    target = torch.ones(1, 4, 2)
    target[0, 2:] = float("inf")
    loss(student, target, torch.tensor([2])).sum().backward()
    assert student.grad is not None
    assert torch.equal(student.grad[0, 2:], torch.zeros(2, 2))
    assert student.grad[0, :2].abs().min() > 0


def test_the_entropy_of_codes_matches_numpy_and_ignores_padding():
    rng = np.random.default_rng(0)
    scores, codes, lengths = rng.normal(size=(3, 7, 2, 5)), rng.integers(0, 5, (3, 7, 2)), [7, 3, 0]
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    of_code = np.take_along_axis(log_probs, codes[..., None], -1)[..., 0]
    expected = [-of_code[b, :n].mean() if n else 0.0 for b, n in enumerate(lengths)]
    student = torch.tensor(scores).flatten(2).requires_grad_()
    got = loss_terms.code_entropy(student, torch.tensor(codes), torch.tensor(lengths))
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-10)
    got.sum().backward()
    assert student.grad is not None and not student.grad[1, 3:].any() and student.grad[1, :3].abs().min() > 0


def test_normalise_frames_matches_numpy():
    h = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32) * 30 + 5
    expected = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(loss_terms.normalise_frames(torch.tensor(h)).numpy(), expected, atol=1e-5)


def test_average_frames_pairs_neighbours_and_drops_the_odd_one():
    x = torch.arange(5.0)[None, :, None].repeat(2, 1, 1)
    pooled, lengths = average_frames(x, torch.tensor([5, 1]), 2)
    assert pooled[0, :, 0].tolist() == [0.5, 2.5]
    assert lengths.tolist() == [2, 1]
    assert pooled[1, 0, 0] == 0.0  # its only frame, not the mean with padding


@pytest.mark.parametrize(
    "student, teacher, expected",
    [
        (12, 24, list(range(2, 25, 2))),
        (12, 12, list(range(1, 13))),
        (3, 6, [2, 4, 6]),
        (10, 24, [2, 4, 7, 9, 12, 14, 16, 19, 21, 24]),
    ],
)
def test_layer_map(student, teacher, expected):
    assert layer_map(student, teacher) == expected


def test_layer_map_refuses_a_deeper_student():
    with pytest.raises(UserError, match="layer_map"):
        layer_map(13, 12)


def test_ctc_is_the_sum_over_all_paths_per_frame():
    log_probs = torch.randn(1, 3, 3).log_softmax(-1)
    total = 0.0
    for path in np.ndindex(3, 3, 3):
        if loss_terms.greedy_tokens(torch.eye(3)[list(path)][None], torch.tensor([3])) == [[1, 2]]:
            total += np.exp(sum(float(log_probs[0, t, k]) for t, k in enumerate(path)))
    got = loss_terms.ctc(log_probs, torch.tensor([3]), torch.tensor([[1, 2]]), torch.tensor([2]))
    np.testing.assert_allclose(float(got), -np.log(total) / 3, rtol=1e-5)


def test_ctc_without_a_path_counts_nothing():
    logits = torch.randn(1, 2, 4, requires_grad=True)
    loss = loss_terms.ctc(logits, torch.tensor([2]), torch.tensor([[1, 1, 2]]), torch.tensor([3]))
    loss.sum().backward()
    assert loss.item() == 0 and torch.isfinite(logits.grad).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bounds_leave_an_alignment_if_there_is_one_and_hold_wherever_tokens_fit_behind_them(data):
    frames, count = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    tokens = torch.tensor([data.draw(st.lists(st.integers(1, 2), min_size=count, max_size=count))])
    starts = torch.tensor([sorted(data.draw(st.lists(st.integers(0, 11), min_size=count, max_size=count)))])
    delay = data.draw(st.integers(0, 6))
    lengths, token_lengths = torch.tensor([frames]), torch.tensor([count])
    earliest = loss_terms.earliest_frames(starts, delay, lengths, token_lengths)
    logits = torch.zeros(1, frames, 3)
    bounded = loss_terms.ctc(logits, lengths, tokens, token_lengths, earliest)
    assert (bounded > 0) == (loss_terms.ctc(logits, lengths, tokens, token_lengths) > 0)
    last = frames - 1 - 2 * (count - 1 - torch.arange(count))
    assert torch.equal(earliest[0], torch.where(starts[0] + delay <= last, starts[0] + delay, last))


def test_ctc_bounded_by_nothing_is_ctc():
    logits = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    of_batch = torch.tensor([9, 6]), torch.tensor([[1, 1, 3], [2, -1, -1]]), torch.tensor([3, 1])
    losses = [loss_terms.ctc(logits, *of_batch, *bound) for bound in ((), (torch.zeros(2, 3, dtype=torch.long),))]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*[torch.autograd.grad(loss.sum(), logits)[0] for loss in losses])


def test_greedy_tokens_and_token_error_rate():
    path = [0, 1, 1, 0, 1, 2, 2, 3]
    logits = torch.eye(4)[path][None]
    assert loss_terms.greedy_tokens(logits, torch.tensor([7])) == [[1, 1, 2]]
    assert loss_terms.token_error_rate([[1, 1, 2], []], [[1, 2], [3]]) == pytest.approx(2 / 3)
    padded, lengths = loss_terms.pad_tokens([[1, 1, 2], []])
    assert padded.tolist() == [[1, 1, 2], [-1, -1, -1]] and lengths.tolist() == [3, 0]


@given(st.integers(0, 2**31), st.floats(-5, 30))
@settings(max_examples=25, deadline=None)
def test_noise_has_the_snr_asked_for_and_leaves_padding_alone(seed, snr):
    torch.manual_seed(seed)
    lengths = torch.tensor([4000, 2500])
    speech = torch.randn(2, 4000).masked_fill(~loss_terms.frame_mask(lengths, 4000), 0.0) * 0.1
    noisy = augment(speech, lengths, AugmentConf(gain_db=0.0, noise_snr_db=snr, prob=1.0))
    noise = noisy - speech
    assert torch.equal(noisy[1, 2500:], torch.zeros(1500))
    measured = 10 * torch.log10(speech.square().sum(1) / noise.square().sum(1))
    torch.testing.assert_close(measured, torch.full((2,), snr), atol=0.05, rtol=0)


@pytest.mark.parametrize("samples", [8191, 9000, 1])
def test_pink_noise_falls_by_ten_decibels_a_decade(samples):
    torch.manual_seed(0)
    noise = pink(torch.randn(64, samples))
    assert noise.shape == (64, samples) and torch.isfinite(noise).all()
    if samples > 1:
        power = torch.fft.rfft(noise).abs().square().mean(0)
        decade = 10 * torch.log10(power[40:50].mean() / power[400:500].mean())
        assert decade.item() == pytest.approx(10, abs=1)


def test_gain_is_bounded_and_silence_stays_silent():
    speech = torch.stack([torch.ones(100), torch.zeros(100)])
    conf = AugmentConf(gain_db=6.0, noise_snr_db=200.0, prob=1.0)
    gains = torch.stack([augment(speech, torch.tensor([100, 100]), conf) for _ in range(50)])
    decibels = 20 * torch.log10(gains[:, 0].mean(-1))
    assert decibels.abs().max() <= 6.01 and decibels.std() > 1
    assert torch.equal(gains[:, 1], torch.zeros(50, 100))


def test_silence_is_as_long_as_asked_for_and_at_times_digital():
    torch.manual_seed(0)
    lengths = torch.tensor([100, 60] * 50)
    speech = torch.ones(100, 100) * loss_terms.frame_mask(lengths, 100)
    surrounded = surround_with_silence(speech, lengths, 300, 200)
    assert surrounded.shape == (100, 600)
    assert not surrounded[1::2, 560:].any()  # the padding
    before = surrounded[:, :300]
    decibels = 20 * torch.log10(before.square().mean(1).sqrt())
    digital = ~before.any(1)
    assert 30 < digital.sum() < 70 and torch.equal(surrounded[digital][:, 300:400], speech[digital])
    assert -101 < decibels[~digital].min() < -90 and -60 < decibels[~digital].max() < -49
    draws = [draw_silence(AugmentConf(silence_s=2.0, prob=0.5), 40) for _ in range(400)]
    totals = [before + after for before, after in draws]
    assert 40 < max(totals) <= 50 and 3 < sum(totals) / 200 < 15  # of the half of the draws that has any
    assert min(sum(before > 0 for before, _ in draws), sum(after > 0 for _, after in draws)) > 80


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_masks_are_as_long_as_asked_for_and_within_the_utterance(seed):
    torch.manual_seed(seed)
    lengths = torch.tensor([400, 100, 3])
    conf = MaskConf(time_ms=200, times_per_s=1.0, bands=2, band_share=0.1)
    masked = mask_features(torch.ones(3, 400, 50), lengths, 10, conf) == 0
    bands = masked.all(1)  # (B, D): hidden in every frame
    assert (bands.sum(1) <= 2 * 5).all()
    stretches = masked.all(2)
    assert (stretches.sum(1) <= torch.tensor([4 * 20, 20, 0])).all()
    assert not stretches[1, 100:].any()
    assert torch.equal(masked, bands[:, None, :] | stretches[:, :, None])


def test_masks_are_drawn_for_every_utterance_and_can_be_left_out():
    torch.manual_seed(0)
    features, lengths = torch.ones(8, 200, 80), torch.full((8,), 200)
    masked = mask_features(features, lengths, 10, MaskConf()) == 0
    assert masked.any((1, 2)).all() and len({tuple(row.flatten().tolist()) for row in masked}) == 8
    assert torch.equal(mask_features(features, lengths, 10, MaskConf(times_per_s=0, bands=0)), features)


def test_masked_stretches_and_bands_are_half_of_the_longest_on_average():
    torch.manual_seed(0)
    features, lengths = torch.ones(2000, 100, 40), torch.full((2000,), 100)
    bands = MaskConf(times_per_s=0, bands=1, band_share=0.5)
    assert (mask_features(features, lengths, 10, bands) == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    stretches = MaskConf(times_per_s=1, time_ms=200, bands=0)
    assert (mask_features(features, lengths, 10, stretches) == 0).float().mean() == pytest.approx(0.1, abs=0.005)


def test_unknown_and_impossible_settings_are_refused():
    with pytest.raises(UserError, match="alfa"):
        read_conf(DistillConf, "distill_conf", {"alfa": 0.5})
    with pytest.raises(UserError, match="target"):
        read_conf(DistillConf, "distill_conf", {"target": "teacher"})
    for kind, section, values in (
        (MaskConf, "mask_conf", {"band_share": 1.5}),
        (MaskConf, "mask_conf", {"time_ms": -1}),
        (AugmentConf, "augment_conf", {"gain_db": [6, -6]}),
        (AugmentConf, "augment_conf", {"silence_s": -1}),
        (AugmentConf, "augment_conf", {"silence_s": "1"}),
        (DistillConf, "distill_conf", {"weight_ctc": -0.1}),
    ):
        with pytest.raises(UserError, match=f"{section}.{next(iter(values))}"):
            read_conf(kind, section, values)
    with pytest.raises(UserError, match="no multiple"):
        ChunkConf(chunk_ms=[170, 190]).range_in_frames(40)
    assert ChunkConf(chunk_ms=[160, 960]).range_in_frames(40) == (4, 24)
    assert ChunkConf(chunk_ms=480).range_in_frames(20) == (24, 24)


def test_chunks_in_frames():
    assert ChunkConf(left_ms=6000).in_frames(24, 40) == (24, 150, 0)
    assert ChunkConf(left_ms=None, hop=0.5).in_frames(24, 20) == (12, None, 12)
    assert ChunkConf(hop=0.25).in_frames(1, 20) == (1, 300, 0)
    limited = ChunkConf(hop=0.5, max_lookahead_ms=120)
    assert limited.in_frames(4, 40) == (2, 150, 2)
    assert limited.in_frames(12, 40) == (9, 150, 3)
    assert ChunkConf(hop=0.5, max_lookahead_ms=0).in_frames(12, 40) == (12, 150, 0)
    for wrong, message in (({"left_ms": -1}, "equal to 0"), ({"hop": 0}, "than 0"), ({"hop": 1.5}, "equal to 1")):
        with pytest.raises(UserError, match=message):
            read_conf(ChunkConf, "chunk_conf", wrong)
