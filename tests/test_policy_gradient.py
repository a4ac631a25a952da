"""The policy gradient: by hand, by enumeration, and against autograd."""

import pytest
import torch

from minillama import exact
from minillama.gae import gae
from minillama.policy_gradient import (
    answer_gradients,
    gradient_variance,
    leave_one_out,
    reinforce_loss,
    rewards_to_go,
    table_logprobs,
    token_states,
)

RESPONSES = exact.enumerate_responses(exact.PROMPT_IDS, 6, 3)
STATES = token_states(RESPONSES)
IDS, MASK = RESPONSES.ids, RESPONSES.response_mask


def random_table(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(STATES.max()) + 1, 6, generator=generator).double()


def law(table):
    """Log-probabilities (N, T) and chances (N,) of all responses."""
    logprobs = table_logprobs(table, STATES, RESPONSES)
    return logprobs, logprobs.sum(1).exp()


def scores_of(responses=RESPONSES):
    return exact.rises(responses.ids, responses.mask).double()


def test_reinforce_loss_by_hand():
    logprobs = torch.tensor([[0.0, -1.0, -2.0], [0.0, -3.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True], [False, True, False]])
    advantages = torch.tensor([[9.0, 2.0, -1.0], [9.0, 4.0, 9.0]], requires_grad=True)
    loss = reinforce_loss(logprobs, advantages, mask)
    assert loss.item() == pytest.approx(6.0)  # -((-2 + 2) + (-12)) / 2
    loss.backward()
    assert logprobs.grad.tolist() == [[0.0, -1.0, 0.5], [0.0, -2.0, 0.0]]
    assert advantages.grad is None


def test_leave_one_out_by_hand_and_row_by_row():
    scores = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    assert leave_one_out(scores).tolist() == [[4.0, 3.5, 1.5], [1.5, 1.5, 0.0]]
    assert torch.equal(leave_one_out(scores[0]), leave_one_out(scores)[0])
    # what is left is K / (K - 1) times the distance from the mean
    apart = scores - scores.mean(1, keepdim=True)
    torch.testing.assert_close(scores - leave_one_out(scores), 1.5 * apart)


def test_rewards_to_go_are_gae_without_values():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.zeros(5, 7, dtype=torch.bool)
    for b, (start, end) in enumerate([(0, 7), (2, 5), (3, 4), (6, 7), (1, 7)]):
        mask[b, start:end] = True
    rewards.requires_grad_()
    to_go = rewards_to_go(rewards, mask)
    expected = gae(rewards, torch.zeros_like(rewards), mask, 1.0, 1.0)[0]
    torch.testing.assert_close(to_go, expected)
    assert not to_go.requires_grad and (to_go[~mask] == 0).all()


def test_states_number_what_stands_before_a_token():
    assert int(STATES.max()) + 1 == 1 + 5 + 25  # the prompt, one token, two
    seen = {}
    for n, t in MASK.nonzero().tolist():
        before = tuple(IDS[n, :t].tolist())
        assert seen.setdefault(before, int(STATES[n, t])) == int(STATES[n, t])
    assert len(set(seen.values())) == len(seen) == 31
    assert (STATES[~MASK] == 0).all() and (STATES[:, 2] == 0).all()


def test_a_table_gives_log_probabilities():
    logprobs, chances = law(random_table())
    assert chances.sum().item() == pytest.approx(1, abs=1e-12)
    assert (logprobs[~MASK] == 0).all()
    n, t = 100, 4
    expected = random_table()[STATES[n, t]].log_softmax(0)[IDS[n, t]]
    assert logprobs[n, t].item() == pytest.approx(expected.item())


def test_answer_gradients_are_autograds():
    table = random_table().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(IDS.shape, generator=generator, dtype=torch.float64)
    gradients = answer_gradients(table.detach(), STATES, RESPONSES, advantages)
    logprobs = law(table)[0]
    for n in (0, 3, 17, 100, 155):
        loss = reinforce_loss(logprobs[n : n + 1], advantages[n : n + 1], MASK[n:][:1])
        expected = -torch.autograd.grad(loss, table, retain_graph=True)[0].flatten()
        torch.testing.assert_close(gradients[n], expected)


@pytest.mark.parametrize("seed", range(3))
def test_every_credit_has_the_exact_gradient_as_its_mean(seed):
    """The whole score, a constant off, rewards to go, exact advantages."""
    table, scores = random_table(seed).requires_grad_(), scores_of()
    logprobs, chances = law(table)
    (expected,) = torch.autograd.grad((chances * scores).sum(), table)
    table, chances = table.detach(), chances.detach()
    rewards = torch.zeros(IDS.shape, dtype=torch.float64)
    for t in (3, 4):  # a token's own step, +1 or -1
        counted = MASK[:, t] & (IDS[:, t] != exact.EOS_ID)
        rewards[:, t] = torch.where(IDS[:, t] > IDS[:, t - 1], 1.0, -1.0) * counted
    torch.testing.assert_close(rewards.sum(1), scores)
    whole, to_go = scores[:, None].expand(IDS.shape), rewards_to_go(rewards, MASK)
    values, advantages = exact.exact_values(logprobs.sum(1), rewards, RESPONSES)
    variances = []
    for credit in (whole + 3, whole - chances @ scores, to_go - values, advantages):
        gradients = answer_gradients(table, STATES, RESPONSES, credit)
        torch.testing.assert_close(chances @ gradients, expected.flatten())
        variances.append(gradient_variance(gradients, chances).item())
    assert variances == sorted(variances, reverse=True)


def test_gradient_variance_by_hand_and_by_sampling():
    two = torch.tensor([[0.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    chances = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert gradient_variance(two, chances).item() == pytest.approx(3)  # 4 - 1
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    chances = torch.rand(20, generator=generator, dtype=torch.float64)
    chances /= chances.sum()
    drawn = gradients[torch.multinomial(chances, 40_000, True, generator=generator)]
    measured = drawn.var(0).sum().item()
    assert gradient_variance(gradients, chances).item() == pytest.approx(measured, 0.03)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: leave_one_out(torch.ones(3, 1)), ValueError, "K >= 2 answers, got 1"),
        (
            lambda: table_logprobs(torch.zeros(2, 6), STATES, RESPONSES),
            IndexError,
            "states must",
        ),
        (
            lambda: gradient_variance(torch.ones(2, 3), torch.tensor([0.5, 1.5])),
            ValueError,
            "chances must",
        ),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
