"""Agreement with values that k2 computed (make_golden.py says which)."""

import importlib.util
import os
from pathlib import Path

import make_golden
import numpy as np
import pytest
import torch
from make_golden import CASES, GOLDEN, PAIRS

from distill.lfmmi import DenominatorGraph, LFMMILoss

MORE = Path(os.environ.get("DISTILL_GOLDEN", Path(__file__).parents[3] / "shared/golden"))  # further values, if there
FULL, FIRST = MORE / "lfmmi_k2_full.npz", MORE / "lfmmi_k2.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN))


def tensor(data, key):
    return torch.from_numpy(np.asarray(data[key]))


def assert_scores(computed, reference):
    reference = torch.as_tensor(reference)
    assert ((computed - reference).abs() <= 1e-4 + 1e-6 * reference.abs()).all()


def assert_gradients(computed, reference):
    assert float((computed - torch.as_tensor(reference)).abs().max()) <= 1e-5


def graph_of_case(data, name) -> DenominatorGraph:
    return DenominatorGraph.from_bigram(tensor(data, f"{name}/log_p"))


@pytest.mark.parametrize("name", CASES)
def test_denominator_score_and_occupancies(golden, name):
    x = tensor(golden, f"{name}/log_probs").requires_grad_()
    scores = graph_of_case(golden, name).score(x, tensor(golden, f"{name}/lengths"))
    assert_scores(scores.detach(), golden[f"{name}/den"])
    scores.sum().backward()
    assert_gradients(x.grad, golden[f"{name}/occ_den"])


@pytest.mark.parametrize("den_scale", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient(golden, name, den_scale):
    """-num + den_scale den; an utterance whose transcript has no path counts nothing."""
    x = tensor(golden, f"{name}/log_probs").requires_grad_()
    lengths, tokens = tensor(golden, f"{name}/lengths"), tensor(golden, f"{name}/tokens")
    num, den, occ_num, occ_den = (tensor(golden, f"{name}/{key}") for key in ("num", "den", "occ_num", "occ_den"))
    possible = torch.isfinite(num)
    criterion = LFMMILoss(graph_of_case(golden, name), den_scale=den_scale, reduction="none")
    losses = criterion(x, lengths, tokens, tensor(golden, f"{name}/token_lengths"))
    assert_scores(losses.detach(), (den_scale * den - num).masked_fill(~possible, 0.0))
    losses.sum().backward()
    assert_gradients(x.grad, (den_scale * occ_den - occ_num).masked_fill(~possible[:, None, None], 0.0))
    assert criterion.skipped == int((~possible).sum())


@pytest.mark.parametrize(("teacher", "student"), PAIRS.items())
def test_divergence_from_a_teacher(golden, teacher, student):
    """sum of occ_T (log p_T - log p_S) - den_T + den_S, with gradient occ_S - occ_T."""
    x, reference = (tensor(golden, f"{name}/log_probs") for name in (student, teacher))
    occupancies = [tensor(golden, f"{name}/occ_den") for name in (student, teacher)]
    den = [tensor(golden, f"{name}/den") for name in (student, teacher)]
    expected = (occupancies[1].double() * (reference - x)).sum((1, 2)) - den[1] + den[0]
    x.requires_grad_()
    criterion = LFMMILoss(graph_of_case(golden, student), target="posterior", reduction="none")
    losses = criterion(x, tensor(golden, f"{student}/lengths"), teacher_log_probs=reference)
    assert_scores(losses.detach(), expected)
    losses.sum().backward()
    assert_gradients(x.grad, occupancies[0] - occupancies[1])


def test_the_file_holds_the_inputs_that_make_golden_draws(golden):
    for name, case in CASES.items():
        for key, value in make_golden.inputs(name, case).items():
            np.testing.assert_allclose(golden[f"{name}/{key}"], value, rtol=1e-5, atol=1e-6)


if importlib.util.find_spec("k2"):

    def test_k2_computes_the_values_of_the_file(golden):
        for name, value in make_golden.compute().items():
            np.testing.assert_allclose(value, golden[name], rtol=1e-6, atol=1e-6, err_msg=name)


# ------------------------------------------- values that others computed, where they lie beside the repository
def graph_of(data, prefix):
    log_p = tensor(data, prefix + "P_W").clone()
    log_p[:, 0] = tensor(data, prefix + "P_final")
    return DenominatorGraph.from_bigram(log_p)


if FULL.exists():

    @pytest.mark.parametrize("case", range(18))
    def test_loss_of_further_cases(case):
        data, p = np.load(FULL), f"c{case:02d}_"
        graph = graph_of(data, p)
        x, lengths = tensor(data, p + "log_probs").requires_grad_(), tensor(data, p + "lens").long()
        scores = graph.score(x, lengths)
        assert_scores(scores.detach(), data[p + "ref_den"])
        scores.sum().backward()
        assert_gradients(x.grad, data[p + "ref_occ_den"])

        x.grad = None
        crit = LFMMILoss(graph, den_scale=float(data[p + "den_scale"]), reduction="sum")
        loss = crit(x, lengths, tensor(data, p + "tokens").long(), tensor(data, p + "token_lens").long())
        assert_scores(loss.detach(), tensor(data, p + "ref_loss"))
        loss.backward()
        assert_gradients(x.grad, data[p + "ref_grad"])
        assert crit.skipped == int((~data[p + "feasible"]).sum())

    @pytest.mark.parametrize("case", range(6))
    def test_divergence_of_further_cases(case):
        data, p = np.load(FULL), f"k{case:02d}_"
        kappa = float(data[p + "kappa"])
        student, teacher = tensor(data, p + "student").requires_grad_(), tensor(data, p + "teacher")
        crit = LFMMILoss(graph_of(data, p), target="posterior", reduction="none")
        loss = crit(kappa * student, tensor(data, p + "lens").long(), teacher_log_probs=kappa * teacher)
        assert_scores(loss.detach(), data[p + "ref_kl"])
        loss.sum().backward()
        assert_gradients(student.grad, data[p + "ref_kl_grad"])

    @pytest.mark.parametrize("reading", ["sum", "exact"])
    def test_both_readings_of_back_off(reading):
        data = np.load(FULL)
        log_p = tensor(data, f"f00_W_{reading}").clone()
        log_p[:, 0] = tensor(data, f"f00_final_{reading}")
        scores = DenominatorGraph.from_bigram(log_p).score(
            tensor(data, "f00_log_probs"), tensor(data, "f00_lens").long()
        )
        assert_scores(scores, data[f"f00_ref_den_{reading}"])


if FIRST.exists():

    @pytest.mark.parametrize("case", range(8))
    def test_sums_of_further_cases(case):
        data, p = np.load(FIRST), f"case{case:02d}_"
        graph = DenominatorGraph.from_bigram(tensor(data, p + "bigram"))
        lengths, tokens = tensor(data, p + "lens").long(), tensor(data, p + "tokens").long()
        x = tensor(data, p + "lp").requires_grad_()
        scores = graph.score(x, lengths)
        assert_scores(scores.detach(), data[p + "den"])
        scores.sum().backward()
        assert_gradients(x.grad, data[p + "gden"])

        x.grad = None
        losses = LFMMILoss(graph, reduction="none")(x, lengths, tokens, (tokens >= 0).sum(1))
        assert_scores(losses.detach(), data[p + "den"] - data[p + "num"])
        losses.sum().backward()
        assert_gradients(x.grad, data[p + "gden"] - data[p + "gnum"])
