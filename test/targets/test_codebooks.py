"""Outputs of a teacher as codes: what is lost, and that a decoder which errs is noticed."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.configuration import CODED_TOKENS, CODEWORDS, code_bytes, logit_bytes, top_logits
from distill.errors import UserError
from distill.targets import codebooks as cb


def teacher_frames(count: int, width: int, seed: int) -> torch.Tensor:
    """Frames like a network's: few directions hold most of the variance, and frames are of different size."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(99).normal(size=(width, width)) / np.sqrt(width)
    factors = rng.normal(size=(count, width)) * np.geomspace(3, 0.05, width)
    return torch.from_numpy((factors @ basis + 1) * rng.uniform(0.5, 2.0, (count, 1))).float()


@pytest.fixture(scope="module")
def trained() -> cb.Codebooks:
    layers = {
        2: cb.train_codebooks(1, teacher_frames(3000, 24, 1), 4),
        5: cb.train_codebooks(1, teacher_frames(3000, 24, 2), 4),
    }
    return cb.Codebooks(layers, "T", 20)


def error(x: torch.Tensor, y: torch.Tensor) -> float:
    """Squared error of y, as a share of the variance of x."""
    return float((x - y).square().mean() / (x - x.mean(0)).square().mean())


def test_frames_that_were_not_in_the_sample_are_kept_but_for_a_small_error(trained):
    frames = teacher_frames(500, 24, 7)
    codes = trained.encode(2, frames)
    assert codes.dtype == torch.uint8 and codes.shape == (500, 4)
    assert error(cb.compared(1, frames), trained.decode(2, codes)) < 0.1


def test_logits_of_few_tokens_are_coded_without_their_mean():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(4000, 13)) * 4 + rng.normal(size=(4000, 1)) * 9).float()
    codebooks = cb.Codebooks({cb.LOGITS: cb.train_codebooks(cb.LOGITS, logits[:3000], 5)}, "T", 20)
    decoded = codebooks.decode(cb.LOGITS, codebooks.encode(cb.LOGITS, logits[3000:]))
    assert error(logits[3000:] - logits[3000:].mean(-1, keepdim=True), decoded) < 0.1
    assert float((decoded.argmax(-1) == logits[3000:].argmax(-1)).float().mean()) > 0.85


def test_each_codebook_and_its_place_matter(trained):
    """A decoder that took another codebook, another layer's or codes in another order would be far off."""
    frames = teacher_frames(500, 24, 7)
    x, codes = cb.compared(1, frames), trained.encode(2, frames)
    right = error(x, trained.decode(2, codes))
    assert error(x, trained.decode(5, codes)) > 4 * right
    assert error(x, trained.decode(2, codes.flip(-1))) > 4 * right
    for n in range(4):
        other = codes.clone()
        other[:, n] = (other[:, n].int() + 1).to(torch.uint8)
        assert error(x, trained.decode(2, other)) > 1.2 * right
    partial = cb.summed(trained.layers[2][:3], codes[:, :3].long())
    assert error(x, partial) > right


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_sums_of_codewords_are_coded_as_well_as_by_exhaustive_search(count, frames, width, seed):
    """With so wide a beam no code is better, and the cost that is minimised is the squared error."""
    rng = torch.Generator().manual_seed(seed)
    codewords = torch.randn(count, 5, width, generator=rng)
    x = torch.randn(frames, width, generator=rng)
    flat = codewords.flatten(0, 1)
    products = (flat @ flat.T).reshape(count, 5, count, 5)
    every = torch.cartesian_prod(*[torch.arange(5)] * count).reshape(-1, count)
    best = torch.cdist(x, cb.summed(codewords, every)).square().amin(1)
    found = (x - cb.summed(codewords, cb.search(x, codewords, products, beam=5**count))).square().sum(1)
    assert torch.allclose(found, best, atol=1e-4)
    wider, narrow = (
        float((x - cb.summed(codewords, cb.search(x, codewords, products, beam=b))).square().sum()) for b in (50, 1)
    )
    assert wider <= narrow + 1e-4


def test_the_joint_step_lowers_the_error_of_the_residual_codebooks(monkeypatch):
    frames = teacher_frames(3000, 24, 1)
    x = cb.compared(1, frames)
    errors = []
    for steps in (0, 4):
        monkeypatch.setattr(cb, "JOINT_STEPS", steps)
        codebooks = cb.Codebooks({1: cb.train_codebooks(1, frames, 3)}, "T", 20)
        errors.append(error(x, codebooks.decode(1, codebooks.encode(1, frames))))
    assert errors[1] < 0.97 * errors[0]


