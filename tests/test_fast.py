"""The fast paths against the plain definitions that the lessons show."""

import pytest
import torch
import torch.nn.functional as F
from test_model import SMALL, small

from minillama import fast, lm, reward_model
from minillama.data import pad
from minillama.generate import generate
from minillama.model import KVCache, Llama, LlamaConfig

# Rows of unequal and of equal length, padding on either side, in between and nowhere.
LENGTHS = {"unequal": [9, 2, 5, 9, 3], "equal": [7, 7, 7]}
LAYOUTS = ["left", "right", "both", "none"]


def batch(lengths, layout, width=9):
    """Random ids (B, width) and a mask of rows of these lengths, padded as told."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(0, 50, (len(lengths), width), generator=generator)
    n = torch.tensor(lengths)[:, None]
    column = torch.arange(width)
    start = {"left": width - n, "right": 0 * n, "both": (width - n) // 2}
    if layout == "none":
        return ids, torch.ones_like(ids, dtype=torch.bool)
    first = start[layout]
    return ids, (column >= first) & (column < first + n)


def response(mask):
    """The real tokens of a mask but the first of each row."""
    return mask & torch.nn.functional.pad(mask[:, :-1], (1, 0))


def weights_and_gradients(model, values):
    """Values, and the gradient that a random direction of them sends into a model."""
    direction = torch.randn(values.shape, generator=torch.Generator().manual_seed(7))
    model.zero_grad()
    (values * direction).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return values.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def assert_same(model, quick, plain):
    """Equal values, and equal gradients of every parameter."""
    ours, theirs = (weights_and_gradients(model, values) for values in (quick, plain))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-4, rtol=1e-4)
    assert theirs[1].abs().max() > 0.01


def stacked(layers):
    """A small model of so many blocks."""
    config = LlamaConfig(**{**vars(SMALL), "n_layers": layers})
    return Llama(config, torch.Generator().manual_seed(1))


@pytest.fixture(params=LENGTHS)
def lengths(request):
    return LENGTHS[request.param]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layers", [1, 3])
def test_hidden_at_is_hidden_at_some_places(lengths, layout, layers):
    model = stacked(layers)
    ids, mask = batch(lengths, layout)
    at = mask & (
        torch.rand(mask.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    )
    quick, plain = fast.hidden_at(model, ids, mask, at), model.hidden(ids, mask)[at]
    assert_same(model, quick, plain)
    assert fast.hidden_at(model, ids, None, at).shape == plain.shape  # None: all real


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layers", [1, 3])
def test_hidden_once_is_hidden_at_one_place_a_row(lengths, layout, layers):
    model = stacked(layers)
    ids, mask = batch(lengths, layout)
    chosen = torch.rand(mask.shape, generator=torch.Generator().manual_seed(3))
    at = F.one_hot((chosen * mask).argmax(1), mask.shape[1]).bool()  # real, any place
    assert (at & mask).sum(1).eq(1).all()
    quick, plain = fast.hidden_once(model, ids, mask, at), model.hidden(ids, mask)[at]
    assert_same(model, quick, plain)
    every = torch.ones_like(mask)
    quick = fast.hidden_once(model, ids, None, at)  # None: all real
    assert_same(model, quick, model.hidden(ids, every)[at])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lm_loss_of_is_lm_loss_of_all_logits(lengths, layout):
    model = small()
    ids, mask = batch(lengths, layout)
    counted = response(mask) & (torch.arange(9) % 3 > 0)
    quick = fast.lm_loss_of(model, ids, mask, counted)
    assert_same(model, quick, lm.lm_loss(model(ids, mask), ids, counted))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [5, 40])
def test_response_logprobs_are_the_plain_ones(lengths, layout, rows):
    """40 rows of width 40 make several groups; a row without response has zeros."""
    model = small()
    ids, mask = batch((lengths * rows)[:rows], layout, width=9)
    counted = response(mask)
    counted[1] = False
    quick = fast.response_logprobs(model, ids, mask, counted)
    plain = lm.response_logprobs(model, ids, mask, counted)
    assert_same(model, quick, plain)
    assert (quick[~counted] == 0).all() and (quick[counted] < 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_response_values_are_the_plain_ones(lengths, layout):
    judge = reward_model.RewardModel(small())
    model = reward_model.ValueModel(judge)
    torch.nn.init.normal_(
        model.value.weight, generator=torch.Generator().manual_seed(2)
    )
    ids, mask = batch(lengths, layout)
    counted = response(mask)
    quick = fast.response_values(model, ids, mask, counted)
    plain = reward_model.response_values(model, ids, mask, counted)
    assert_same(model, quick, plain)
    assert (quick[~counted] == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_by_length_scores_as_one_call_does(lengths, layout, pooling):
    judge = reward_model.RewardModel(
        small(), pooling, generator=torch.Generator().manual_seed(4)
    )
    ids, mask = batch(lengths * 9, layout)  # several groups
    assert_same(judge, fast.by_length(judge, mask, ids, mask), judge(ids, mask))


def test_tensors_are_made_where_their_inputs_are():
    """The default device is one without data: what forgets its input's device fails."""
    model = small()
    ids, mask = batch(LENGTHS["unequal"], "left")
    counted = response(mask)
    going = torch.tensor([True, False, True, True])
    cache = cache_of(4)
    with torch.device("meta"):
        logprobs = fast.response_logprobs(model, ids, mask, counted)
        (kept,) = fast.keep_rows(cache, going, ids[:4])
    expected = lm.response_logprobs(model, ids, mask, counted)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    assert torch.equal(kept, ids[[0, 3, 2]]) and cache.mask.device.type == "cpu"


