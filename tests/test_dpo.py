"""DPO, IPO and KTO: by hand, by a second route, and against the exact optimum."""

import math
from itertools import product

import pytest
import torch

from minillama.data import Example, PairExample
from minillama.dpo import (
    DirectSettings,
    answer_logprobs,
    dpo_loss,
    implicit_reward,
    ipo_loss,
    kto_loss,
    mismatched,
    mismatched_kl,
    pair_logprobs,
    train_on_labels,
    train_on_pairs,
)
from minillama.exact import optimal_policy
from minillama.lm import response_logprobs
from minillama.model import Llama, LlamaConfig


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def tiny(seed=0):
    config = LlamaConfig(11, 16, 1, 2, 1, 16, 16)
    return Llama(config, torch.Generator().manual_seed(seed))


def pair(chosen=(1, 3, 4, 2), rejected=(1, 3, 5, 6, 2), start=2):
    return PairExample(list(chosen), list(rejected), 0.0, True, True, start)


# log-ratios: chosen 1 and -1, rejected -2 and 0
FOUR = (tensor(-2, -5), tensor(-6, -3), tensor(-3, -4), tensor(-4, -3))


def test_the_losses_by_hand():
    gaps = (3, -1)
    dpo = [math.log(1 + math.exp(-0.5 * gap)) for gap in gaps]
    ipo = [(gap - 1 / (2 * 0.25)) ** 2 for gap in gaps]
    assert dpo_loss(*FOUR, 0.5, "none").tolist() == pytest.approx(dpo)
    assert dpo_loss(*FOUR, 0.5).item() == pytest.approx(sum(dpo) / 2)
    assert ipo_loss(*FOUR, 0.25, "none").tolist() == pytest.approx(ipo)
    assert ipo_loss(*FOUR, 0.25, "sum").item() == pytest.approx(sum(ipo))
    assert implicit_reward(FOUR[0], FOUR[2], 0.5).tolist() == [0.5, -0.5]
    alike = FOUR[:2] * 2
    assert dpo_loss(*alike, 0.1).item() == pytest.approx(math.log(2))
    # good with a log-ratio of 1, bad with -2; the reference point is 0.5
    good = 2 / (1 + math.exp(0.1 * (1 - 0.5)))
    bad = 3 / (1 + math.exp(0.1 * (0.5 + 2)))
    losses = kto_loss(
        tensor(-2, -6), tensor(-3, -4), torch.tensor([True, False]), tensor(0.5)[0],
        0.1, 2.0, 3.0, "none",
    )  # fmt: skip
    assert losses.tolist() == pytest.approx([good, bad])
    one = tensor(-2, -6), tensor(-3, -4), torch.tensor([True, False]), tensor(0.5)[0]
    assert kto_loss(*one, 0.1).item() == pytest.approx((good / 2 + bad / 3) / 2)
    assert ipo_loss(*FOUR, 0.25).item() == pytest.approx(sum(ipo) / 2)
    assert mismatched_kl(tensor(-2, -6), tensor(-3, -4)).item() == 0  # mean -0.5
    assert mismatched_kl(tensor(-2, -3), tensor(-3, -4)).item() == 1


def test_gradients_flow_into_the_policy_alone_and_point_the_right_way():
    for loss in (dpo_loss, ipo_loss):
        four = [x.clone().requires_grad_() for x in FOUR]
        loss(*four, 0.1).backward()
        assert (four[0].grad < 0).all() and (four[1].grad > 0).all()
        assert four[2].grad is None and four[3].grad is None
    # DPO's slope is beta times the chance it gives to the wrong order
    four = [x.clone().requires_grad_() for x in FOUR]
    dpo_loss(*four, 0.5, "sum").backward()
    wrong = [1 / (1 + math.exp(0.5 * gap)) for gap in (3, -1)]
    assert four[1].grad.tolist() == pytest.approx([0.5 * x for x in wrong])
    logprobs = tensor(-2, -6).requires_grad_()
    point = mismatched_kl(logprobs, tensor(-4, -8))
    assert not point.requires_grad
    kto_loss(
        logprobs, tensor(-3, -4), torch.tensor([True, False]), point, 0.1
    ).backward()
    assert logprobs.grad[0] < 0 < logprobs.grad[1]


def population(table, ref_logp, scores, of_gap):
    """A loss expected over all pairs of two answers of the reference."""
    logp = table.log_softmax(0)
    n, total = len(scores), 0
    for i, j in product(range(n), range(n)):
        weight = (ref_logp[i] + ref_logp[j]).exp() * torch.sigmoid(
            scores[i] - scores[j]
        )
        total = total + weight * of_gap(
            logp[i : i + 1], logp[j : j + 1], ref_logp[i : i + 1], ref_logp[j : j + 1]
        )
    return total


