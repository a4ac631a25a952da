"""Exact answers against a second route: closed forms, descent on the loss, sampling."""

import math
import random

import pytest
import torch

from minillama import exact, world
from minillama.exact import margin_minimiser, margin_slope, outcome_chances
from minillama.gae import gae
from minillama.generate import generate
from minillama.kl import exact_kl, kl_estimate, kl_penalised_rewards
from minillama.model import Llama, LlamaConfig
from minillama.preference_loss import MARGINS, bradley_terry_loss

P = torch.tensor([0.03, 0.3, 0.5, 0.55, 0.75, 0.999], dtype=torch.float64)
THRESHOLDS = world.HELPFULNESS_ANNOTATOR.thresholds


def of_one_margin(p, margin):
    return margin_minimiser(p[:, None], 1 - p[:, None], torch.tensor([margin]))


def test_reference_numbers():
    assert of_one_margin(P[4:5], 0.0).item() == pytest.approx(math.log(3), abs=1e-12)
    assert of_one_margin(P[4:5], 1.0).item() == pytest.approx(1.782, abs=5e-4)


@pytest.mark.parametrize("margin", [0.0, 1 / 3, 1.0, 3.0, 9.0])
def test_one_margin_against_the_quadratic(margin):
    """p sigmoid(m - d) = (1 - p) sigmoid(m + d) is a quadratic in x = e^d.

    (1 - p) x^2 + (1 - 2p) e^m x - p = 0
    """
    q, middle = 1 - P, (1 - 2 * P) * math.exp(margin)
    discriminant = (middle.square() + 4 * P * q).sqrt()
    x = torch.where(
        middle > 0, 2 * P / (middle + discriminant), (discriminant - middle) / (2 * q)
    )
    assert torch.allclose(of_one_margin(P, margin), x.log(), atol=1e-9)


