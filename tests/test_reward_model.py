"""Scores, values and the losses that teach them: against transformers, by hand, and at the door."""

import math

import pytest
import torch
from test_model import small, transplant
from transformers import LlamaForSequenceClassification

from minillama.data import Example, PairExample
from minillama.lm import evaluate_lm
from minillama.optim import TrainingDiverged
from minillama.preference_loss import (
    RewardSettings,
    bradley_terry_loss,
    centring_loss,
    chosen_lm_loss,
    pair_loss,
    pair_scores,
    safety_label_loss,
    train_reward_model,
)
from minillama.reward_model import (
    RewardModel,
    ValueModel,
    score_normalisation,
    score_texts,
)

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 49, 49]])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
PAIRS = [
    PairExample([1, 2, 3], [1, 4], 0.0, True, False, 1),
    PairExample([1, 2, 3], [1, 5, 6, 7], 0.5, True, True, 1),
]


def model(seed=0, **options):
    return RewardModel(
        small(), generator=torch.Generator().manual_seed(seed), **options
    ).eval()


@pytest.mark.parametrize("side", ["right", "left"])
def test_scores_equal_transformers(side):
    ours = model()
    config = transplant(small()).config
    config.num_labels, config.pad_token_id = 1, 49
    theirs = LlamaForSequenceClassification(config).eval()
    state = {f"model.{n}": p for n, p in ours.llama.state_dict().items()} | {
        "score.weight": ours.score.weight
    }
    theirs.load_state_dict(state)
    ids, mask = IDS.clone(), MASK.clone()
    if side == "left":
        ids[1], mask[1] = torch.tensor([49, 49, 9, 2, 6]), mask[1].flip(0)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask.long(), position_ids=positions).logits[
        :, 0
    ]
    torch.testing.assert_close(ours(ids, mask), expected, atol=1e-5, rtol=0)


def test_a_batch_scores_as_its_rows_do():
    ours = model()
    together = ours(IDS, MASK)
    torch.testing.assert_close(
        together, torch.cat((ours(IDS[:1]), ours(IDS[1:, :3]))), atol=1e-5, rtol=0
    )
    assert score_texts(
        ours, [IDS[1, :3].tolist(), IDS[0].tolist()], 1
    ).tolist() == pytest.approx(together.flip(0).tolist())


def test_the_head_starts_with_its_published_spread():
    heads = torch.cat(
        [model(seed).score.weight.flatten() for seed in range(200)]
    )  # 6400 draws of std 1 / sqrt(33)
    assert heads.std().item() * math.sqrt(33) == pytest.approx(
        1, abs=4 / math.sqrt(2 * 6400)
    )


def test_the_body_is_a_copy_without_the_lm_head():
    body = small()
    ours = RewardModel(body)
    assert (
        ours.llama.embed_tokens.weight.data_ptr() != body.embed_tokens.weight.data_ptr()
    )
    assert not any("lm_head" in name for name in ours.state_dict())
    assert "llama.lm_head.weight" in RewardModel(body, keep_lm_head=True).state_dict()


def test_normalisation_is_for_evaluation():
    ours = model()
    raw = ours(IDS, MASK)
    ours.set_normalisation(*score_normalisation(raw))
    white = ours(IDS, MASK)
    assert white.mean().item() == pytest.approx(
        0, abs=1e-5
    ) and white.std().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(ours.train()(IDS, MASK), raw)
    assert score_normalisation(raw, centre_only=True) == (
        pytest.approx(raw.mean().item()),
        1.0,
    )
    assert score_normalisation(torch.tensor([1.0, 2.0, 3.0, 4.0])) == (
        2.5,
        pytest.approx(math.sqrt(5 / 3)),
    )
    assert score_normalisation(torch.tensor([7.0]), centre_only=True) == (7.0, 1.0)
    twin = model(seed=1)
    twin.load_state_dict(
        ours.state_dict()
    )  # the normalisation travels with the weights
    assert torch.equal(twin(IDS, MASK), white)
    for arguments in ((math.nan,), (0.0, 0.0)):
        with pytest.raises(ValueError, match="set_normalisation"):
            ours.set_normalisation(*arguments)
    with pytest.raises(ValueError, match="pooling"):
        model(pooling="first")


def test_values_are_computed_one_position_early():
    values = ValueModel(model())
    assert (values(IDS, MASK) == 0).all()
    torch.nn.init.ones_(values.value.weight)
    changed = IDS.clone()
    changed[0, 3] = (
        7  # token 3 may change the values of entry 4 and later, and nothing before
    )
    same = (values(IDS, MASK) == values(changed, MASK))[0].tolist()
    assert same == [True, True, True, True, False]
    assert (values(IDS, MASK)[1, 3:] == 0).all()


