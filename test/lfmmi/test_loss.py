"""The three numerators, what cannot be aligned, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from small_graphs import collapse, random_bigram, random_text

from distill.errors import UserError
from distill.lfmmi import DenominatorGraph, LFMMILoss
from distill.lfmmi.loss import spread_occupancies, top_occupancies
from distill.lfmmi.numerator import CTCScore

TOKENS = torch.tensor([[1, 2, 2], [3, -1, -1], [2, 1, -1]])
TOKEN_LENGTHS = torch.tensor([3, 1, 2])
LENGTHS = torch.tensor([9, 5, 7])


def emissions(dtype=torch.double, seed=0, batch=3, frames=9, vocab_size=4):
    return torch.randn(batch, frames, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_numerator_is_ctc_and_a_constant():
    """On normalised log-probabilities num = -ctc_loss + log P(tokens), and so is its gradient through log_softmax."""
    graph = random_bigram(4)
    logits = emissions().requires_grad_()
    loss = LFMMILoss(graph, den_scale=0.0, reduction="sum")(logits.log_softmax(-1), LENGTHS, TOKENS, TOKEN_LENGTHS)
    (gradient,) = torch.autograd.grad(loss, logits)
    ctc = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), TOKENS.clamp(min=0), LENGTHS, TOKEN_LENGTHS, reduction="sum"
    )
    (ctc_gradient,) = torch.autograd.grad(ctc, logits)
    torch.testing.assert_close(loss, ctc - graph.log_prob(TOKENS, TOKEN_LENGTHS).sum())
    torch.testing.assert_close(gradient, ctc_gradient)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("den_scale", [0.0, 0.5, 1.0])
def test_gradient_is_that_of_finite_differences(order, den_scale):
    graph = DenominatorGraph.from_text(random_text(4), order=order, vocab_size=4)
    crit = LFMMILoss(graph, den_scale=den_scale, reduction="none")
    x = emissions().requires_grad_()  # not normalised
    assert torch.autograd.gradcheck(lambda y: crit(y, LENGTHS, TOKENS, TOKEN_LENGTHS), (x,), eps=1e-5, atol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gradient_of_the_divergence_is_that_of_finite_differences(order):
    graph = DenominatorGraph.from_text(random_text(4), order=order, vocab_size=4)
    crit = LFMMILoss(graph, target="posterior", reduction="none")
    x, teacher = emissions(frames=5).requires_grad_(), emissions(frames=5, seed=1)
    lengths = torch.tensor([5, 1, 4])
    assert torch.autograd.gradcheck(lambda y: crit(y, lengths, teacher_log_probs=teacher), (x,), eps=1e-5, atol=1e-7)


def test_numerator_of_large_logits():
    """The gradient is occupancies also where exp(log_probs) has no digits left for them."""
    graph = random_bigram(4)
    crit = LFMMILoss(graph, reduction="none")
    x = emissions().requires_grad_()
    moved = (x.detach() + 500.0).requires_grad_()
    losses, far = crit(x, LENGTHS, TOKENS, TOKEN_LENGTHS), crit(moved, LENGTHS, TOKENS, TOKEN_LENGTHS)
    torch.testing.assert_close(losses, far)
    torch.testing.assert_close(*torch.autograd.grad([losses.sum(), far.sum()], [x, moved]))


@pytest.mark.parametrize("vocab_size,dtype", [(4, torch.double), (90, torch.float32)])
def test_divergence_is_positive_and_zero_at_identity(vocab_size, dtype):
    graph = random_bigram(vocab_size)
    crit = LFMMILoss(graph, target="posterior", reduction="none")
    lengths = torch.tensor([30, 1, 17])
    tolerance = 1e-10 if dtype == torch.double else 1e-3
    for seed in range(10):
        student, teacher = (emissions(dtype, s, 3, 30, vocab_size) for s in (seed, seed + 100))
        assert (crit(student, lengths, teacher_log_probs=teacher) > 0).all()
        student.requires_grad_()
        losses = crit(student, lengths, teacher_log_probs=student.detach())
        (gradient,) = torch.autograd.grad(losses.sum(), student)
        assert losses.abs().max() < tolerance
        assert gradient.abs().max() < (1e-12 if dtype == torch.double else 1e-6)


def test_no_gradient_into_the_teacher():
    crit = LFMMILoss(random_bigram(4), target="posterior", reduction="sum")
    student, teacher = emissions().requires_grad_(), emissions(seed=1).requires_grad_()
    crit(student, LENGTHS, teacher_log_probs=teacher).backward()
    assert teacher.grad is None and student.grad.abs().max() > 0


def test_divergence_over_paths_bounds_that_over_sequences():
    """Brute force: KL(teacher || student) over paths equals the loss, over token sequences is no larger."""
    import itertools

    graph = random_bigram(3)
    student, teacher = emissions(frames=4, batch=1, vocab_size=3), emissions(seed=1, frames=4, batch=1, vocab_size=3)
    paths = list(itertools.product(range(3), repeat=4))

    def distribution(x):
        weights = []
        for path in paths:
            tokens = torch.tensor(collapse(path), dtype=torch.long).reshape(1, -1)
            prior = graph.log_prob(tokens, torch.tensor([tokens.shape[1]]))[0]
            weights.append(prior + sum(x[0, t, k] for t, k in enumerate(path)))
        return torch.stack(weights).softmax(0)

    p, q = distribution(teacher), distribution(student)
    over_paths = (p * (p / q).log()).sum()
    sums = {}
    for path, a, b in zip(paths, p, q, strict=True):
        old = sums.get(tuple(collapse(path)), (0, 0))
        sums[tuple(collapse(path))] = (old[0] + a, old[1] + b)
    over_sequences = sum(a * (a / b).log() for a, b in sums.values())
    loss = LFMMILoss(graph, target="posterior", reduction="none")(student, torch.tensor([4]), teacher_log_probs=teacher)
    torch.testing.assert_close(loss[0], over_paths)
    assert over_sequences < over_paths


def test_what_cannot_be_aligned_counts_nothing():
    log_p = torch.full((4, 4), 0.25).log()
    log_p[1, 3] = float("-inf")
    graph = DenominatorGraph.from_bigram(log_p)
    crit = LFMMILoss(graph, reduction="none")
    x = emissions(batch=6).requires_grad_()
    tokens = torch.tensor([[1, 2, 3], [2, 2, 2], [1, 2, 3], [1, 3, -1], [1, -1, -1], [-1, -1, -1]])
    token_lengths = torch.tensor([3, 3, 3, 2, 1, 0])
    lengths = torch.tensor([9, 4, 2, 9, 0, 9])  # fits, repeats do not fit, too short, no such bigram, no frames, empty
    with torch.no_grad():
        x[5, 3] = float("-inf")  # and a frame that emits nothing
    losses = crit(x, lengths, tokens, token_lengths)
    assert losses[0] > 0 and (losses[1:] == 0).all()
    assert crit.skipped == 5
    losses.sum().backward()
    assert x.grad[0].abs().max() > 0 and (x.grad[1:] == 0).all()

    whole = LFMMILoss(graph, target="posterior", reduction="none")
    other = emissions(batch=6, seed=2).requires_grad_()
    losses = whole(other, torch.full((6,), 9), teacher_log_probs=x.detach())
    losses.sum().backward()
    assert losses[5] == 0 and whole.skipped == 1 and (other.grad[5] == 0).all()
    assert (losses[:5] > 0).all() and torch.isfinite(other.grad).all()


def test_divergence_where_emissions_are_missing():
    """The teacher may rule out what the student allows; the gradient stays finite."""
    crit = LFMMILoss(random_bigram(4), target="posterior", reduction="none")
    student, teacher = emissions().requires_grad_(), emissions(seed=1)
    teacher[:, ::2, 2] = float("-inf")
    losses = crit(student, LENGTHS, teacher_log_probs=teacher)
    losses.sum().backward()
    assert (losses > 0).all() and torch.isfinite(losses).all() and torch.isfinite(student.grad).all()


def test_not_a_number_is_not_swept_under():
    crit = LFMMILoss(random_bigram(4), reduction="none")
    x = emissions()
    x[1, 2, 3] = float("nan")
    losses = crit(x, LENGTHS, TOKENS, TOKEN_LENGTHS)
    assert losses[1].isnan() and losses[[0, 2]].isfinite().all() and crit.skipped == 0


def test_peaky_numerator():
    x = torch.full((1, 40, 4), -200.0)
    x[..., 0] = 0.0  # all blank, and three tokens must go somewhere
    scores = CTCScore.apply(x, torch.tensor([40]), TOKENS[None, :1], TOKEN_LENGTHS[None, :1])
    assert torch.isfinite(scores).all() and scores[0, 0] < -590


def test_empty_transcript():
    x = emissions(batch=1)
    score = CTCScore.apply(x, torch.tensor([9]), torch.empty(1, 1, 0, dtype=torch.long), torch.tensor([[0]]))
    torch.testing.assert_close(score[0, 0], x[0, :, 0].sum())


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_reductions(reduction):
    graph, x = random_bigram(4), emissions()
    each = LFMMILoss(graph, reduction="none")(x, LENGTHS, TOKENS, TOKEN_LENGTHS)
    loss = LFMMILoss(graph, reduction=reduction)(x, LENGTHS, TOKENS, TOKEN_LENGTHS)
    torch.testing.assert_close(loss, {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradient_has_the_type_of_the_input(dtype):
    for target in ("transcript", "posterior"):
        x = emissions(dtype).requires_grad_()
        crit = LFMMILoss(random_bigram(4), target=target, reduction="sum")
        more = {"teacher_log_probs": emissions(dtype, 1)} if target == "posterior" else {}
        crit(x, LENGTHS, *((TOKENS, TOKEN_LENGTHS) if not more else ()), **more).backward()
        assert x.grad.dtype == dtype and x.grad.isfinite().all()


def test_learns_the_transcript():
    """A few steps on logits make the transcript the best path; with den_scale 1 the loss stays positive."""
    graph = random_bigram(4)
    crit = LFMMILoss(graph)
    logits = torch.zeros(3, 9, 4, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = crit(logits.log_softmax(-1), LENGTHS, TOKENS, TOKEN_LENGTHS)
        loss.backward()
        optimiser.step()
    assert 0 < loss.item() < 0.05
    for b in range(3):
        best = collapse(logits[b, : LENGTHS[b]].argmax(-1).tolist())
        assert best == TOKENS[b, : TOKEN_LENGTHS[b]].tolist()


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(tokens=torch.tensor([[1, 4, 2]] * 3)), "from 1 to 3"),
        (dict(tokens=torch.tensor([[1, 0, 2]] * 3)), "from 1 to 3"),
        (dict(tokens=TOKENS[:2]), "3 utterances"),
        (dict(token_lengths=torch.tensor([3, 1, 4])), "lengths"),
        (dict(tokens=None), "needs tokens"),
        (dict(log_probs=torch.zeros(3, 9, 5)), "made for 4 tokens"),
        (dict(lengths=torch.tensor([9, 5, 10])), "from 0 to 9"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    given = dict(log_probs=emissions(), lengths=LENGTHS, tokens=TOKENS, token_lengths=TOKEN_LENGTHS) | change
    with pytest.raises(UserError, match=message) as error:
        LFMMILoss(random_bigram(4))(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [dict(target="best"), dict(reduction="max"), dict(backend="pychain"), dict(target="posterior", den_scale=0.5)],
)
def test_refuses_unknown_settings(arguments):
    with pytest.raises(UserError):
        LFMMILoss(random_bigram(4), **arguments)


def test_divergence_needs_a_teacher_of_its_shape():
    crit = LFMMILoss(random_bigram(4), target="posterior")
    with pytest.raises(UserError, match="teacher_log_probs"):
        crit(emissions(), LENGTHS)
    with pytest.raises(UserError, match="teacher_log_probs"):
        crit(emissions(), LENGTHS, teacher_log_probs=emissions(frames=8))


@pytest.mark.parametrize("order", [2, 3])
def test_all_occupancies_of_the_teacher_have_the_gradient_of_the_divergence(order):
    graph = DenominatorGraph.from_text(random_text(4), order=order, vocab_size=4)
    crit = LFMMILoss(graph, target="posterior", reduction="none")
    x, teacher = emissions().log_softmax(-1).requires_grad_(), emissions(seed=1).log_softmax(-1)
    divergence = crit(x, LENGTHS, teacher_log_probs=teacher)
    gamma = spread_occupancies(*top_occupancies(graph, teacher, LENGTHS, 4), 4)
    entropy = crit(teacher, LENGTHS, teacher_occupancies=gamma)
    cross = crit(x, LENGTHS, teacher_occupancies=gamma)
    torch.testing.assert_close(cross, divergence + entropy)
    expected, found = (torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in (divergence, cross))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_the_top_occupancies_leave_is_shared_by_the_others(count):
    graph, teacher = random_bigram(4), emissions(seed=1).log_softmax(-1)
    tokens, values = top_occupancies(graph, teacher, LENGTHS, count)
    whole = spread_occupancies(*top_occupancies(graph, teacher, LENGTHS, 4), 4)
    spread = spread_occupancies(tokens, values, 4)
    torch.testing.assert_close(spread.gather(-1, tokens), whole.gather(-1, tokens))
    for b, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(spread[b, :length].sum(-1), spread.new_ones(length))
        assert (spread[b, length:] == 0).all()
        kept = set(tokens[b, 0].tolist())
        rest = {round(spread[b, 0, v].item(), 12) for v in range(4) if v not in kept}
        assert len(rest) == 1


def test_a_teacher_without_a_path_counts_nothing():
    crit = LFMMILoss(random_bigram(4), target="posterior", reduction="none")
    gamma = torch.full((3, 9, 4), 0.25)
    gamma[1] = 0
    x = emissions().requires_grad_()
    losses = crit(x, LENGTHS, teacher_occupancies=gamma)
    assert losses[1] == 0 and crit.skipped == 1 and (losses[[0, 2]] > 0).all()
    losses.sum().backward()
    assert (x.grad[1] == 0).all() and (x.grad[0] != 0).any()


def test_several_numerators_are_averaged_by_their_weights():
    crit = LFMMILoss(random_bigram(4), target="pseudo", reduction="none")
    x = emissions().log_softmax(-1).requires_grad_()
    others, other_lengths = TOKENS.flip(0), TOKEN_LENGTHS.flip(0)
    one, other = crit(x, LENGTHS, TOKENS, TOKEN_LENGTHS), crit(x, LENGTHS, others, other_lengths)
    tokens, lengths = torch.stack([TOKENS, others], 1), torch.stack([TOKEN_LENGTHS, other_lengths], 1)
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])
    both = crit(x, LENGTHS, tokens, lengths, weights=weights)
    torch.testing.assert_close(both, one * weights[:, 0] + other * weights[:, 1])
    assert torch.autograd.gradcheck(
        lambda y: crit(y, LENGTHS, tokens, lengths, weights=weights),
        (emissions().requires_grad_(),),
        eps=1e-5,
        atol=1e-7,
    )


def test_a_sequence_that_does_not_fit_leaves_its_weight_to_the_others():
    crit = LFMMILoss(random_bigram(4), target="pseudo", reduction="none")
    x, short = emissions(batch=2, frames=2), torch.tensor([2, 2])
    tokens, lengths = torch.tensor([[[1, 1, 1], [2, -1, -1]]] * 2), torch.tensor([[3, 1], [3, 1]])
    weights = torch.tensor([[0.9, 0.1], [1.0, 0.0]])
    losses = crit(x, short, tokens, lengths, weights=weights)
    alone = crit(x, short, torch.tensor([[2], [2]]), torch.tensor([1, 1]))
    torch.testing.assert_close(losses, torch.stack([alone[0], torch.zeros_like(alone[0])]))
    assert crit.skipped == 1