def test_swapping_the_sides_changes_the_sign_and_counts_do_as_well_as_chances():
    wins, losses = torch.rand(
        2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    margins = torch.tensor(MARGINS["large"])
    best = margin_minimiser(wins, losses, margins)
    assert torch.allclose(margin_minimiser(losses, wins, margins), -best, atol=1e-12)
    assert torch.allclose(
        margin_minimiser(40 * wins, 40 * losses, margins), best, atol=1e-12
    )
    assert margin_slope(best, wins, losses, margins).abs().max() < 1e-12
    assert (
        margin_slope(best + 0.1, wins, losses, margins).min()
        > 0
        > margin_slope(best - 0.1, wins, losses, margins).max()
    )


@pytest.mark.parametrize("name", MARGINS)
def test_the_slope_is_that_of_the_loss(name):
    wins, losses = outcome_chances(torch.tensor([-2.0, 0.0, 0.5]), THRESHOLDS)
    margins = torch.tensor(MARGINS[name], dtype=torch.float64)
    scores = torch.tensor([-1.0, 0.5, 2.5], dtype=torch.float64, requires_grad=True)
    for pair in range(3):
        a, b = scores[pair].expand(4), torch.zeros(4, dtype=torch.float64)
        loss = wins[pair] @ bradley_terry_loss(a, b, margins, "none") + losses[
            pair
        ] @ bradley_terry_loss(b, a, margins, "none")
        loss.backward()
    assert torch.allclose(
        scores.grad, margin_slope(scores.detach(), wins, losses, margins), atol=1e-12
    )


def test_descent_reaches_the_minimiser():
    """Newton's method on a free difference, another route than bisection."""
    wins, losses = outcome_chances(torch.linspace(-4, 4, 9), THRESHOLDS)
    margins = torch.tensor(MARGINS["large"], dtype=torch.float64)
    d = torch.zeros(9, dtype=torch.float64)
    for _ in range(200):
        total = torch.stack(
            [torch.sigmoid(margins + x) * torch.sigmoid(-margins - x) for x in d]
        )
        other = torch.stack(
            [torch.sigmoid(margins - x) * torch.sigmoid(x - margins) for x in d]
        )
        step = margin_slope(d, wins, losses, margins) / (
            losses * total + wins * other
        ).sum(1)
        d = d - step.clamp(-0.5, 0.5)
    assert torch.allclose(d, margin_minimiser(wins, losses, margins), atol=1e-9)


def test_without_margins_the_strengths_do_not_matter():
    difference = torch.linspace(-9, 9, 7, dtype=torch.float64)
    best = margin_minimiser(*outcome_chances(difference, THRESHOLDS), torch.zeros(4))
    assert torch.allclose(best, difference, atol=1e-9)


def test_chances_by_hand():
    wins, losses = outcome_chances(torch.tensor([0.0, math.log(3)]), (math.log(3),))
    # F(ln 3) = 3/4 and F(2 ln 3) = 9/10, so at difference 0: 3/4 - 1/2 and 1 - 3/4;
    # at ln 3: 1/2 - 1/4 and 1/2; for b 9/10 - 3/4 and 1 - 9/10.
    assert torch.allclose(
        wins, torch.tensor([[0.25, 0.25], [0.25, 0.5]], dtype=torch.float64)
    )
    assert torch.allclose(
        losses, torch.tensor([[0.25, 0.25], [0.15, 0.1]], dtype=torch.float64)
    )


def test_chances_of_an_annotator_who_is_asked_often():
    annotator = world.Annotator(gold=lambda prompt, text: float(text), temperature=0.5)
    rng, prompt, count = random.Random(0), world.training_prompts()[0], 20_000
    asked = [annotator.compare(rng, prompt, "1", "0.4") for _ in range(count)]
    wins, losses = outcome_chances(torch.tensor([1.2]), annotator.thresholds)
    for chances, text in ((wins, "1"), (losses, "0.4")):
        shares = torch.tensor(
            [
                sum(x.chosen == text and x.strength == k for x in asked) / count
                for k in range(4)
            ]
        )
        assert (
            shares - chances[0]
        ).abs().max() < 0.015  # 4 standard errors of at most 0.0035
    assert (wins.sum() + losses.sum()).item() == pytest.approx(1)
    assert wins.sum().item() == pytest.approx(annotator.prefers(prompt, "1", "0.4"))


@pytest.mark.parametrize(
    "wins, losses, margins, complaint",
    [
        (torch.ones(2), torch.ones(2), torch.ones(2), "must be"),
        (torch.ones(2, 3), torch.ones(2, 1), torch.ones(3), "K = 3 as in wins"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 1), "margins"),
        (torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1), "row"),
        (torch.ones(1, 2), torch.tensor([[2.0, -1.0]]), torch.ones(2), ">= 0"),
    ],
)
def test_bad_arguments_are_refused(wins, losses, margins, complaint):
    with pytest.raises(ValueError, match=f"margin_minimiser: .*{complaint}"):
        margin_minimiser(wins, losses, margins)


# The enumerable world: nothing missing, nothing twice, every formula by a second route.

BOS, V, LENGTH, BETA = 1, 6, 4, 0.5


def policy(seed=0, sharp=3.0):
    """A `Llama` over V tokens with large weights, so that it is far from uniform."""
    model = Llama(
        LlamaConfig(V, 16, 1, 2, 1, 32, 8), torch.Generator().manual_seed(seed)
    ).double()
    with torch.no_grad():
        model.lm_head.weight *= sharp / model.lm_head.weight.std() / 4
    return model