def test_the_population_loss_of_dpo_is_lowest_at_the_exact_optimum():
    ref_logp = tensor(0.5, 0.2, 0.2, 0.1).log()
    scores, beta = tensor(0.0, 1.0, -1.0, 2.0), 0.7

    def loss(*four):
        return dpo_loss(*four, beta)

    table = optimal_policy(ref_logp, scores, beta)[0].clone().requires_grad_()
    at_best = population(table, ref_logp, scores, loss)
    at_best.backward()
    assert table.grad.abs().max() < 1e-12
    for other in (ref_logp, optimal_policy(ref_logp, scores, 2 * beta)[0]):
        assert population(other, ref_logp, scores, loss) > at_best + 1e-3
    # Climbed from the reference, it arrives there.
    table = ref_logp.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([table], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        value = population(table, ref_logp, scores, loss)
        value.backward()
        return value

    optimizer.step(closure)
    best = optimal_policy(ref_logp, scores, beta)[0]
    torch.testing.assert_close(
        table.detach().log_softmax(0), best, atol=1e-4, rtol=1e-4
    )


def test_certain_preferences_end_at_half_a_nat_over_tau_or_nowhere():
    ref_logp, tau = tensor(0.9, 0.1).log(), 0.2

    def gap_after(loss, steps):
        table = ref_logp.clone().requires_grad_()
        optimizer = torch.optim.Adam([table], lr=0.05)
        for _ in range(steps):
            logp = table.log_softmax(0)
            optimizer.zero_grad()
            loss(logp[1:], logp[:1], ref_logp[1:], ref_logp[:1], tau).backward()
            optimizer.step()
        ratio = table.detach().log_softmax(0) - ref_logp
        return (ratio[1] - ratio[0]).item()

    assert gap_after(ipo_loss, 800) == pytest.approx(1 / (2 * tau), abs=1e-3)
    assert gap_after(dpo_loss, 1200) > gap_after(dpo_loss, 600) + 1 > 10


def test_whole_answers_are_summed_and_read_once():
    model = tiny()
    one, two = Example([1, 3, 4, 2], 2), Example([1, 3, 5, 6, 2], 3)
    got = answer_logprobs(model, [one, two, one])
    for example, value in zip((one, two, one), got, strict=True):
        ids = torch.tensor([example.ids])
        counted = torch.arange(len(example.ids))[None] >= example.loss_start
        whole = response_logprobs(model, ids, torch.ones_like(counted), counted).sum()
        assert value.item() == pytest.approx(whole.item(), abs=1e-5)
    four = pair_logprobs(tiny(0), tiny(1), [pair(), pair((1, 7, 2), (1, 8, 9, 2), 1)])
    assert [x.requires_grad for x in four] == [True, True, False, False]
    sides = ([1, 3, 4, 2], [1, 3, 5, 6, 2])
    for k, (seed, side) in enumerate(product((0, 1), sides)):
        alone = answer_logprobs(tiny(seed), [Example(side, 2)]).item()
        assert four[k][0].item() == pytest.approx(alone, abs=1e-5)


def test_mismatched_answers_keep_their_prompts():
    some = [Example([1, 3, 4, 2], 2), Example([1, 5, 6, 7, 2], 3)]
    assert [x.ids for x in mismatched(some)] == [[1, 3, 7, 2], [1, 5, 6, 4, 2]]
    assert [x.loss_start for x in mismatched(some)] == [2, 3]


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_training_on_pairs_learns_them_and_leaves_the_reference(loss):
    policy, ref = tiny(), tiny()
    groups = [[pair()], [pair((1, 7, 2), (1, 8, 9, 2), 1)]]
    settings = DirectSettings(
        loss=loss, epochs=30, batch_size=2, lr=1e-2, warmup_steps=0, beta=0.5
    )
    history = train_on_pairs(policy, ref, groups, settings, torch.Generator())
    assert len(history) == 30 and history[-1]["accuracy"] == 1
    assert history[-1]["chosen"] - history[-1]["rejected"] > 0.5
    assert history[-1]["loss"] < history[0]["loss"] and not policy.training
    for a, b in zip(ref.parameters(), tiny().parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_history_says_what_a_step_saw():
    groups = [[pair(), pair((1, 3, 7, 2))], [pair((1, 7, 2), (1, 8, 9, 2), 1)]]
    settings = DirectSettings(batch_size=1, lr=0.0, epochs=2)
    policy, ref = tiny(1), tiny(2)
    history = train_on_pairs(policy, ref, groups, settings, torch.Generator())
    assert len(history) == 4  # two passes over two groups
    four = [pair_logprobs(policy, ref, group) for group in groups]
    seen = {
        (round((a - c).mean().item(), 4), round((b - d).mean().item(), 4))
        for a, b, c, d in four
    }
    assert {(round(x["chosen"], 4), round(x["rejected"], 4)) for x in history} == seen
    for row in history:
        a, b, c, d = min(four, key=lambda x: abs((x[0] - x[2]).mean() - row["chosen"]))
        assert row["loss"] == pytest.approx(dpo_loss(a, b, c, d, 0.1).item(), abs=1e-5)
        right = ((a - c) > (b - d)).float().mean().item()
        assert row["accuracy"] == pytest.approx(right)
    # a policy that is the reference prefers neither side: a half, and ln 2
    alike = train_on_pairs(tiny(), tiny(), groups, settings, torch.Generator())[0]
    assert alike["accuracy"] == 0.5 and alike["chosen"] == 0
    assert alike["loss"] == pytest.approx(math.log(2))


def test_the_weights_of_labels_reach_the_loss():
    some = [Example([1, 3, 4, 2], 2), Example([1, 3, 5, 6, 2], 2)]
    good = torch.tensor([True, False])
    settings = DirectSettings(
        batch_size=2, lr=0.0, desirable_weight=3.0, undesirable_weight=5.0
    )
    (row,) = train_on_labels(tiny(), tiny(), some, good, settings, torch.Generator())
    assert row["loss"] == pytest.approx((3 * 0.5 + 5 * 0.5) / 2)
    assert row["desirable"] == row["undesirable"] == row["reference_kl"] == 0
    apart, ref = tiny(1), tiny(2)
    (row,) = train_on_labels(apart, ref, some, good, settings, torch.Generator())
    swapped = mismatched(some)
    wanted = (answer_logprobs(apart, swapped) - answer_logprobs(ref, swapped)).mean()
    assert row["reference_kl"] == pytest.approx(max(0, wanted.item()), abs=1e-5)
    ratios = (answer_logprobs(apart, some) - answer_logprobs(ref, some)).tolist()
    assert row["desirable"] == pytest.approx(ratios[0], abs=1e-5)
    assert row["undesirable"] == pytest.approx(ratios[1], abs=1e-5)


def test_training_on_labels_learns_them():
    policy, ref = tiny(), tiny()
    some = [Example([1, 3, 4, 2], 2), Example([1, 3, 5, 6, 2], 2)] * 2
    good = torch.tensor([True, False] * 2)
    settings = DirectSettings(epochs=40, batch_size=4, lr=1e-2, warmup_steps=0)
    history = train_on_labels(policy, ref, some, good, settings, torch.Generator())
    assert history[-1]["desirable"] > history[-1]["undesirable"] + 0.5
    assert set(history[0]) == {"loss", "desirable", "undesirable", "reference_kl"}


def test_what_is_wrong_is_refused_by_name():
    policy, ref, settings = tiny(), tiny(), DirectSettings(batch_size=1)
    rng = torch.Generator()
    same = pair((1, 3, 4, 2), (1, 3, 4, 2))
    calls = [
        (lambda: dpo_loss(*FOUR, 0.0), "beta must"),
        (lambda: ipo_loss(*FOUR, -1.0), "tau must"),
        (lambda: dpo_loss(*FOUR[:3], FOUR[3][:1], 0.1), "ref_rejected_logprobs must"),
        (lambda: dpo_loss(FOUR[0] * math.nan, *FOUR[1:], 0.1), "chosen_logprobs must"),
        (lambda: DirectSettings(loss="kto"), "loss must"),
        (
            lambda: train_on_pairs(policy, ref, [[same]], settings, rng),
            "different sides",
        ),
        (
            lambda: train_on_labels(
                policy,
                ref,
                [Example([1, 3, 4, 2], 2)],
                torch.tensor([True]),
                settings,
                rng,
            ),
            "batch_size must be at least 2",
        ),
        (
            lambda: train_on_pairs(policy, policy, [[pair()]], settings, rng),
            "ref_policy must be a copy",
        ),
        (
            lambda: train_on_pairs(
                policy, ref, [[pair()]], DirectSettings(batch_size=2), rng
            ),
            "at least settings.batch_size",
        ),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=words):
            call()