def test_bradley_terry_reference_numbers():
    zero = torch.zeros(1)
    assert bradley_terry_loss(zero, zero).item() == pytest.approx(math.log(2))
    for margin, loss in (
        (1 / 3, 0.87364),
        (2 / 3, 1.08104),
        (1.0, 1.31326),
        (3.0, 3.04859),
    ):
        assert bradley_terry_loss(zero, zero, margin).item() == pytest.approx(
            loss, abs=1e-5
        )
    assert bradley_terry_loss(zero + 1, zero, 3.0).item() == pytest.approx(
        2.1269, abs=1e-4
    )  # pitfall 7
    labels = safety_label_loss(
        torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]), "none"
    )
    assert labels.tolist() == pytest.approx(
        [math.log1p(math.exp(-2)), math.log1p(math.exp(-1))]
    )


S = torch.zeros(2)


@pytest.mark.parametrize(
    "call, error, named",
    [
        (lambda: bradley_terry_loss(S, S, torch.ones(2, 1)), ValueError, "margin"),
        (lambda: bradley_terry_loss(S, S, -1.0), ValueError, "margin"),
        (lambda: bradley_terry_loss(S, S, math.inf), ValueError, "margin"),
        (lambda: bradley_terry_loss(S / 0, S), ValueError, "finite"),
        (lambda: bradley_terry_loss(S[:0], S[:0]), ValueError, "B >= 1"),
        (lambda: bradley_terry_loss(S, S[:1]), ValueError, "rejected_scores"),
        (lambda: bradley_terry_loss(S.long(), S), TypeError, "chosen_scores"),
        (lambda: bradley_terry_loss(S, S, reduction="max"), ValueError, "reduction"),
        (
            lambda: centring_loss(S, S[:, None]),
            ValueError,
            "centring_loss: chosen_scores",
        ),
        (lambda: centring_loss(S[:0], S[:0]), ValueError, "B >= 1"),
        (lambda: centring_loss(S, S * math.nan), ValueError, "finite"),
        (
            lambda: centring_loss(S.long(), S.long()),
            TypeError,
            "centring_loss: chosen_scores",
        ),
        (lambda: centring_loss(S, S, "max"), ValueError, "reduction"),
        (lambda: chosen_lm_loss(model(), PAIRS), ValueError, "keep_lm_head"),
        (lambda: score_normalisation(S), ValueError, "2 different"),
        (
            lambda: score_normalisation(S[:0], centre_only=True),
            ValueError,
            "at least 1",
        ),
        (lambda: score_normalisation(S / 0), ValueError, "finite"),
        (lambda: safety_label_loss(S, S + 2), ValueError, "labels"),
        (lambda: safety_label_loss(S, S[:, None]), ValueError, "labels"),
        (lambda: safety_label_loss(S * math.nan, S), ValueError, "scores"),
    ],
)
def test_bad_arguments(call, error, named):
    with pytest.raises(error, match=named):
        call()


def test_one_forward_scores_every_text_once():
    ours, lengths = model(), []
    ours.register_forward_pre_hook(lambda _, inputs: lengths.append(len(inputs[0])))
    chosen, rejected = pair_scores(ours, PAIRS)
    assert lengths == [3]  # 4 places, 3 distinct texts, 1 forward
    expected = score_texts(ours, [[1, 2, 3], [1, 2, 3], [1, 4], [1, 5, 6, 7]])
    torch.testing.assert_close(
        torch.cat((chosen, rejected)), expected, atol=1e-5, rtol=0
    )


def test_the_loss_adds_margins_and_labels():
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.5])
    comparisons = bradley_terry_loss(chosen, rejected, torch.tensor([0.0, 0.5]))
    labels = safety_label_loss(
        torch.cat((chosen, rejected)), torch.tensor([1.0, 1.0, 0.0, 1.0])
    )
    assert pair_loss(chosen, rejected, PAIRS).item() == pytest.approx(
        comparisons.item()
    )
    assert pair_loss(chosen, rejected, PAIRS, 0.5).item() == pytest.approx(
        (comparisons + 0.5 * labels).item()
    )