@pytest.fixture(scope="module")
def enumerable():
    responses = exact.enumerate_responses([BOS], V, LENGTH)
    ref_logp = exact.sequence_logprobs(policy(0), responses).detach()
    logp = exact.sequence_logprobs(policy(1), responses).detach()
    scores = torch.randn(
        len(logp), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    return responses, logp, ref_logp, scores


def test_every_response_once_and_the_chances_sum_to_one(enumerable):
    responses, logp, ref_logp, _ = enumerable
    assert len(responses.ids) == 1 + 5 + 25 + 125 * 6
    texts = {
        tuple(ids[mask].tolist())
        for ids, mask in zip(responses.ids, responses.mask, strict=True)
    }
    assert len(texts) == len(responses.ids)
    assert all(
        2 not in text[1:-1] and (text[-1] == 2 or len(text) == 1 + LENGTH)
        for text in texts
    )
    for x in (logp, ref_logp):
        assert x.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert ref_logp.exp().max() > 20 / len(
        ref_logp
    )  # far from uniform, or the rest would test little


def test_sampling_meets_the_enumeration(enumerable):
    responses, _, ref_logp, _ = enumerable
    rollout = generate(
        policy(0), [[BOS]] * 20_000, LENGTH, generator=torch.Generator().manual_seed(0)
    )
    place = {
        tuple(ids[mask].tolist()): i
        for i, (ids, mask) in enumerate(zip(responses.ids, responses.mask, strict=True))
    }
    drawn = torch.tensor(
        [
            place[tuple(ids[mask].tolist())]
            for ids, mask in zip(rollout.ids, rollout.mask, strict=True)
        ]
    )
    torch.testing.assert_close(
        rollout.logprobs.sum(1).double(), ref_logp[drawn], atol=1e-4, rtol=0
    )
    counts, expected = drawn.bincount(minlength=len(ref_logp)), 20_000 * ref_logp.exp()
    common = expected > 5
    chi2 = ((counts - expected).square() / expected)[common].sum().item()
    assert chi2 < common.sum() + 5 * math.sqrt(2 * common.sum())


def test_the_chain_rule_of_the_kl(enumerable):
    """KL of responses = expected sum of the KLs of the next token, of kl.exact_kl."""
    responses, logp, ref_logp, _ = enumerable
    ids, mask = responses.ids, responses.mask
    with torch.no_grad():
        steps = (
            exact_kl(policy(1)(ids, mask), policy(0)(ids, mask))[:, :-1]
            * responses.response_mask[:, 1:]
        )
    assert (logp.exp() * steps.sum(1)).sum().item() == pytest.approx(
        exact.response_kl(logp, ref_logp).item(), abs=1e-9
    )
    assert (
        exact.response_kl(logp, ref_logp) > 0.1 and exact.response_kl(logp, logp) == 0
    )
    token_logp, ref_token_logp = (
        exact.sequence_token_logprobs(policy(seed), responses).detach()
        for seed in (1, 0)
    )
    for kind in ("k1", "k3"):
        estimate = (
            kl_estimate(token_logp, ref_token_logp, kind) * responses.response_mask
        ).sum(1)
        assert (logp.exp() * estimate).sum().item() == pytest.approx(
            exact.response_kl(logp, ref_logp).item(), abs=1e-9
        )


def test_the_optimum_is_one(enumerable):
    _, logp, ref_logp, scores = enumerable
    best, height = exact.optimal_policy(ref_logp, scores, BETA)
    assert best.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert exact.objective(best, ref_logp, scores, BETA).item() == pytest.approx(
        height.item(), abs=1e-12
    )
    for other in (logp, ref_logp):
        shortfall = height - exact.objective(other, ref_logp, scores, BETA)
        assert shortfall.item() == pytest.approx(
            BETA * exact.response_kl(other, best).item(), abs=1e-12
        )
    free = (
        best.clone().requires_grad_()
    )  # no direction leads up, other than leaving the simplex
    gradient = torch.autograd.grad(
        exact.objective(free.log_softmax(0), ref_logp, scores, BETA), free
    )[0]
    assert gradient.abs().max() < 1e-12


def test_the_exact_gradient_is_the_slope(enumerable):
    responses, _, ref_logp, scores = enumerable
    model = policy(1)
    gradient = exact.exact_gradient(
        exact.objective(
            exact.sequence_logprobs(model, responses), ref_logp, scores, BETA
        ),
        model,
    )
    direction = torch.randn(
        len(gradient), generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )

    def height(step):
        moved = policy(1)
        start = 0
        with torch.no_grad():
            for p in moved.parameters():
                p += step * direction[start : start + p.numel()].view_as(p)
                start += p.numel()
            return exact.objective(
                exact.sequence_logprobs(moved, responses), ref_logp, scores, BETA
            )

    assert ((height(1e-5) - height(-1e-5)) / 2e-5).item() == pytest.approx(
        (gradient @ direction).item(), rel=1e-5
    )


def test_values_are_expectations_and_advantages_average_to_zero(enumerable):
    responses, logp, ref_logp, scores = enumerable
    token_logp, ref_token_logp = (
        exact.sequence_token_logprobs(policy(seed), responses).detach()
        for seed in (1, 0)
    )
    rewards = kl_penalised_rewards(
        scores, token_logp, ref_token_logp, responses.response_mask, BETA
    )
    values, advantages = exact.exact_values(logp, rewards, responses)
    assert values[:, 1].unique().numel() == 1
    assert values[0, 1].item() == pytest.approx(
        exact.objective(logp, ref_logp, scores, BETA).item(), abs=1e-9
    )
    # At every step the expected advantage of the next token is 0; so the returns are
    # the values, on average.
    assert (logp.exp()[:, None] * advantages).sum(0).abs().max() < 1e-12
    for t in range(2, 1 + LENGTH):
        first = responses.ids[:, 1] == 3
        assert (logp.exp() * advantages[:, t])[first].sum().abs() < 1e-12
    # With exact values GAE's one-step advantage is the exact one, for every response.
    one_step, _ = gae(rewards, values, responses.response_mask, gamma=1.0, lam=0.0)
    torch.testing.assert_close(one_step, advantages)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: exact.enumerate_responses([], V, 2), "prompt_ids"),
        (lambda: exact.enumerate_responses([1], V, 0), "max_new_tokens"),
        (lambda: exact.enumerate_responses([1], 100, 4), "a million"),
        (lambda: exact.optimal_policy(torch.zeros(2), torch.zeros(2), 0.0), "beta"),
    ],
)
def test_a_world_that_cannot_be_listed_or_has_no_optimum_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_scores_by_hand_and_padding_counts_nothing():
    responses = exact.enumerate_responses(
        exact.PROMPT_IDS, exact.VOCAB_SIZE, exact.MAX_NEW_TOKENS
    )
    scores = {
        tuple(ids[mask][2:].tolist()): score
        for ids, mask, score in zip(
            responses.ids,
            responses.mask,
            exact.rises(responses.ids, responses.mask).tolist(),
            strict=True,
        )
    }
    by_hand = {
        (2,): 0,
        (0, 2): 0,
        (0, 1, 2): 1,
        (0, 1, 3, 4): 3,
        (5, 5, 5, 5): -3,
        (3, 5, 0, 2): 0,
        (4, 3, 1, 5): -1,
    }
    assert {response: scores[response] for response in by_hand} == by_hand
    assert sorted(response for response, score in scores.items() if score == 3) == [
        (0, 1, 3, 4),
        (0, 1, 3, 5),
        (0, 1, 4, 5),
        (0, 3, 4, 5),
        (1, 3, 4, 5),
    ]
    safety, helpfulness = exact.RisesJudges().probabilities(
        responses.ids, responses.mask
    )
    assert (safety == 1).all() and torch.allclose(
        helpfulness.logit(), exact.rises(responses.ids, responses.mask), atol=1e-5
    )