def test_least_squares_is_the_solution_of_the_normal_equations():
    rng = torch.Generator().manual_seed(0)
    codes, errors = torch.randint(CODEWORDS, (300, 2), generator=rng), torch.randn(300, 3, generator=rng)
    indicators = torch.zeros(300, 2 * CODEWORDS)
    indicators[torch.arange(300)[:, None], codes + CODEWORDS * torch.arange(2)] = 1
    ridge = torch.cat([indicators, torch.eye(2 * CODEWORDS) * cb.RIDGE**0.5])
    expected = torch.linalg.lstsq(ridge, torch.cat([errors, torch.zeros(2 * CODEWORDS, 3)])).solution
    assert torch.allclose(cb.least_squares(errors, codes).flatten(0, 1), expected, atol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 255, 300])
def test_few_frames_are_enough_to_train_on(count):
    codewords = cb.train_codebooks(1, teacher_frames(count, 16, 0), 2)
    assert codewords.shape == (2, CODEWORDS, 16) and torch.isfinite(codewords).all()


def test_codes_of_a_batch_are_those_of_its_frames(trained):
    frames = teacher_frames(60, 24, 3).reshape(3, 20, 24)
    codes = trained.encode(5, frames)
    assert codes.shape == (3, 20, 4)
    assert torch.equal(codes[1], trained.encode(5, frames[1]))
    assert trained.encode(5, frames[:, :0]).shape == (3, 0, 4)


def test_a_file_of_codebooks_is_the_same_for_the_same_codebooks_and_refused_if_damaged(trained, tmp_path):
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    trained.save(a)
    loaded = cb.Codebooks.load(a)
    loaded.save(b)
    assert a.read_bytes() == b.read_bytes()
    assert (loaded.teacher, loaded.hidden_ms, sorted(loaded.layers)) == ("T", 20, [2, 5])
    frames = teacher_frames(200, 24, 7)
    x = cb.compared(1, frames)
    before, after = (error(x, c.decode(2, c.encode(2, frames))) for c in (trained, loaded))
    assert after == pytest.approx(before, rel=0.01)
    a.write_bytes(a.read_bytes()[:-100])
    for path in (a, tmp_path / "none.npz"):
        with pytest.raises(UserError, match="missing or damaged; extract again"):
            cb.Codebooks.load(path)


def test_files_of_codebooks_are_compressed_and_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "codebooks.npz"
    codebooks = cb.Codebooks({2: torch.arange(512.0).reshape(1, 256, 2)}, "T", 20)
    codebooks.save(path)
    data = path.read_bytes()
    layer = zipfile.ZipFile(path).getinfo("layer_02.npy")
    assert layer.compress_size < 0.9 * layer.file_size
    refused = 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 8]) + data[position + 1 :])
        try:
            layers = cb.Codebooks.load(path).layers
            assert 2 not in layers or torch.equal(layers[2], codebooks.layers[2])
        except UserError:
            refused += 1
    assert refused > 0.9 * layer.compress_size


@given(st.sampled_from([9, 65, 100, 256, 257, 500, 8000]), st.integers(0, 99), st.floats(0.3, 8))
@settings(max_examples=60, deadline=None)
def test_the_kept_tokens_have_their_ids_and_nearly_their_probabilities(vocab_size, seed, scale):
    logits = scale * torch.randn(7, vocab_size, generator=torch.Generator().manual_seed(seed))
    codes = cb.encode_logits(logits)
    kept, _ = top_logits(vocab_size)
    assert vocab_size <= CODED_TOKENS or codes.shape[1] == logit_bytes(vocab_size)
    expected, actual = logits.log_softmax(-1), cb.decode_logits(codes, vocab_size)
    ids = expected.topk(kept).indices
    step = 2 * (expected.neg().clamp(0, cb.LOWEST) * cb.LOWEST).sqrt() / 255 / 2 + 0.01
    apart = (actual - expected.clamp(min=-cb.LOWEST)).abs()
    assert (apart.gather(1, ids) <= step.gather(1, ids)).all()
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, ids, False)
    mean = expected[others].reshape(7, -1).mean(1)
    of_others = actual[others].reshape(7, -1)
    assert (of_others == of_others[:, :1]).all()
    assert torch.allclose(of_others[:, 0], mean.clamp(min=-cb.LOWEST), atol=0.15)


def test_bytes_of_a_frame():
    assert [code_bytes(width) for width in (32, 128, 256, 512, 768, 1024)] == [3, 3, 4, 8, 8, 8]
    assert [logit_bytes(vocab_size) for vocab_size in (3, 13, 30, 64, 65, 500)] == [2, 5, 8, 8, 17, 25]
