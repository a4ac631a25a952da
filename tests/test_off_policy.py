"""Off-policy weights: by hand, by enumeration, and by counting draws."""

import itertools
import math

import pytest
import torch

from minillama import exact
from minillama.generate import pick, top_p_filter
from minillama.off_policy import (
    effective_sample_size,
    importance_weights,
    sampling_logprobs,
    squared_error,
)
from minillama.policy_gradient import (
    answer_gradients,
    gradient_variance,
    reinforce_loss,
    table_logprobs,
    token_states,
)
from minillama.ppo import policy_loss

RESPONSES = exact.enumerate_responses(exact.PROMPT_IDS, 6, 3)
STATES = token_states(RESPONSES)
IDS, MASK = RESPONSES.ids, RESPONSES.response_mask
SCORES = exact.rises(IDS, RESPONSES.mask).double()


def random_table(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(STATES.max()) + 1, 6, generator=generator).double()


P, Q = random_table(0), random_table(1)
LOGP, LOGQ = (table_logprobs(x, STATES, RESPONSES) for x in (P, Q))


def gradients(weights):
    return answer_gradients(P, STATES, RESPONSES, weights * SCORES[:, None])


# two answers; a prompt token, then two tokens and one
LOG2, LOG3 = math.log(2), math.log(3)
NEW = torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.0, 0.0]])
OLD = NEW - torch.tensor([[7.0, LOG2, LOG3], [7.0, -LOG2, 7.0]])
TOKENS = torch.tensor([[False, True, True], [False, True, False]])


def test_weights_by_hand():
    token = importance_weights(NEW, OLD, TOKENS, level="token")
    torch.testing.assert_close(token, torch.tensor([[0, 2.0, 3.0], [0, 0.5, 0]]))
    answer = importance_weights(NEW, OLD, TOKENS)
    torch.testing.assert_close(answer, torch.tensor([[0, 6.0, 6.0], [0, 0.5, 0]]))


@pytest.mark.parametrize(
    "level, cap, above, first",
    [
        ("token", 2.5, "truncate", [2.0, 2.5]),
        ("token", 2.5, "drop", [2.0, 0.0]),
        ("answer", 2.5, "truncate", [2.5, 2.5]),
        ("answer", 2.5, "drop", [0.0, 0.0]),
        ("answer", 6.5, "drop", [6.0, 6.0]),
        ("token", 0.25, "truncate", [0.25, 0.25]),
    ],
)
def test_what_is_above_the_cap(level, cap, above, first):
    w = importance_weights(NEW, OLD, TOKENS, level, cap, above)
    torch.testing.assert_close(w[0, 1:], torch.tensor(first))
    assert w[1, 1].item() == pytest.approx(0.25 if cap == 0.25 else 0.5)
    assert (w[~TOKENS] == 0).all()


def test_a_weight_at_the_cap_is_kept():
    one = torch.ones(1, 1, dtype=torch.bool)
    w = importance_weights(
        torch.zeros(1, 1), torch.zeros(1, 1), one, cap=1, above="drop"
    )
    assert w.item() == 1


def test_weights_are_constants_and_leave_their_arguments():
    new, old = NEW.clone().requires_grad_(), OLD.clone().requires_grad_()
    w = importance_weights(new, old, TOKENS)
    assert not w.requires_grad and w.dtype == torch.float32
    assert importance_weights(NEW.double(), OLD.double(), TOKENS).dtype == torch.float64
    assert torch.equal(new, NEW) and torch.equal(old, OLD)


def test_padding_may_be_anything_and_far_answers_are_capped():
    new, old = NEW.masked_fill(~TOKENS, math.nan), OLD.masked_fill(~TOKENS, -math.inf)
    torch.testing.assert_close(
        importance_weights(new, old, TOKENS), importance_weights(NEW, OLD, TOKENS)
    )
    far = OLD - 200  # exp overflows in float32
    assert (importance_weights(NEW, far, TOKENS, cap=5.0)[TOKENS] == 5).all()
    assert (importance_weights(NEW, far, TOKENS, cap=5.0, above="drop") == 0).all()


def test_answer_weights_are_the_ratio_of_chances_and_remove_the_bias():
    w = importance_weights(LOGP, LOGQ, MASK)
    p, q = LOGP.sum(1).exp(), LOGQ.sum(1).exp()
    torch.testing.assert_close(w, (p / q)[:, None] * MASK)
    truth = p @ gradients(MASK.double())
    torch.testing.assert_close(q @ gradients(w), truth)
    assert (q @ gradients(MASK.double()) - truth).norm() > 0.3 * truth.norm()
    # the second moment of the weights is their mean under the policy
    assert (q @ (p / q).square()).item() == pytest.approx((p @ (p / q)).item())


def test_token_weights_leave_a_bias_that_answer_weights_do_not():
    p, q = LOGP.sum(1).exp(), LOGQ.sum(1).exp()
    truth = p @ gradients(MASK.double())
    token = q @ gradients(importance_weights(LOGP, LOGQ, MASK, level="token"))
    assert (token - truth).norm() > 0.1 * truth.norm()