def test_the_small_policy_is_random_but_not_far_from_uniform():
    policy = exact.small_policy(torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in policy.parameters()) == 9_696
    with torch.no_grad():
        logits = policy(torch.tensor([exact.PROMPT_IDS + [0, 1, 3, 4]]))
    assert 0.25 < logits.std().item() < 1.0


def test_whole_counts_do_as_well_as_floats():
    counts, margins = torch.tensor([[3, 1], [2, 2]]), torch.tensor([0.0, 1.0])
    best = margin_minimiser(counts, counts.flip(1), margins)
    assert torch.equal(
        best, margin_minimiser(counts * 1.0, counts.flip(1) * 1.0, margins)
    )


def test_a_prompt_may_be_a_tuple_and_gamma_discounts():
    responses = exact.enumerate_responses((1, 3), 4, 2)
    # eos (2) at once; then one of 0, 1, 3 and one of the four: 1 + 3 * 4 = 13
    assert responses.ids.shape == (13, 4) and responses.ids[:, 0].eq(1).all()
    # A reward of 1 on the second token of each of the 12, all responses equally likely:
    # before the first token gamma * 12 / 13, before the second 1.
    rewards = torch.zeros(13, 4)
    rewards[:, 3] = 1.0
    logp = torch.full((13,), 1 / 13).log()
    values, _ = exact.exact_values(logp, rewards, responses, gamma=0.5)
    assert values[:, 2].tolist() == pytest.approx([6 / 13] * 13, abs=1e-6)
    assert values[:, 3].tolist() == pytest.approx([0.0] + [1.0] * 12, abs=1e-6)


