"""Agreement with values of k2 and of a reference in double precision."""

import numpy as np
import pytest
import torch
from small_graphs import golden

from distill.lfmmi import DenominatorGraph, LFMMILoss

FULL = "lfmmi_k2_full.npz"


def tensor(data, key):
    return torch.from_numpy(np.asarray(data[key]))


def graph_of(data, prefix):
    log_p = tensor(data, prefix + "P_W").clone()
    log_p[:, 0] = tensor(data, prefix + "P_final")
    return DenominatorGraph.from_bigram(log_p)


def assert_scores(ours, reference):
    reference = torch.as_tensor(reference)
    assert ((ours - reference).abs() <= 1e-4 + 1e-6 * reference.abs()).all()


def assert_gradients(ours, reference):
    assert float((ours - torch.as_tensor(reference)).abs().max()) <= 1e-5


@pytest.mark.parametrize("case", range(18))
def test_loss(case):
    data, p = golden(FULL), f"c{case:02d}_"
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
def test_divergence(case):
    data, p = golden(FULL), f"k{case:02d}_"
    kappa = float(data[p + "kappa"])
    student, teacher = tensor(data, p + "student").requires_grad_(), tensor(data, p + "teacher")
    crit = LFMMILoss(graph_of(data, p), target="posterior", reduction="none")
    loss = crit(kappa * student, tensor(data, p + "lens").long(), teacher_log_probs=kappa * teacher)
    assert_scores(loss.detach(), data[p + "ref_kl"])
    loss.sum().backward()
    assert_gradients(student.grad, data[p + "ref_kl_grad"])


@pytest.mark.parametrize("reading", ["sum", "exact"])
def test_both_readings_of_back_off(reading):
    data = golden(FULL)
    log_p = tensor(data, f"f00_W_{reading}").clone()
    log_p[:, 0] = tensor(data, f"f00_final_{reading}")
    scores = DenominatorGraph.from_bigram(log_p).score(tensor(data, "f00_log_probs"), tensor(data, "f00_lens").long())
    assert_scores(scores, data[f"f00_ref_den_{reading}"])


@pytest.mark.parametrize("case", range(8))
def test_first_values(case):
    data, p = golden("lfmmi_k2.npz"), f"case{case:02d}_"
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