def test_by_length_by_hand():
    """Sums of real entries, and the entries doubled where they were."""
    x = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, True], [True, False, False]])
    sums = fast.by_length(lambda x, m: (x * m).sum(1), mask, x, mask)
    assert sums.tolist() == [3.0, 3.0]
    doubled = fast.by_length(lambda x: (2 * x).half(), mask, x)
    assert doubled.dtype == torch.float32
    assert doubled[mask].tolist() == [2.0, 4.0, 6.0] and doubled.shape == (2, 3)


def test_groups_are_of_1024_tokens_but_of_16_rows_at_least():
    for width, rows in ((8, 128), (64, 16), (256, 16)):
        sizes = []
        mask = torch.ones(130, width, dtype=torch.bool)
        fast.by_length(lambda m, s=sizes: s.append(len(m)) or m.sum(1), mask, mask)
        assert max(sizes) == rows and sum(sizes) == 130


def test_length_groups_hold_every_real_token_once_and_in_order():
    lengths = [3, 9, 1, 4, 4, 8, 2]
    ids, mask = pad([list(range(10 * n, 10 * n + n)) for n in lengths], "left")
    seen, widths = {}, []
    for rows, columns in fast.length_groups(mask, size=3):
        widths.append(columns.shape[1])
        # as short as can be
        assert columns.shape[1] == max(lengths[row] for row in rows)
        texts, real = ids[rows].gather(1, columns), mask[rows].gather(1, columns)
        seen |= {
            int(row): text[kept].tolist()
            for row, text, kept in zip(rows, texts, real, strict=True)
        }
    assert widths == [3, 8, 9]  # 1 2 3 | 4 4 8 | 9
    assert seen == {
        row: list(range(10 * n, 10 * n + n)) for row, n in enumerate(lengths)
    }
    sizes = [len(rows) for rows, _ in fast.length_groups(mask.repeat(5, 1))]
    assert sizes == [16, 16, 3]


def cache_of(rows):
    """A cache after rows x 3 tokens, whose keys tell rows, heads and slots apart."""
    cache = KVCache(SMALL, rows, 5)
    cache.extend(torch.ones(rows, 3, dtype=torch.bool))
    cache.keys.copy_(torch.arange(cache.keys.numel()).view(cache.keys.shape))
    cache.values.copy_(-cache.keys)
    cache.count = torch.arange(rows) + 1
    cache.mask = torch.eye(rows, 5, dtype=torch.bool)
    return cache


@pytest.mark.parametrize("bits", range(1, 16))
def test_kept_rows_keep_what_they_hold(bits):
    going = torch.tensor([bool(bits >> i & 1) for i in range(4)])
    cache, whole = cache_of(4), cache_of(4)
    (order,) = fast.keep_rows(cache, going, torch.arange(4))
    assert sorted(order.tolist()) == going.nonzero().flatten().tolist()
    assert torch.equal(cache.keys[..., :3, :], whole.keys[:, order][..., :3, :])
    assert torch.equal(cache.values[..., :3, :], whole.values[:, order][..., :3, :])
    assert torch.equal(cache.mask, whole.mask[order])
    assert torch.equal(cache.count, whole.count[order])
    assert cache.batch_size == int(going.sum()) and cache.length == 3


def test_few_rows_are_copied():
    """Of 0 1 2 3 without 1, only 3 moves; it fills the gap."""
    going = torch.tensor([True, False, True, True])
    tokens, rows = fast.keep_rows(
        cache_of(4), going, torch.tensor([5, 6, 7, 8]), torch.arange(4)
    )
    assert tokens.tolist() == [5, 8, 7] and rows.tolist() == [0, 3, 2]