def test_centring_sees_sums_alone():
    chosen, rejected = torch.tensor([2.0, 0.5]), torch.tensor([-1.0, -2.0])
    assert centring_loss(chosen, rejected, "none").tolist() == [
        1.0,
        2.25,
    ]  # (2 - 1)^2, (0.5 - 2)^2
    assert (
        centring_loss(chosen, rejected).item() == 1.625
        and centring_loss(rejected, chosen, "sum").item() == 3.25
    )
    assert centring_loss(chosen + 3, rejected - 3, "none").tolist() == [
        1.0,
        2.25,
    ]  # another difference, the same sum
    assert centring_loss(chosen + 1, rejected + 1, "none").tolist() == [
        9.0,
        0.25,
    ]  # both pairs move by 2
    with_centring = pair_loss(chosen, rejected, PAIRS, 0.0, 0.1).item()
    assert with_centring == pytest.approx(
        pair_loss(chosen, rejected, PAIRS).item() + 0.1 * 1.625
    )


def test_centring_removes_the_offset_that_comparisons_leave():
    offsets = []
    for weight in (0.0, 0.1):
        ours = model(seed=3)
        settings = RewardSettings(
            epochs=40, batch_size=1, lr=3e-3, warmup_steps=1, centre_weight=weight
        )
        train_reward_model(
            ours, [PAIRS[:1]], settings, torch.Generator().manual_seed(0)
        )
        chosen, rejected = pair_scores(ours, PAIRS[:1])
        assert (chosen > rejected).all()
        offsets.append((chosen + rejected).abs().item())
    assert offsets[1] < 0.2 * offsets[0]


def speaker():
    """A reward model that keeps its lm_head, with weights large enough for its probabilities to differ."""
    body = small()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return RewardModel(
        body, keep_lm_head=True, generator=torch.Generator().manual_seed(0)
    )


def test_the_lm_loss_counts_the_tokens_of_distinct_chosen_answers():
    ours = speaker()
    pairs = [
        PairExample([1, 2, 3, 4], [1, 2, 9], 0.0, True, True, 2),
        PairExample([1, 2, 3, 4], [1, 2, 8], 0.0, True, True, 2),
        PairExample([1, 5, 6, 7, 8, 9], [1, 5, 6, 9], 0.0, True, True, 3),
    ]
    surprises = []  # token by token, each from the text before it: 3, 4 of the one answer, 7, 8, 9 of the other
    for text, start in (([1, 2, 3, 4], 2), ([1, 5, 6, 7, 8, 9], 3)):
        surprises += [
            -ours.llama(torch.tensor([text[:t]]))[0, -1].log_softmax(-1)[text[t]].item()
            for t in range(start, len(text))
        ]
    assert len(surprises) == 5 and max(surprises) - min(surprises) > 0.1
    assert chosen_lm_loss(ours, pairs).item() == pytest.approx(
        sum(surprises) / 5, abs=1e-4
    )
    ours.llama.lm_head.weight.data.zero_()
    assert chosen_lm_loss(ours, pairs).item() == pytest.approx(
        math.log(50), abs=1e-5
    )  # 50 tokens, all alike


def test_the_lm_term_keeps_the_model_able_to_write():
    losses = {}
    for weight in (0.0, 1.0):
        ours, head = speaker(), speaker().llama.lm_head.weight
        settings = RewardSettings(
            epochs=20, batch_size=1, lr=1e-3, warmup_steps=1, lm_weight=weight
        )
        train_reward_model(ours, [PAIRS], settings, torch.Generator().manual_seed(0))
        chosen, rejected = pair_scores(ours, PAIRS)
        assert (chosen > rejected).all()
        assert torch.equal(ours.llama.lm_head.weight, head) == (
            weight == 0
        )  # without the term nothing reaches the lm_head
        losses[weight] = evaluate_lm(ours.llama, [Example([1, 2, 3], 1)])[0]
    assert losses[1.0] < losses[0.0] - 1
    with pytest.raises(ValueError, match="keep_lm_head"):
        train_reward_model(
            model(),
            [PAIRS],
            RewardSettings(batch_size=1, lm_weight=1.0),
            torch.Generator(),
        )


def test_training_learns_the_pairs_and_stops_at_nan():
    ours, settings = (
        model(),
        RewardSettings(epochs=30, batch_size=1, lr=1e-2, warmup_steps=1),
    )
    losses = train_reward_model(
        ours, [PAIRS], settings, torch.Generator().manual_seed(0)
    )
    chosen, rejected = pair_scores(ours, PAIRS)
    assert (
        len(losses) == 30
        and losses[-1] < 0.1
        and (chosen > rejected).all()
        and not ours.training
    )
    ours.score.weight.data.fill_(math.nan)
    with pytest.raises(
        TrainingDiverged, match=r"step 0: scores is not finite, batch of examples \[0\]"
    ):
        train_reward_model(ours, [PAIRS], settings, torch.Generator())