def test_the_kl_knows_zero_and_infinity():
    """0 log 0 = 0; a response that the reference excludes costs without end."""
    half, sure = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, -math.inf])
    assert exact.response_kl(sure, half).item() == pytest.approx(math.log(2))
    assert exact.response_kl(half, sure).item() == math.inf
    assert exact.objective(sure, half, torch.ones(2), 0.0).item() == 1.0


def test_the_spread_of_the_small_policy():
    policies = [
        exact.small_policy(torch.Generator().manual_seed(0), spread)
        for spread in (0.5, 1.0, 0.0)
    ]
    narrow, wide, none = (policy.lm_head.weight for policy in policies)
    assert torch.allclose(2 * narrow, wide) and not none.any()
    assert policies[0].config.max_seq_len == 6
    # the logits are sums of 32 products with a state of mean square 1
    assert wide.std().item() * math.sqrt(32) == pytest.approx(1.0)


def test_the_interval_of_the_bisection_holds_far_odds():
    """40 wins to 1 / 40: log-odds of ln 1600."""
    best = margin_minimiser(*torch.tensor([[[40.0]], [[1 / 40]]]), torch.zeros(1))
    assert best.item() == pytest.approx(math.log(1600), abs=1e-6)


def test_thresholds_are_not_rounded():
    wins, _ = outcome_chances(torch.zeros(1), (0.1,))
    assert wins[0, 1].item() == pytest.approx(1 / (1 + math.exp(0.1)), abs=1e-15)


def test_a_gradient_may_be_asked_twice_and_is_0_where_nothing_is_used():
    model = policy()
    scalar = (model.embed_tokens.weight.double() ** 2).sum() / 2
    for _ in range(2):
        gradient = exact.exact_gradient(scalar, model)
    used = model.embed_tokens.weight
    assert len(gradient) == sum(p.numel() for p in model.parameters())
    assert torch.equal(gradient[: used.numel()], used.detach().flatten())
    assert not gradient[used.numel() :].any()