def test_weighted_advantages_give_the_gradient_of_the_unclipped_ratio():
    table = P.clone().requires_grad_()
    logprobs = table_logprobs(table, STATES, RESPONSES)
    A = SCORES[:, None].expand(IDS.shape)
    w = importance_weights(logprobs, LOGQ, MASK, level="token")
    (weighted,) = torch.autograd.grad(
        reinforce_loss(logprobs, w * A, MASK), table, retain_graph=True
    )
    ratio = policy_loss(logprobs, LOGQ, A, MASK, clip_eps=math.inf)
    (of_ratio,) = torch.autograd.grad(ratio, table)
    # a mean over answers against one over tokens
    torch.testing.assert_close(weighted, of_ratio * MASK.sum() / len(IDS))


def test_effective_sample_size_by_hand():
    assert effective_sample_size(torch.ones(7)).item() == 7
    assert effective_sample_size(torch.tensor([0.0, 5.0, 0.0])).item() == 1
    assert effective_sample_size(torch.tensor([1.0, 2.0, 3.0])).item() == pytest.approx(
        36 / 14
    )
    large = torch.tensor([1e30, 2e30, 3e30])  # its squares overflow
    assert effective_sample_size(large).item() == pytest.approx(36 / 14)
    assert (
        effective_sample_size(torch.ones(2, requires_grad=True)).requires_grad is False
    )


def test_effective_sample_size_of_many_draws_is_the_exact_share():
    p, q = LOGP.sum(1).exp(), LOGQ.sum(1).exp()
    draws = torch.multinomial(
        q, 200_000, True, generator=torch.Generator().manual_seed(0)
    )
    share = effective_sample_size((p / q)[draws]).item() / len(draws)
    assert share == pytest.approx(1 / (q @ (p / q).square()).item(), rel=0.1)


def test_sampling_logprobs_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]).log()
    law = sampling_logprobs(logits, top_p=0.6).exp()
    torch.testing.assert_close(
        law, torch.tensor([[0.625, 0.375, 0.0], [0.0, 0.0, 1.0]])
    )
    torch.testing.assert_close(sampling_logprobs(logits), logits)
    squared = torch.tensor([0.25, 0.09, 0.04]) / 0.38
    half = sampling_logprobs(logits, temperature=0.5)[0]
    torch.testing.assert_close(half, squared.log())
    cut = sampling_logprobs(logits, temperature=0.5, top_p=0.6)[0]
    torch.testing.assert_close(cut.exp(), torch.tensor([1.0, 0.0, 0.0]))
    assert not sampling_logprobs(logits.requires_grad_()).requires_grad


def test_sampling_logprobs_are_what_pick_draws_from():
    logits = 2 * torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    n = 100_000
    tokens, logged = pick(logits.expand(n, 6), (torch.arange(n) + 0.5) / n, 1.5, 0.8)
    law = sampling_logprobs(logits, 1.5, 0.8)[0]
    counted = torch.bincount(tokens, minlength=6) / n
    torch.testing.assert_close(counted, law.exp(), atol=1e-4, rtol=0)
    before = (logits / 1.5).log_softmax(-1)[0]
    torch.testing.assert_close(logged, before[tokens])
    # what is logged falls short of the law by the mass that was kept
    kept = top_p_filter(before.exp()[None], 0.8).sum()
    torch.testing.assert_close(law[tokens] - logged, -kept.log().expand(n))


def test_squared_error_by_hand():
    g = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    chances, truth = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0])
    # mean (1, 0.5), bias (0, -0.5); variance 1 + 0.25
    assert squared_error(g, chances, truth, 1).item() == pytest.approx(0.25 + 1.25)
    assert squared_error(g, chances, truth, 5).item() == pytest.approx(0.25 + 0.25)


def test_squared_error_by_listing_all_batches_of_two():
    w = importance_weights(LOGP, LOGQ, MASK, cap=2.0)
    rows = torch.arange(0, len(IDS), 9)  # a few answers are enough
    g, chances = gradients(w)[rows], LOGQ.sum(1).exp()[rows]
    chances = chances / chances.sum()
    truth = LOGP.sum(1).exp() @ gradients(MASK.double())
    total = torch.zeros((), dtype=torch.float64)
    for i, j in itertools.product(range(len(rows)), repeat=2):
        error = (g[i] + g[j]) / 2 - truth
        total += chances[i] * chances[j] * error.square().sum()
    torch.testing.assert_close(squared_error(g, chances, truth, 2), total)
    alone = squared_error(g, chances, truth, 1) - squared_error(
        g, chances, truth, 10**9
    )
    torch.testing.assert_close(alone, gradient_variance(g, chances), atol=1e-6, rtol=0)


def test_top_p_leaves_the_mass_cut_off_as_bias():
    law = sampling_logprobs(P, top_p=0.7)
    logq = law[STATES, IDS].masked_fill(~MASK, 0.0)
    q, p = logq.sum(1).exp(), LOGP.sum(1).exp()
    possible = q > 0
    assert 0 < possible.sum() < len(IDS)
    plain = gradients(MASK.double())
    w = torch.zeros_like(logq)
    w[possible] = importance_weights(LOGP[possible], logq[possible], MASK[possible])
    bias = q @ gradients(w) - p @ plain
    torch.testing.assert_close(bias, -(p[~possible] @ plain[~possible]))
    mean_weight = q[possible] @ w[possible].amax(1)
    torch.testing.assert_close(mean_weight, p[possible].sum())
