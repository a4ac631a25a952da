"""Reward and value models: against transformers, by hand, on either padding side."""

import math

import pytest
import torch
from test_model import small, transplant
from transformers import LlamaForSequenceClassification

from minillama.reward_model import (
    RewardModel,
    ValueModel,
    copy_body,
    last_token,
    pool_mean,
    response_values,
    score_normalisation,
    score_texts,
)

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 49, 49]])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
LEFT_IDS = torch.tensor([[3, 1, 4, 1, 5], [49, 49, 9, 2, 6]])
LEFT_MASK = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
NAN, INF = math.nan, math.inf


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model(seed=0, **options):
    return RewardModel(small(), generator=seeded(seed), **options).eval()


def values_of(value_model, ids, mask=None):
    """What a value model says, with a head that is not zero."""
    torch.nn.init.normal_(value_model.value.weight, generator=seeded(7))
    return value_model(ids, mask)


def close(got, expected, atol=1e-5):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


# --------------------------------------------------------------------------------------
# Bodies and pooling


def test_a_body_is_a_deep_copy():
    llama = small()
    for body in (copy_body(llama), copy_body(llama, keep_lm_head=True)):
        theirs = body.embed_tokens.weight
        assert torch.equal(theirs, llama.embed_tokens.weight)
        assert theirs.data_ptr() != llama.embed_tokens.weight.data_ptr()
        assert torch.equal(body.hidden(IDS, MASK), llama.hidden(IDS, MASK))
    assert torch.equal(body(IDS), llama(IDS))
    assert copy_body(llama).lm_head is None and llama.lm_head is not None
    assert copy_body(copy_body(llama)).lm_head is None


def test_the_last_token_of_each_row():
    mask = torch.tensor(
        [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]]
    ).bool()
    expected = [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]
    assert last_token(mask).int().tolist() == expected