TWO, NAN = torch.zeros(2), torch.tensor([0.0, math.nan])
ONE_BY_ONE = exact.Responses(
    torch.ones(1, 2, dtype=torch.int64), *torch.ones(2, 1, 2, dtype=torch.bool)
)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: outcome_chances(NAN, (1.0,)), ValueError, "difference"),
        (lambda: outcome_chances(TWO, (2.0, 1.0)), ValueError, "thresholds"),
        (lambda: outcome_chances(TWO, (-1.0, 1.0)), ValueError, "thresholds"),
        (lambda: outcome_chances(TWO, (0.0,)), ValueError, "thresholds"),
        (lambda: outcome_chances(TWO, (math.inf,)), ValueError, "thresholds"),
        (lambda: outcome_chances(TWO, (math.nan,)), ValueError, "thresholds"),
        (lambda: outcome_chances(TWO[:, None], (1.0,)), ValueError, "difference"),
        (
            lambda: margin_slope(NAN, *torch.ones(2, 2, 3), torch.ones(3)),
            ValueError,
            "difference",
        ),
        (
            lambda: margin_minimiser(NAN[None] + 1, torch.ones(1, 2), torch.ones(2)),
            ValueError,
            "wins",
        ),
        (lambda: exact.enumerate_responses([], V, 2), ValueError, "prompt_ids"),
        (lambda: exact.enumerate_responses([6], V, 2), IndexError, "prompt_ids"),
        (lambda: exact.enumerate_responses([-1], V, 2), IndexError, "prompt_ids"),
        (lambda: exact.enumerate_responses([1], V, 2.5), TypeError, "max_new_tokens"),
        (lambda: exact.enumerate_responses([1], 0, 2), ValueError, "vocab_size"),
        (lambda: exact.enumerate_responses([1], 101, 3), ValueError, "vocab_size .*"),
        (
            lambda: margin_minimiser(torch.ones(2, 1), torch.eye(2)[:, :1], TWO[:1]),
            ValueError,
            "wins and losses",
        ),
        (
            lambda: margin_minimiser(torch.eye(2)[:, :1], torch.ones(2, 1), TWO[:1]),
            ValueError,
            "wins and losses",
        ),
        (lambda: exact.small_policy(0), TypeError, "generator"),
        (lambda: exact.small_policy(None, -1.0), ValueError, "spread"),
        (lambda: exact.rises([[1, 3]], TWO), TypeError, "ids"),
        (lambda: exact.sequence_logprobs(None, ONE_BY_ONE), TypeError, "policy"),
        (lambda: exact.response_kl(NAN, TWO), ValueError, "logp"),
        (lambda: exact.response_kl(TWO, TWO[:, None]), ValueError, "ref_logp"),
        (lambda: exact.objective(TWO, TWO, TWO[:, None], 1.0), ValueError, "scores"),
        (lambda: exact.objective(TWO, TWO, NAN, 1.0), ValueError, "scores"),
        (lambda: exact.objective(TWO, TWO, TWO, -1.0), ValueError, "beta"),
        (lambda: exact.objective(TWO, TWO, TWO, math.inf), ValueError, "beta"),
        (lambda: exact.optimal_policy(TWO, TWO[:, None], 1.0), ValueError, "scores"),
        (lambda: exact.optimal_policy(NAN, TWO, 1.0), ValueError, "ref_logp"),
        (lambda: exact.optimal_policy(TWO, TWO, math.inf), ValueError, "beta"),
        (lambda: exact.optimal_policy(TWO, TWO, True), TypeError, "beta"),
        (lambda: exact.exact_gradient(TWO.sum(), policy()), ValueError, "scalar"),
        (lambda: exact.exact_gradient(TWO, policy()), ValueError, "scalar"),
        (
            lambda: exact.exact_values(TWO[:1], torch.zeros(1, 3), ONE_BY_ONE),
            ValueError,
            "rewards",
        ),
        (
            lambda: exact.exact_values(TWO[:1], torch.zeros(1, 2), ONE_BY_ONE, 1.5),
            ValueError,
            "gamma",
        ),
        (
            lambda: exact.Responses(ONE_BY_ONE.ids, ONE_BY_ONE.mask, TWO),
            TypeError,
            "response_mask",
        ),
    ],
)
def test_more_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=rf"^\w+: {words} must"):
        call()
