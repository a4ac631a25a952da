"""Losses of comparisons and labels by hand; the training loop against one by hand."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from test_model import small
from test_reward_model import model

from minillama import preference_loss
from minillama.data import Example, PairExample, endless_batches
from minillama.lm import evaluate_lm
from minillama.optim import TrainingDiverged, warmup_cosine
from minillama.preference_loss import (
    MARGINS,
    RewardSettings,
    bradley_terry_loss,
    centring_loss,
    chosen_lm_loss,
    pair_loss,
    pair_scores,
    safety_label_loss,
    train_reward_model,
)
from minillama.reward_model import RewardModel, score_texts

NAN, INF = math.nan, math.inf
PAIRS = [
    PairExample([1, 2, 3], [1, 4], 0.0, True, False, 1),
    PairExample([1, 2, 3], [1, 5, 6, 7], 0.5, True, True, 1),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(got, expected, atol=1e-5):
    got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


# --------------------------------------------------------------------------------------
# The losses, by hand


@pytest.mark.parametrize(
    "difference, margin, loss",
    [
        (0.0, None, math.log(2)),
        (0.0, 1 / 3, 0.873645),
        (0.0, 2 / 3, 1.081037),
        (0.0, 1, 1.313262),  # ln(1 + e)
        (0.0, 3.0, 3.048587),  # ln(1 + e^3)
        (1.0, 3.0, 2.126928),  # ln(1 + e^2): the margin is subtracted
        (2.0, 0.0, 0.126928),  # ln(1 + e^-2)
        (-2.0, None, 2.126928),
        (-200.0, None, 200.0),  # log(sigmoid(-200)) would be -inf
    ],
)
def test_bradley_terry_by_hand(difference, margin, loss):
    rejected = torch.tensor([5.0])
    close(bradley_terry_loss(rejected + difference, rejected, margin), loss)


def test_bradley_terry_of_several_pairs():
    chosen, rejected = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])
    margins = torch.tensor([0.0, 0.0, 1.0])
    by_hand = [math.log(2), 2.126928, 1.313262]  # ln 2, ln(1 + e^2), ln(1 + e)
    close(bradley_terry_loss(chosen, rejected, margins, "none"), by_hand)
    close(bradley_terry_loss(chosen, rejected, margins, "sum"), sum(by_hand))
    close(bradley_terry_loss(chosen, rejected, margins, "mean"), sum(by_hand) / 3)
    close(bradley_terry_loss(chosen, rejected, margins), sum(by_hand) / 3)


def test_bradley_terry_pulls_both_scores_alike():
    scores = [torch.tensor([0.3], requires_grad=True) for _ in range(2)]
    bradley_terry_loss(*scores).backward()
    assert [x.grad.item() for x in scores] == [-0.5, 0.5]  # sigmoid(0) - 1, 1 - …


def test_safety_labels_by_hand():
    scores, safe = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([True, False, True])
    by_hand = [0.126928, 0.313262, math.log(2)]  # ln(1 + e^-2), ln(1 + e^-1)
    close(safety_label_loss(scores, safe, "none"), by_hand)
    close(safety_label_loss(scores, safe.float(), "none"), by_hand)
    close(safety_label_loss(scores, safe), sum(by_hand) / 3)
    close(safety_label_loss(scores, safe, "sum"), sum(by_hand))
    # the other labels: ln(1 + e^2), ln(1 + e)
    close(safety_label_loss(scores[:2], ~safe[:2], "none"), [2.126928, 1.313262])
    # one annotator of four says safe: 0.25 ln(1 + e^-2) + 0.75 ln(1 + e^2)
    close(safety_label_loss(scores[:1], torch.tensor([0.25])), 1.626928)
    assert safety_label_loss(scores.double(), safe).dtype == torch.float64


def test_centring_sees_sums_alone():
    chosen, rejected = torch.tensor([2.0, 0.5]), torch.tensor([-1.0, -2.0])
    # (2 - 1)^2, (0.5 - 2)^2
    close(centring_loss(chosen, rejected, "none"), [1.0, 2.25])
    close(centring_loss(chosen, rejected), 1.625)
    close(centring_loss(rejected, chosen, "sum"), 3.25)
    # another difference, the same sum; then both scores of a pair move by 1
    close(centring_loss(chosen + 3, rejected - 3, "none"), [1.0, 2.25])
    close(centring_loss(chosen + 1, rejected + 1, "none"), [9.0, 0.25])


def test_margins_grow_with_the_strength():
    assert MARGINS["none"] == (0, 0, 0, 0)
    assert MARGINS["small"] == (0, 1 / 3, 2 / 3, 1) and MARGINS["large"] == (0, 1, 2, 3)


# --------------------------------------------------------------------------------------
# Pairs


def test_one_forward_scores_every_text_once():
    ours, lengths = model(), []
    ours.register_forward_pre_hook(lambda _, inputs: lengths.append(len(inputs[0])))
    chosen, rejected = pair_scores(ours, PAIRS)
    assert lengths == [3]  # 4 places, 3 distinct texts, 1 forward
    expected = score_texts(ours, [[1, 2, 3], [1, 2, 3], [1, 4], [1, 5, 6, 7]])
    torch.testing.assert_close(
        torch.cat((chosen, rejected)), expected, atol=1e-5, rtol=0
    )
    assert chosen.requires_grad and rejected.requires_grad


def test_equal_answers_of_a_pair_carry_no_signal():
    twin = PairExample([1, 2], [1, 2], 0.0, True, True, 1)
    ours = model()
    loss = pair_loss(*pair_scores(ours, [twin]), [twin])
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert all(p.grad.abs().max() == 0 for p in ours.parameters())


def test_the_loss_adds_margins_labels_and_centring():
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.5])
    # margins 0, 0.5: ln(1 + e^-1), ln(1 + e^0)
    comparisons = (0.313262 + math.log(2)) / 2
    # safe 1, safe 2, unsafe 0, safe 1.5:
    # ln(1 + e^-1), ln(1 + e^-2), ln 2, ln(1 + e^-1.5)
    labels = (0.313262 + 0.126928 + math.log(2) + 0.201413) / 4
    centring = (1 + 3.5**2) / 2
    close(pair_loss(chosen, rejected, PAIRS), comparisons)
    close(pair_loss(chosen, rejected, PAIRS, 0.5), comparisons + 0.5 * labels)
    close(
        pair_loss(chosen, rejected, PAIRS, centre_weight=0.1),
        comparisons + 0.1 * centring,
    )
    close(
        pair_loss(chosen, rejected, PAIRS, 2, 3),
        comparisons + 2 * labels + 3 * centring,
    )


def speaker(seed=0):
    """A reward model that keeps its lm_head, and whose probabilities differ."""
    body = small()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return RewardModel(body, keep_lm_head=True, generator=seeded(seed))


SPOKEN = [
    PairExample([1, 2, 3, 4], [1, 2, 9], 0.0, True, True, 2),
    PairExample([1, 2, 3, 4], [1, 2, 8], 0.0, True, True, 2),
    PairExample([1, 5, 6, 7, 8, 9], [1, 5, 6, 9], 0.0, True, True, 3),
]


def surprises(llama, text, start):
    """-log p of each token from `start` on, each from the text before it alone."""
    return [
        -llama(torch.tensor([text[:t]]))[0, -1].log_softmax(-1)[text[t]]
        for t in range(start, len(text))
    ]


def test_the_lm_loss_counts_the_tokens_of_distinct_chosen_answers():
    ours = speaker()
    # 3, 4 of the one answer, 7, 8, 9 of the other
    by_hand = surprises(ours.llama, [1, 2, 3, 4], 2)
    by_hand += surprises(ours.llama, [1, 5, 6, 7, 8, 9], 3)
    assert len(by_hand) == 5 and max(by_hand) - min(by_hand) > 0.1
    assert chosen_lm_loss(ours, SPOKEN).item() == pytest.approx(
        sum(by_hand).item() / 5, abs=1e-4
    )
    ours.llama.lm_head.weight.data.zero_()
    # 50 tokens, all alike
    close(chosen_lm_loss(ours, SPOKEN).detach(), math.log(50))


def test_texts_go_where_the_model_is(monkeypatch):
    seen = []

    class Elsewhere(torch.nn.Linear):
        def forward(self, *tensors):
            seen.extend(tensor.device.type for tensor in tensors)
            return torch.zeros(len(tensors[0]))

    pair_scores(Elsewhere(1, 1, device="meta"), PAIRS)
    assert seen == ["meta"] * 2

    def record(llama, *tensors):
        seen.extend(tensor.device.type for tensor in tensors)
        return torch.zeros(())

    monkeypatch.setattr(preference_loss, "lm_loss_of", record)
    chosen_lm_loss(speaker().to("meta"), SPOKEN)
    assert seen[2:] == ["meta"] * 3


# --------------------------------------------------------------------------------------
# The training loop


def drawn_groups():
    """Seven groups of two comparisons each, of texts of many lengths."""
    generator, groups = seeded(4), []
    for n in range(7):
        a, b, c = (
            [1, 2, *torch.randint(3, 49, (k,), generator=generator).tolist()]
            for k in (1 + n, 9 - n, 2 + 3 * (n % 3))
        )
        groups.append(
            [
                PairExample(a, b, 0.3 * n, True, False, 2),
                PairExample(b, c, 1.0, n % 2 == 0, True, 2),
            ]
        )
    return groups


def train_by_hand(ours, groups, settings, generator):
    """The losses of `train_reward_model`, term by term, each text by itself."""
    steps = settings.epochs * (len(groups) // settings.batch_size)
    drawn = endless_batches(len(groups), settings.batch_size, generator)
    batches = list(itertools.islice(drawn, steps))
    optimizer = torch.optim.AdamW(
        ours.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.0
    )
    losses = []
    for step, batch in enumerate(batches):
        pairs = [pair for i in batch for pair in groups[i]]
        sides = [
            torch.cat([ours.raw_scores(torch.tensor([x])) for x in texts])
            for texts in ([p.chosen for p in pairs], [p.rejected for p in pairs])
        ]
        margins = torch.tensor([p.margin for p in pairs])
        loss = -F.logsigmoid(sides[0] - sides[1] - margins).mean()
        safe = [p.chosen_is_safe for p in pairs] + [p.rejected_is_safe for p in pairs]
        signs = 2.0 * torch.tensor(safe) - 1
        labels = -F.logsigmoid(signs * torch.cat(sides)).mean()
        loss = loss + settings.label_weight * labels
        loss = loss + settings.centre_weight * (sides[0] + sides[1]).square().mean()
        if settings.lm_weight:
            spoken = dict.fromkeys(tuple(p.chosen) for p in pairs)
            tokens = [x for text in spoken for x in surprises(ours.llama, text, 2)]
            loss = loss + settings.lm_weight * sum(tokens) / len(tokens)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        share = warmup_cosine(step, len(batches), settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = settings.lr * share
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "settings",
    [
        RewardSettings(batch_size=2, epochs=2, warmup_steps=2),
        RewardSettings(batch_size=3, lr=3e-3, warmup_steps=1, label_weight=0.7),
        RewardSettings(batch_size=2, lr=3e-3, warmup_steps=2, centre_weight=0.2),
        RewardSettings(batch_size=3, lr=3e-3, warmup_steps=1, lm_weight=0.5),
        RewardSettings(2, 4, 2e-3, 1, 0.3, 0.4, 0.5),
    ],
)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_loop_does_what_a_loop_by_hand_does(settings, pooling):
    """Each weight, the rate, warm-up, epochs, batches, raw scores: all arrive."""
    ours, other = (
        RewardModel(small(), pooling, keep_lm_head=True, generator=seeded(5))
        for _ in range(2)
    )
    ours.set_normalisation(3.0, 7.0)  # training does not see it
    groups = drawn_groups()
    losses = train_reward_model(ours.eval(), groups, settings, seeded(8))
    assert len(losses) == settings.epochs * (7 // settings.batch_size)
    expected = train_by_hand(other.train(), groups, settings, seeded(8))
    assert losses == pytest.approx(expected, abs=2e-4)
    assert not ours.training
    for name, parameter in other.named_parameters():
        got = ours.get_parameter(name)
        torch.testing.assert_close(got, parameter, atol=2e-4, rtol=0, msg=name)


def test_the_order_of_the_batches_is_the_generators():
    groups = drawn_groups()
    settings = RewardSettings(batch_size=2, warmup_steps=1)
    losses = [
        train_reward_model(model(), groups, settings, seeded(seed))
        for seed in (8, 8, 9)
    ]
    assert losses[0] == losses[1] and losses[0] != losses[2]


def test_a_model_is_trained_in_train_mode_and_left_in_eval_mode():
    ours, modes = model().eval(), []
    ours.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    settings = RewardSettings(batch_size=1, warmup_steps=1)
    train_reward_model(ours, [PAIRS] * 3, settings, seeded())
    assert modes == [True] * 3 and not ours.training and not ours.llama.training


def test_training_learns_the_pairs_and_stops_at_nan():
    ours = model()
    settings = RewardSettings(epochs=30, batch_size=1, lr=1e-2, warmup_steps=1)
    losses = train_reward_model(ours, [PAIRS], settings, seeded())
    chosen, rejected = pair_scores(ours, PAIRS)
    assert len(losses) == 30 and losses[-1] < 0.1
    assert (chosen > rejected + torch.tensor([0.0, 0.5])).all()
    ours.score.weight.data.fill_(NAN)
    message = r"step 0: scores is not finite, batch of examples \[0\]"
    with pytest.raises(TrainingDiverged, match=message):
        train_reward_model(ours, [PAIRS], settings, seeded())


def test_a_loss_that_is_not_finite_names_its_batch():
    ours = speaker()
    ours.llama.lm_head.weight.data.fill_(NAN)  # the scores know nothing of it
    settings = RewardSettings(batch_size=2, warmup_steps=1, lm_weight=1.0)
    message = r"step 0: loss is not finite, batch of examples \[(0, 1|1, 0)\]"
    with pytest.raises(TrainingDiverged, match=message):
        train_reward_model(ours, [PAIRS] * 2, settings, seeded())


def test_the_bar_has_the_name_that_was_asked_for(capfd):
    settings = RewardSettings(batch_size=1, warmup_steps=1)
    train_reward_model(model(), [PAIRS], settings, seeded())
    assert capfd.readouterr().err == ""
    train_reward_model(model(), [PAIRS] * 2, settings, seeded(), "judge")
    shown = capfd.readouterr().err
    assert "judge" in shown and "2/2" in shown


def test_groups_that_fill_no_batch_are_refused_and_one_batch_is_enough():
    settings = RewardSettings(batch_size=3, warmup_steps=1)
    message = (
        "^train_reward_model: groups must be at least settings.batch_size = 3, got 2$"
    )
    with pytest.raises(ValueError, match=message):
        train_reward_model(model(), [PAIRS] * 2, settings, seeded())
    assert len(train_reward_model(model(), [PAIRS] * 3, settings, seeded())) == 1


def test_centring_removes_the_offset_that_comparisons_leave():
    offsets = []
    for weight in (0.0, 0.1):
        ours = model(seed=3)
        settings = RewardSettings(
            epochs=40, batch_size=1, lr=3e-3, warmup_steps=1, centre_weight=weight
        )
        train_reward_model(ours, [PAIRS[:1]], settings, seeded())
        chosen, rejected = pair_scores(ours, PAIRS[:1])
        assert (chosen > rejected).all()
        offsets.append((chosen + rejected).abs().item())
    assert offsets[1] < 0.2 * offsets[0]


def test_the_lm_term_keeps_the_model_able_to_write():
    losses = {}
    for weight in (0.0, 1.0):
        ours, head = speaker(), speaker().llama.lm_head.weight
        settings = RewardSettings(
            epochs=20, batch_size=1, lr=1e-3, warmup_steps=1, lm_weight=weight
        )
        train_reward_model(ours, [PAIRS], settings, seeded())
        chosen, rejected = pair_scores(ours, PAIRS)
        assert (chosen > rejected).all()
        # without the term nothing reaches the lm_head
        assert torch.equal(ours.llama.lm_head.weight, head) == (weight == 0)
        losses[weight] = evaluate_lm(ours.llama, [Example([1, 2, 3], 1)])[0]
    assert losses[1.0] < losses[0.0] - 1


# --------------------------------------------------------------------------------------
# Refusals

S, COLUMN = torch.zeros(2), torch.zeros(2, 1)
bt = bradley_terry_loss
label = safety_label_loss


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: bt(S, S, COLUMN), ValueError, "bradley_terry_loss: margin"),
        (lambda: bt(S, S, -1.0), ValueError, "bradley_terry_loss: margin .* got -1"),
        (lambda: bt(S, S, INF), ValueError, "bradley_terry_loss: margin .* got inf"),
        (lambda: bt(S, S, NAN), ValueError, "bradley_terry_loss: margin .* got nan"),
        (lambda: bt(S, S, S - 1), ValueError, "bradley_terry_loss: margin .* got -1"),
        (lambda: bt(S, S, S + NAN), ValueError, "bradley_terry_loss: margin .* nan"),
        (lambda: bt(S, S, "big"), TypeError, "bradley_terry_loss: margin .* got 'big'"),
        (lambda: bt(S / 0, S), ValueError, "bradley_terry_loss: chosen_scores .* nan"),
        (lambda: bt(S, S + INF), ValueError, "bradley_terry_loss: rejected_.* got inf"),
        (lambda: bt(S[:0], S[:0]), ValueError, "bradley_terry_loss: chosen_scores"),
        (lambda: bt(S, S[:1]), ValueError, "bradley_terry_loss: rejected_scores"),
        (lambda: bt(S, COLUMN), ValueError, "bradley_terry_loss: rejected_scores"),
        (lambda: bt(S.long(), S), TypeError, "bradley_terry_loss: chosen_scores"),
        (lambda: bt(S, S, None, "max"), ValueError, "bradley_terry_loss: reduction"),
        (
            lambda: centring_loss(S, COLUMN),
            ValueError,
            "centring_loss: rejected_scores",
        ),
        (lambda: centring_loss(S[:0], S[:0]), ValueError, "centring_loss: chosen_sc"),
        (lambda: centring_loss(S, S * NAN), ValueError, "centring_loss: rejected_scor"),
        (lambda: centring_loss(S.long(), S), TypeError, "centring_loss: chosen_scores"),
        (lambda: centring_loss(S, S, "max"), ValueError, "centring_loss: reduction"),
        (lambda: label(S, S + 2), ValueError, "safety_label_loss: labels .* got 2"),
        (lambda: label(S, COLUMN), ValueError, "safety_label_loss: labels"),
        (lambda: label(S, COLUMN.bool()), ValueError, "safety_label_loss: labels"),
        (lambda: label(S, S.long()), TypeError, "safety_label_loss: labels"),
        (lambda: label(S * NAN, S), ValueError, "safety_label_loss: scores .* got nan"),
        (
            lambda: label(S, S, "max"),
            ValueError,
            "safety_label_loss: reduction .*'max'",
        ),
        (
            lambda: chosen_lm_loss(model(), PAIRS),
            ValueError,
            "chosen_lm_loss: reward_m",
        ),
        (
            lambda: chosen_lm_loss(small(), PAIRS),
            TypeError,
            "chosen_lm_loss: reward_mo",
        ),
        (lambda: chosen_lm_loss(speaker(), []), ValueError, "chosen_lm_loss: pairs"),
        (lambda: pair_scores(model(), []), ValueError, "pair_scores: pairs"),
        (lambda: pair_scores(model(), ["ab"]), TypeError, "pair_scores: pairs"),
        (lambda: pair_scores(len, PAIRS), TypeError, "pair_scores: reward_model"),
        (lambda: pair_scores(small(), PAIRS), ValueError, "pair_scores: the result"),
        (lambda: pair_loss(S, S, PAIRS[:1]), ValueError, "pair_loss: pairs"),
        (lambda: pair_loss(S, COLUMN, PAIRS), ValueError, "pair_loss: rejected"),
        (
            lambda: pair_loss(S, S * NAN, PAIRS),
            ValueError,
            "pair_loss: rejected .* nan",
        ),
        (lambda: pair_loss(S, S, PAIRS, -1), ValueError, "pair_loss: label_weight"),
        (
            lambda: pair_loss(S, S, PAIRS, 0, NAN),
            ValueError,
            "pair_loss: centre_weight",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    "field, value, error",
    [
        ("epochs", 0, ValueError),
        ("epochs", 1.5, TypeError),
        ("batch_size", 0, ValueError),
        ("batch_size", True, TypeError),
        ("lr", -1e-3, ValueError),
        ("lr", NAN, ValueError),
        ("lr", "1e-3", TypeError),
        ("warmup_steps", -1, ValueError),
        ("label_weight", -0.5, ValueError),
        ("lm_weight", -0.5, ValueError),
        ("lm_weight", INF, ValueError),
        ("centre_weight", -0.5, ValueError),
        ("centre_weight", None, TypeError),
    ],
)
def test_settings_out_of_range(field, value, error):
    with pytest.raises(error, match=f"^RewardSettings: {field} must be .*, got "):
        RewardSettings(**{field: value})


@pytest.mark.parametrize(
    "field, value, error, message",
    [
        ("reward_model", None, TypeError, "reward_model"),
        ("groups", [], ValueError, "groups .* empty"),
        ("groups", [PAIRS, []], ValueError, "groups .* empty"),
        ("groups", PAIRS, TypeError, "groups"),
        ("settings", {"epochs": 1}, TypeError, "settings .* got a dict"),
        ("generator", 0, TypeError, "generator .* got 0"),
        ("desc", 3, TypeError, "desc .* got 3"),
    ],
)
def test_bad_arguments_of_the_loop(field, value, error, message):
    arguments = {
        "reward_model": model(),
        "groups": [PAIRS],
        "settings": RewardSettings(batch_size=1, warmup_steps=1),
        "generator": seeded(),
    }
    with pytest.raises(error, match=f"^train_reward_model: {message}"):
        train_reward_model(**arguments | {field: value})


def test_an_lm_term_needs_an_lm_head():
    settings = RewardSettings(batch_size=1, warmup_steps=1, lm_weight=1.0)
    message = (
        "^train_reward_model: reward_model must be made with keep_lm_head=True "
        "for an lm_weight above 0, got one without lm_head$"
    )
    with pytest.raises(ValueError, match=message):
        train_reward_model(model(), [PAIRS], settings, seeded())