@pytest.mark.parametrize("temperature, top_p", [(0, 1.0), (1.0, 1.0), (0.7, 0.6)])
def test_generation_equals_a_loop_in_which_ended_rows_stay(temperature, top_p):
    """No cache, no row that leaves: every prompt alone, its whole text read again."""
    model = small(3)
    prompts = [[5, 6, 7], [8], [9, 10], [11, 3, 2, 4], [8, 8]]
    steps, eos, ended = 9, 11, []
    rollout = generate(
        model, prompts, steps, temperature, top_p, torch.Generator().manual_seed(1), eos
    )
    uniforms = torch.rand(5, steps, generator=torch.Generator().manual_seed(1))
    for row, text in enumerate(prompts):
        said, logprobs = [], []
        for step in range(steps):
            logits = model(torch.tensor([text + said]))[0, -1].detach()
            probs = torch.softmax(logits / (temperature or 1), -1)
            order = probs.argsort(descending=True)
            before = probs[order].cumsum(0) - probs[order]
            allowed = torch.zeros(50).index_fill(0, order[before < top_p], 1.0) * probs
            draw = uniforms[row, step] * allowed.sum()
            token = int((allowed.cumsum(0) > draw).nonzero()[0])
            token = int(probs.argmax()) if temperature == 0 else token
            said.append(token)
            logprobs.append(probs[token].log())
            if token == eos:
                break
        counted = rollout.response_mask[row]
        assert rollout.ids[row][counted].tolist() == said
        torch.testing.assert_close(
            rollout.logprobs[row][counted], torch.stack(logprobs), atol=1e-4, rtol=0
        )
        ended.append(len(said) < steps)
    assert temperature == 0 or 0 < sum(ended) < 5


IDS = torch.ones(2, 3, dtype=torch.int64)
REAL = torch.ones(2, 3, dtype=torch.bool)
HOLE = torch.tensor([[True, False, True], [True, True, True]])
LAST = torch.tensor([[False, False, True]] * 2)
FIRST = torch.tensor([[True, True, True]] * 2)


def body():
    return reward_model.copy_body(small())


def values():
    return reward_model.ValueModel(reward_model.RewardModel(small()))


BAD = [
    (fast.hidden_at, (small(), IDS * 50, REAL, REAL), IndexError, "ids .* got 50"),
    (fast.hidden_at, (small(), IDS, REAL, REAL[:1]), ValueError, "at must be a bool"),
    (fast.hidden_at, (small(), IDS, REAL, IDS), TypeError, "at must be a bool"),
    (fast.hidden_at, (small(), IDS, REAL[:, :2], REAL), ValueError, "mask must be a"),
    (fast.hidden_once, (small(), IDS * 50, REAL, REAL), IndexError, "ids .* got 50"),
    (fast.hidden_once, (small(), IDS, REAL, REAL[:1]), ValueError, "at must be a bool"),
    (fast.hidden_once, (small(), IDS, REAL, ~REAL), ValueError, "at must be .* True"),
    (fast.lm_loss_of, (small(), IDS, REAL, FIRST), ValueError, "loss_mask .* at .0, 0"),
    (fast.lm_loss_of, (small(), IDS, HOLE, LAST), ValueError, "loss_mask .* at .0, 2"),
    (fast.lm_loss_of, (small(), IDS, REAL, ~REAL), ValueError, "loss_mask .* no True"),
    (fast.lm_loss_of, (small(), IDS, REAL, IDS), TypeError, "loss_mask must be a bool"),
    (
        fast.lm_loss_of,
        (body(), IDS, REAL, LAST),
        ValueError,
        "the model must have an lm",
    ),
    (fast.response_logprobs, (small(), IDS, HOLE, LAST), ValueError, "response_mask"),
    (fast.response_logprobs, (small(), IDS, REAL, FIRST), ValueError, "response_mask"),
    (fast.response_logprobs, (body(), IDS, REAL, LAST), ValueError, "the model must"),
    (
        fast.response_logprobs,
        (small(), IDS.int(), REAL, LAST),
        TypeError,
        "ids must be",
    ),
    (
        fast.response_values,
        (values(), IDS, REAL, LAST[:1]),
        ValueError,
        "response_mask",
    ),
    (fast.response_values, (small(), IDS, REAL, LAST), TypeError, "value_model must"),
    (fast.by_length, (len, IDS, IDS), TypeError, "mask must be a bool"),
    (fast.by_length, (len, ~REAL, IDS), ValueError, "mask .* got no True in row 0"),
    (fast.keep_rows, (cache_of(4), REAL[0]), ValueError, "going .* got 3 among 3"),
    (fast.keep_rows, (cache_of(3), ~REAL[0]), ValueError, "going .* got 0 among 3"),
    (fast.keep_rows, (cache_of(3), [True] * 3), TypeError, "going must be a bool"),
    (fast.keep_rows, (None, REAL[0]), TypeError, "cache must be a KVCache, got None"),
]


@pytest.mark.parametrize("function, arguments, error, words", BAD)
def test_bad_arguments(function, arguments, error, words):
    with pytest.raises(error, match=f"^{function.__name__}: {words}"):
        function(*arguments)


def test_bad_group_sizes():
    with pytest.raises(ValueError, match="^length_groups: size must be an int >= 1"):
        list(fast.length_groups(REAL, 0))