def test_the_mean_state_of_each_row():
    states = torch.tensor([[[1.0, 2], [3, 4], [NAN, INF]], [[1, 2], [3, 4], [5, 9]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    close(pool_mean(states, mask), torch.tensor([[2.0, 3.0], [3.0, 5.0]]))


# --------------------------------------------------------------------------------------
# Scores


@pytest.mark.parametrize("ids, mask", [(IDS, MASK), (LEFT_IDS, LEFT_MASK)])
def test_scores_equal_transformers(ids, mask):
    ours = model()
    config = transplant(small()).config
    config.num_labels, config.pad_token_id = 1, 49
    theirs = LlamaForSequenceClassification(config).eval()
    state = {f"model.{n}": p for n, p in ours.llama.state_dict().items()}
    theirs.load_state_dict(state | {"score.weight": ours.score.weight})
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask.long(), position_ids=positions)
    close(ours(ids, mask), expected.logits[:, 0])


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("ids, mask", [(IDS, MASK), (LEFT_IDS, LEFT_MASK)])
def test_a_row_scores_as_it_does_alone(pooling, ids, mask):
    ours = model(pooling=pooling)
    rows = [text[real][None] for text, real in zip(ids, mask, strict=True)]
    close(ours(ids, mask), torch.cat([ours(row) for row in rows]))


@pytest.mark.parametrize("training", [False, True])
def test_the_pooling_that_was_asked_for_is_used_in_both_modes(training):
    hidden = small().hidden(IDS, MASK)  # (2, 5, D)
    last = torch.stack((hidden[0, 4], hidden[1, 2]))
    mean = torch.stack((hidden[0].mean(0), hidden[1, :3].mean(0)))
    for ours, pooled in (
        (model(), last),
        (model(pooling="last"), last),
        (model(pooling="mean"), mean),
    ):
        by_hand = pooled @ ours.score.weight[0]
        close(ours.train(training)(IDS, MASK), by_hand)
        close(ours.raw_scores(IDS, MASK), by_hand)


def test_without_a_mask_all_tokens_are_real():
    ours = model()
    assert torch.equal(ours(IDS), ours(IDS, torch.ones_like(MASK)))
    assert torch.equal(ours.raw_scores(IDS), ours(IDS))
    assert not torch.allclose(ours(IDS), ours(IDS, MASK))


def test_the_head_starts_with_its_published_spread():
    # 6400 draws of std 1 / sqrt(33); a std of n draws is off by std / sqrt(2 n)
    heads = torch.cat([model(seed).score.weight.flatten() for seed in range(200)])
    spread = heads.std().item() * math.sqrt(33)
    assert spread == pytest.approx(1, abs=4 / math.sqrt(2 * 6400))


def test_the_head_is_drawn_with_the_generator():
    drawn = torch.randn(1, 32, generator=seeded(3)) / math.sqrt(33)
    assert torch.equal(model(seed=3).score.weight, drawn)
    torch.manual_seed(1)
    first = RewardModel(small()).score.weight
    torch.manual_seed(1)
    assert torch.equal(RewardModel(small()).score.weight, first)


def test_the_head_has_no_bias_and_the_lm_head_goes_unless_it_is_kept():
    names = set(model().state_dict())
    assert {"score.weight", "score_mean", "score_std"} <= names
    assert not any("bias" in name or "lm_head" in name for name in names)
    kept = model(keep_lm_head=True).state_dict()
    assert set(kept) - names == {"llama.lm_head.weight"}
    assert torch.equal(kept["llama.lm_head.weight"], small().lm_head.weight)


def test_a_reward_model_is_trained_without_the_language_model():
    llama = small()
    ours = RewardModel(llama)
    ours(IDS, MASK).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    assert all(p.grad is None for p in llama.parameters())


def test_heads_and_normalisation_lie_where_the_body_is():
    ours = RewardModel(small().to("meta"))
    ours.set_normalisation(1.0, 2.0)
    for part in (ours, ValueModel(ours)):
        everything = [*part.parameters(), *part.buffers()]
        assert {tensor.device.type for tensor in everything} == {"meta"}


# --------------------------------------------------------------------------------------
# Half precision: heads and normalisation are float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_a_half_precision_body_are_float32(dtype):
    body = small().to(dtype)
    ours = RewardModel(body, generator=seeded()).eval()
    for tensor in (ours.score.weight, ours.score_mean, ours.score_std):
        assert tensor.dtype == torch.float32
    assert ours.llama.embed_tokens.weight.dtype == dtype
    states = body.hidden(IDS, MASK)[[0, 1], [4, 2]].float()
    raw = states @ ours.score.weight[0]
    close(ours(IDS, MASK), raw)
    ours.set_normalisation(5.03, 0.7)
    close(ours(IDS, MASK), (raw - 5.03) / 0.7)
    assert ours.train()(IDS, MASK).dtype == torch.float32


def test_a_model_that_is_cast_as_a_whole_still_scores_in_float32():
    ours = model().bfloat16()
    ours.set_normalisation(5.03)
    assert ours.score_mean.item() == pytest.approx(5.03, abs=1e-6)  # bfloat16: 5.03125
    raw = ours.raw_scores(IDS, MASK)
    assert raw.dtype == torch.float32
    assert not torch.equal(raw, raw.bfloat16().float())
    values = values_of(ValueModel(model()).bfloat16(), IDS, MASK)
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def test_values_of_a_half_precision_body_are_float32():
    body = small().bfloat16()
    value_model = ValueModel(RewardModel(body))
    assert value_model.value.weight.dtype == torch.float32
    by_hand = values_of(value_model, IDS)[:, 1:]
    head = value_model.value.weight[0]
    close(by_hand, body.hidden(IDS)[:, :-1].float() @ head)


# --------------------------------------------------------------------------------------
# Normalisation


def test_normalisation_is_for_evaluation():
    ours = model()
    raw = ours(IDS, MASK)
    ours.set_normalisation(2.0, 4.0)
    close(ours(IDS, MASK), (raw - 2) / 4)
    assert torch.equal(ours.raw_scores(IDS, MASK), raw)
    assert torch.equal(ours.train()(IDS, MASK), raw)
    ours.eval().set_normalisation(3)  # centres only, whatever was set before
    close(ours(IDS, MASK), raw - 3)
    ours.set_normalisation(3, 2)
    assert ours.score_mean.dtype == ours.score_std.dtype == torch.float32


def test_the_normalisation_travels_with_the_weights():
    ours, twin = model(), model(seed=1)
    ours.set_normalisation(*score_normalisation(ours(IDS, MASK)))
    white = ours(IDS, MASK)
    assert white.mean().item() == pytest.approx(0, abs=1e-5)
    assert white.std().item() == pytest.approx(1, abs=1e-4)
    twin.load_state_dict(ours.state_dict())
    assert torch.equal(twin(IDS, MASK), white)


def test_score_normalisation_by_hand():
    # mean of 1, 2, 3, 4: 2.5; squares of the distances: 2 (2.25 + 0.25) = 5; / 3
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert score_normalisation(scores) == (2.5, pytest.approx(math.sqrt(5 / 3)))
    assert score_normalisation(scores, centre_only=True) == (2.5, 1.0)
    assert score_normalisation(torch.tensor([7.0]), centre_only=True) == (7.0, 1.0)
    assert score_normalisation(torch.full((3,), 7.0), centre_only=True) == (7.0, 1.0)
    assert [type(x) for x in score_normalisation(scores)] == [float, float]
    # 3e6 + 6 needs more digits than float32 has
    far = torch.tensor([1e6 + 1, 1e6 + 2, 1e6 + 3])
    assert score_normalisation(far) == (1e6 + 2, pytest.approx(1.0, abs=1e-9))


# --------------------------------------------------------------------------------------
# Texts


class Recorder(torch.nn.Module):
    """Scores a text with the sum of its ids and remembers the batches it saw."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(())), []

    def forward(self, ids, mask=None):
        self.seen.append(mask.sum(1).tolist())
        scores = self.weight * (ids * mask).sum(1)
        return scores if self.training else scores + 0.5


def test_texts_are_scored_in_their_order_and_batched_by_length():
    recorder = Recorder().eval()
    texts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]
    scores = score_texts(recorder, texts, batch_size=2)
    assert scores.tolist() == [6.5, 4.5, 11.5, 34.5, 11.5]
    assert recorder.seen == [[1, 1], [2, 3], [4]]
    assert not scores.requires_grad and scores.dtype == torch.float32
    # the model's own mode, and all in one batch
    assert score_texts(recorder.train(), texts).tolist() == [6, 4, 11, 34, 11]
    assert recorder.seen[3:] == [[1, 1, 2, 3, 4]]
    assert recorder.training


def test_a_batch_of_texts_is_128_unless_said_otherwise():
    recorder = Recorder()
    score_texts(recorder, [[1]] * 130)
    assert [len(batch) for batch in recorder.seen] == [128, 2]
    score_texts(recorder, [[1]] * 3, batch_size=1)
    assert [len(batch) for batch in recorder.seen[2:]] == [1, 1, 1]


def test_texts_score_as_padded_rows_do():
    ours = model()
    texts = [IDS[1, :3].tolist(), IDS[0].tolist()]
    close(score_texts(ours, texts, 1), ours(IDS, MASK).flip(0).detach())
    assert score_texts(model().bfloat16(), texts).dtype == torch.float32


def test_texts_go_where_the_model_is():
    class Elsewhere(Recorder):
        def forward(self, ids, mask=None):
            self.seen.append((ids.device.type, mask.device.type))
            return torch.zeros(len(ids))

    recorder = Elsewhere().to("meta")
    score_texts(recorder, [[1], [2, 3]])
    assert recorder.seen == [("meta", "meta")]


# --------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("ids, mask", [(IDS, MASK), (LEFT_IDS, LEFT_MASK)])
def test_values_are_computed_one_position_early(ids, mask):
    value_model = ValueModel(model())
    got = values_of(value_model, ids, mask)
    head, expected = value_model.value.weight[0], torch.zeros(2, 5)
    for row in range(2):
        columns = mask[row].nonzero()[:, 0]
        states = small().hidden(ids[row, columns][None])[0]  # the row by itself
        expected[row, columns[1:]] = (states @ head)[:-1]
    close(got, expected)
    changed = ids.clone()
    # token 3 of row 0 may change entry 4, and nothing before it
    changed[0, 3] = 7
    same = (got == value_model(changed, mask))[0].tolist()
    assert same == [True, True, True, True, False]


def test_values_without_a_mask():
    value_model = ValueModel(model())
    got = values_of(value_model, IDS)
    close(got, value_model(IDS, torch.ones_like(MASK)))
    assert (got[:, 0] == 0).all() and (got[:, 1:] != 0).all()


def test_a_value_model_starts_at_zero_with_a_copy_of_the_body():
    judge = model(keep_lm_head=True)
    value_model = ValueModel(judge)
    assert (value_model(IDS, MASK) == 0).all()
    assert set(value_model.state_dict()) == {
        *(name for name in model().state_dict() if name.startswith("llama.")),
        "value.weight",
    }
    ours, theirs = value_model.llama.norm.weight, judge.llama.norm.weight
    assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    assert value_model.value.weight.shape == (1, 32)


def test_response_values_are_values_on_the_response():
    value_model = ValueModel(model())
    values = values_of(value_model, LEFT_IDS, LEFT_MASK)
    response = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]).bool()
    got = response_values(value_model, LEFT_IDS, LEFT_MASK, response)
    assert torch.equal(got, values * response)
    assert (got != 0).sum() == 3 and got.requires_grad


# --------------------------------------------------------------------------------------
# Refusals

OURS, VALUES = model(), ValueModel(model())
HOLE = torch.tensor([[True] * 5, [True, False, True, False, False]])
NOTHING = torch.tensor([[True] * 5, [False] * 5])
S = torch.zeros(2)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: model(pooling="first"), ValueError, "RewardModel: pooling .* 'first'"),
        (lambda: model(keep_lm_head=1), TypeError, "RewardModel: keep_lm_head .* 1"),
        (lambda: RewardModel(OURS), TypeError, "RewardModel: llama .* a RewardModel"),
        (
            lambda: RewardModel(small(), generator=3),
            TypeError,
            "RewardModel: generator",
        ),
        (lambda: ValueModel(small()), TypeError, "ValueModel: reward_model .* a Llama"),
        (lambda: copy_body(OURS), TypeError, "copy_body: llama"),
        (lambda: OURS(IDS, MASK.float()), TypeError, "RewardModel: mask"),
        (lambda: OURS(IDS, MASK[:, :4]), ValueError, "RewardModel: mask"),
        (lambda: OURS(IDS, NOTHING), ValueError, "RewardModel: mask .* in row 1"),
        (lambda: OURS(IDS, HOLE), ValueError, "RewardModel: mask .* 2 runs in row 1"),
        (lambda: OURS(IDS[:0]), ValueError, "RewardModel: ids"),
        (lambda: OURS(IDS.float()), TypeError, "RewardModel: ids"),
        (lambda: OURS(IDS[0]), ValueError, "RewardModel: ids"),
        (lambda: OURS(IDS + 1), IndexError, "RewardModel: ids .* got 50"),
        (lambda: OURS(-IDS), IndexError, "RewardModel: ids .* got -49"),
        (
            lambda: OURS.raw_scores(IDS, MASK[0]),
            ValueError,
            "RewardModel.raw_scores: m",
        ),
        (
            lambda: OURS.raw_scores(IDS, NOTHING),
            ValueError,
            "RewardModel.raw_scores: m",
        ),
        (lambda: VALUES(IDS, HOLE), ValueError, "ValueModel: mask"),
        (lambda: VALUES(IDS, MASK.int()), TypeError, "ValueModel: mask"),
        (lambda: VALUES(IDS + 1), IndexError, "ValueModel: ids .* got 50"),
        (lambda: last_token(NOTHING), ValueError, "last_token: mask .* in row 1"),
        (lambda: last_token(MASK.int()), TypeError, "last_token: mask"),
        (
            lambda: pool_mean(torch.zeros(2, 5, 3), NOTHING),
            ValueError,
            "pool_mean: mask .* in row 1",
        ),
        (lambda: pool_mean(torch.zeros(2, 4, 3), MASK), ValueError, "pool_mean: mask"),
        (
            lambda: response_values(OURS, IDS, MASK, MASK),
            TypeError,
            "response_values: value_model .* a RewardModel",
        ),
        (
            lambda: response_values(VALUES, IDS, MASK, MASK[:1]),
            ValueError,
            "response_values: response_mask",
        ),
        (lambda: score_texts(OURS, []), ValueError, "score_texts: texts .* empty"),
        (
            lambda: score_texts(OURS, [[1], []]),
            ValueError,
            "score_texts: texts .*empty",
        ),
        (lambda: score_texts(OURS, [1, 2]), TypeError, "score_texts: texts"),
        (lambda: score_texts(OURS, ["text"]), TypeError, "score_texts: texts"),
        (lambda: score_texts(OURS, [[1.5]]), TypeError, "score_texts: texts"),
        (lambda: score_texts(OURS, IDS), TypeError, "score_texts: texts"),
        (lambda: score_texts(OURS, [[-1]]), IndexError, "score_texts: texts .* got -1"),
        (lambda: score_texts(OURS, [[1]], 0), ValueError, "score_texts: batch_size"),
        (lambda: score_texts(OURS, [[1]], -1), ValueError, "score_texts: batch_size"),
        (lambda: score_texts(len, [[1]]), TypeError, "score_texts: reward_model"),
        (lambda: score_normalisation(S), ValueError, "score_normalisation: .* 2 diff"),
        (lambda: score_normalisation(S[:1]), ValueError, "score_normalisation: .* 2 d"),
        (
            lambda: score_normalisation(S[:0], True),
            ValueError,
            "score_normalisation: s",
        ),
        (lambda: score_normalisation(S + NAN), ValueError, "score_normalisation: s"),
        (lambda: score_normalisation(S + INF, True), ValueError, "score_normalisation"),
        (lambda: score_normalisation(S[:, None]), ValueError, "score_normalisation: s"),
        (lambda: score_normalisation([0.0]), TypeError, "score_normalisation: scores"),
        (lambda: OURS.set_normalisation(NAN), ValueError, ".*set_normalisation: mean"),
        (lambda: OURS.set_normalisation(0, 0), ValueError, ".*set_normalisation: std"),
        (
            lambda: OURS.set_normalisation(0, INF),
            ValueError,
            ".*set_normalisation: std",
        ),
        (lambda: OURS.set_normalisation(S), TypeError, ".*set_normalisation: mean"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_a_refusal_changes_nothing():
    before = OURS(IDS, MASK)
    with pytest.raises(ValueError, match="std"):
        OURS.set_normalisation(1.0, 0)
    assert torch.equal(OURS(IDS, MASK), before)
