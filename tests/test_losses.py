"""The page of losses, against numbers a person can redo and against autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cql import losses

LN2 = math.log(2)


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def test_td_target_by_hand():
    # one member, three transitions: ordinary, terminated (its next value must not count), truncated (it must)
    target = losses.td_target(tensor([[-1.0, 50.0, -1.0]]), torch.tensor([[False, True, False]]),
                              tensor([[10.0, 999.0, 20.0]]), gamma=0.5)
    assert target.tolist() == [[4.0, 50.0, 9.0]]


def test_td_target_is_not_poisoned_by_a_masked_infinity():
    target = losses.td_target(tensor([[1.0]]), torch.tensor([[True]]), tensor([[-math.inf]]), gamma=0.9)
    assert target.item() == 1.0


@pytest.mark.parametrize("name, expected", [("mse", (9 + 0.25) / 2), ("half_mse", (9 + 0.25) / 4),
                                            ("huber", (2.5 + 0.125) / 2)])
def test_td_losses_by_hand(name, expected):
    # Q(s,a) = 3 and 0.5 against targets 0 and 0: residuals 3 and 1/2
    q = tensor([[[3.0, 0.0], [0.0, 0.5]]])
    terms = losses.cql_loss(q, torch.tensor([[0, 1]]), tensor([[0.0, 0.0]]), tensor([0.0]), name)
    assert terms.td.item() == pytest.approx(expected, abs=1e-12)


def test_cql_terms_by_hand():
    # Member 0: Q = (0, 0), logged 0: logsumexp = ln 2, penalty ln 2.
    # Member 1: Q = (ln 3, 0), logged 1: logsumexp = ln 4, penalty ln 4.
    q = tensor([[[0.0, 0.0]], [[math.log(3), 0.0]]])
    terms = losses.cql_loss(q, torch.tensor([[0], [1]]), tensor([[1.0], [2.0]]), tensor([6.0, 0.5]))
    assert terms.td.tolist() == pytest.approx([1.0, 4.0])
    assert terms.penalty.tolist() == pytest.approx([LN2, 2 * LN2])
    assert terms.total.tolist() == pytest.approx([1 + 6 * LN2, 4 + LN2])


def test_gradient_by_hand():
    # Q = (0, 0), logged 0, y = 1, alpha = 6: TD slope -2 on the logged action, penalty 6 * (1/2 - 1, 1/2)
    gradient = losses.cql_gradient(tensor([[[0.0, 0.0]]]), torch.tensor([[0]]), tensor([[1.0]]), tensor([6.0]))
    assert gradient.tolist() == [[[-5.0, 3.0]]]


def test_weights_replace_the_mean():
    q, actions = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([[0, 1, 2], [3, 3, 0]])
    targets, alpha = torch.randn(2, 3, dtype=torch.float64), tensor([1.0, 7.0])
    counts = torch.tensor([[1, 2, 5], [4, 3, 1]])
    repeat = [torch.arange(3).repeat_interleave(c) for c in counts]  # the same transitions, written out count times
    long = torch.stack([q[m, repeat[m]] for m in range(2)]), torch.stack([actions[m, repeat[m]] for m in range(2)]), (
        torch.stack([targets[m, repeat[m]] for m in range(2)]))
    weighted = losses.cql_loss(q, actions, targets, alpha, weights=counts / 8.0)
    for mine, theirs in zip(weighted, losses.cql_loss(*long, alpha)):
        torch.testing.assert_close(mine, theirs)


def random_case(seed, dtype):
    g = torch.Generator().manual_seed(seed)
    m, b, a = (int(torch.randint(1, high, (1,), generator=g)) for high in (5, 8, 6))
    q = (torch.randn(m, b, a, generator=g, dtype=torch.float64) * 3).to(dtype)
    actions = torch.randint(0, a, (m, b), generator=g)
    # the scale of the residual is kept moderate, so that float32 is asked for its own precision and no more
    targets = (q.gather(-1, actions[..., None])[..., 0] + torch.randn(m, b, generator=g, dtype=torch.float64)).to(dtype)
    alpha = (torch.rand(m, generator=g, dtype=torch.float64) * 10).to(dtype)
    weights = torch.rand(m, b, generator=g, dtype=torch.float64)
    return q, actions, targets, alpha, (weights / weights.sum(-1, keepdim=True)).to(dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("td_loss", losses.TD_LOSSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), weighted=st.booleans())
def test_closed_form_gradient_is_autograds(dtype, tolerance, td_loss, seed, weighted):
    q, actions, targets, alpha, weights = random_case(seed, dtype)
    weights = weights if weighted else None
    leaf = q.clone().requires_grad_()
    losses.cql_loss(leaf, actions, targets, alpha, td_loss, weights=weights).total.sum().backward()
    closed = losses.cql_gradient(q, actions, targets, alpha, td_loss, weights)
    # of what is added up: terms of alpha's size may cancel
    size = max(1, leaf.grad.abs().max().item(), alpha.max().item())
    assert (closed - leaf.grad).abs().max() <= tolerance * size


def test_alpha_zero_is_plain_q_learning():
    q, actions, targets, alpha, _ = random_case(3, torch.float64)
    terms = losses.cql_loss(q, actions, targets, torch.zeros_like(alpha))
    residual = q.gather(-1, actions[..., None])[..., 0] - targets
    torch.testing.assert_close(terms.total, (residual**2).mean(-1))
    gradient = losses.cql_gradient(q, actions, targets, torch.zeros_like(alpha))
    untaken = torch.ones_like(q, dtype=torch.bool).scatter(-1, actions[..., None], False)
    assert (gradient[untaken] == 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_penalty_is_cross_entropy_with_q_as_logits(seed):
    q, actions, targets, alpha, _ = random_case(seed, torch.float64)
    penalty = losses.cql_loss(q, actions, targets, alpha).penalty
    torch.testing.assert_close(penalty, losses.bc_loss(q, actions))
    reference = torch.stack([torch.nn.functional.cross_entropy(q[m], actions[m]) for m in range(len(q))])
    torch.testing.assert_close(penalty, reference)
    assert (penalty >= -1e-12).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_minimum_of_bc_is_the_entropy_of_the_data(seed):
    actions = torch.randint(0, 3, (1, 50), generator=torch.Generator().manual_seed(seed))
    share = torch.bincount(actions[0], minlength=3).double() / 50
    logits = share.clamp_min(1e-300).log().expand(1, 50, 3).clone().requires_grad_()
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    loss = losses.bc_loss(logits, actions)
    torch.testing.assert_close(loss.detach(), entropy[None])
    loss.backward()
    assert logits.grad.sum(1).abs().max() < 1e-12


def test_the_penalty_survives_large_values():
    q = tensor([[[1e4, -1e4, 0.0]]], torch.float32)
    assert losses.conservative_penalty(q, torch.tensor([[1]])).item() == pytest.approx(2e4)
    assert torch.isfinite(losses.cql_gradient(q, torch.tensor([[1]]), tensor([[0.0]], torch.float32),
                                              tensor([6.0], torch.float32))).all()


@pytest.mark.parametrize("wrong", [
    lambda: losses.td_target(torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.bool), torch.zeros(2, 3), 0.9),
    lambda: losses.cql_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2), torch.zeros(2)),
    lambda: losses.cql_loss(torch.zeros(2, 3, 4), torch.zeros(3).long(), torch.zeros(2, 3), torch.zeros(2)),
    lambda: losses.cql_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 3), torch.zeros(1)),
    lambda: losses.cql_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 3), torch.zeros(2),
                            weights=torch.zeros(3)),
    lambda: losses.cql_gradient(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 1), torch.zeros(2)),
    lambda: losses.cql_gradient(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 3), torch.zeros(1)),
    lambda: losses.cql_gradient(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 3), torch.zeros(2),
                                weights=torch.zeros(2, 1)),
])
def test_shapes_that_would_broadcast_are_refused(wrong):
    with pytest.raises(AssertionError):
        wrong()


def test_unknown_td_loss_is_refused():
    with pytest.raises(ValueError, match="td_loss must be one of"):
        losses.td_losses(torch.zeros(1, 1), "mae")


def test_an_unknown_penalty_is_refused():
    with pytest.raises(ValueError, match="penalty must be one of logsumexp, rho"):
        losses.conservative_penalty(torch.zeros(1, 1, 2), torch.zeros(1, 1).long(), "mean")


# Q = (0, ln 3), action 0 logged. e^Q = (1, 3); with rho (3/4, 1/4) their weighted sum is 3/2
BY_HAND = [
    (dict(penalty="logsumexp"), None, math.log(4), [1 / 4 - 1, 3 / 4]),
    (dict(penalty="logsumexp", temperature=0.5), None, math.log(10) / 2, [1 / 10 - 1, 9 / 10]),  # e^2Q = (1, 9)
    (dict(penalty="logsumexp"), [1.0, 0.0], 0.0, [0.0, 0.0]),  # the logged action alone
    (dict(penalty="rho"), [0.75, 0.25], math.log(1.5), [0.5 - 1, 0.5]),
    (dict(penalty="previous"), [0.75, 0.25], math.log(1.5), [0.5 - 1, 0.5]),
    (dict(penalty="push-down"), [0.25, 0.75], 0.75 * math.log(3), [0.25, 0.75]),
    (dict(penalty="mu"), [0.25, 0.75], 0.75 * math.log(3), [0.25 - 1, 0.75])]


@pytest.mark.parametrize("arguments, action_weights, penalty, gradient", BY_HAND)
def test_every_penalty_and_its_gradient_by_hand(arguments, action_weights, penalty, gradient):
    """With the target at Q(s, a) the squared error is 0, its gradient too."""
    q, action = tensor([[[0.0, math.log(3)]]]), torch.tensor([[0]])
    arguments = arguments | {"action_weights": None if action_weights is None else tensor([[action_weights]])}
    terms = losses.cql_loss(q, action, tensor([[0.0]]), tensor([2.0]), **arguments)
    assert [float(term) for term in terms] == pytest.approx([0.0, penalty, 2 * penalty], abs=1e-12)
    closed = losses.cql_gradient(q, action, tensor([[0.0]]), tensor([2.0]), **arguments)
    assert closed.flatten().tolist() == pytest.approx([2 * x for x in gradient], abs=1e-12)


@pytest.mark.parametrize("arguments, action_weights", [case[:2] for case in BY_HAND])
@pytest.mark.parametrize("td_loss", losses.TD_LOSSES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_gradient_in_closed_form_is_autograds(arguments, action_weights, td_loss, seed):
    q, actions, targets, alpha, weights = random_case(seed, torch.float64)
    if action_weights is not None:
        random = torch.rand(q.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        random = (random * (random > 0.3)).scatter(-1, actions[..., None], 1.0)  # the logged action always counts
        action_weights = random / random.sum(-1, keepdim=True)
    leaf = q.clone().requires_grad_()
    arguments = arguments | {"action_weights": action_weights, "weights": weights}
    losses.cql_loss(leaf, actions, targets, alpha, td_loss, **arguments).total.sum().backward()
    closed = losses.cql_gradient(q, actions, targets, alpha, td_loss, **arguments)
    assert (closed - leaf.grad).abs().max() <= 1e-12 * max(1, leaf.grad.abs().max().item(), alpha.max().item())


def test_softmax_mu_held_fixed_and_uniform_rho_have_the_gradient_of_cql_h():
    """So neither is an option of its own: Eq. 2 with mu = softmax Q, and CQL(rho) with rho = 1 / A."""
    q, actions, targets, alpha, _ = random_case(11, torch.float64)
    expected = losses.cql_gradient(q, actions, targets, alpha)
    for penalty, weights in (("mu", q.softmax(-1)), ("rho", torch.full_like(q, 1 / q.shape[-1]))):
        gradient = losses.cql_gradient(q, actions, targets, alpha, penalty=penalty, action_weights=weights)
        torch.testing.assert_close(gradient, expected)


def test_only_the_papers_objective_is_cql_h():
    assert losses.Objective(td_loss="huber", double_q=True, gamma=0.5).is_cql_h
    assert not losses.Objective(penalty="rho").is_cql_h and not losses.Objective(temperature=2.0).solved_as_cql_h
    assert not losses.Objective(supported=True).is_cql_h and losses.Objective(supported=True).solved_as_cql_h
