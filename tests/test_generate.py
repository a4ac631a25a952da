"""Sampling: greedy as transformers does it, frequencies as the probabilities say."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_model import small, transplant

from minillama.generate import Rollout, generate, pick, sample, top_p_filter
from minillama.reward_model import copy_body
from minillama.tokenizer import EOS_ID, PAD_ID

PROMPTS = [[5, 6, 7], [8], [9, 10]]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_equals_transformers(seed):
    model, prompt = small(seed), [3, 1, 4, 1, 5]
    ours = generate(model, [prompt], 12, temperature=0, eos_id=None).ids
    theirs = transplant(model).generate(
        torch.tensor([prompt]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(ours, theirs)


def test_frequencies_are_the_probabilities():
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2])
    drawn = sample(probs.expand(40_000, 4), torch.rand(40_000, generator=rng()))
    shares = drawn.bincount(minlength=4) / 40_000
    assert shares[1] == 0
    assert (shares - probs).abs().max() < 4 * (0.25 / 40_000) ** 0.5


@pytest.mark.parametrize(
    "probs, uniform, token",
    [
        ([0.0, 0.2, 0.8], 0.0, 1),  # a first token of probability 0 is passed over
        ([0.25, 0.25, 0.5], 0.25, 1),  # exceeds, not reaches
        ([1.0, 1.0, 2.0], 0.49, 1),  # of a sum of 4, 1.96
        ([0.0, 1.0, 0.0], 1 - 2**-24, 1),
        # a number that rounding made 1 draws the most probable token, not the last one
        ([0.2, 0.8, 0.0], 1.0, 1),
        ([0.8, 0.2, 0.0], 1.0, 0),
    ],
)
def test_the_edges_of_sampling(probs, uniform, token):
    assert sample(torch.tensor([probs]), torch.tensor([uniform])).tolist() == [token]


def test_an_impossible_draw_changes_its_own_row_only():
    probs = torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.3, 0.2]])
    assert sample(probs, torch.tensor([1.0, 0.6])).tolist() == [0, 1]


@pytest.mark.parametrize(
    "top_p, kept",
    [(0.4, [0]), (0.5, [0]), (0.6, [0, 2]), (0.81, [0, 2, 3]), (1.0, [0, 2, 3])],
)
def test_top_p_keeps_the_smallest_sufficient_set(top_p, kept):
    probs = torch.tensor([[0.5, 0.0, 0.3, 0.2]], dtype=torch.float64)
    filtered = top_p_filter(probs, top_p)
    assert filtered[0].nonzero().flatten().tolist() == kept
    assert torch.equal(filtered[0, kept], probs[0, kept])  # not renormalised


def test_of_equal_probabilities_the_lower_id_comes_first():
    """Thirty of 1/40 each, and ten of 1/40: twenty reach one half."""
    filtered = top_p_filter(torch.full((2, 40), 1 / 40, dtype=torch.float64), 0.49)
    assert (filtered > 0).sum(1).tolist() == [20, 20]
    assert (filtered[:, :20] > 0).all()


def test_pick_by_hand():
    """Logits (0, ln 3) at temperature 1/2: probabilities 1/10 and 9/10."""
    logits = torch.tensor([[0.0, math.log(3)]])

    def picked(uniform, temperature, top_p=1.0, logits=logits):
        token, logprob = pick(logits, torch.tensor([uniform]), temperature, top_p)
        assert token.shape == logprob.shape == (1,)
        return token.item(), pytest.approx(logprob.item(), abs=1e-6)

    assert picked(0.05, 0.5) == (0, math.log(0.1))
    assert picked(0.2, 0.5) == (1, math.log(0.9))
    assert picked(0.2, 1.0) == (0, math.log(0.25))
    assert picked(0.2, 1.0, 0.7) == (1, math.log(0.75))  # unrestricted logprob
    assert picked(0.2, 0) == (1, math.log(0.75))  # greedy, logprob at temperature 1
    assert picked(0.2, 0, 0.1) == (1, math.log(0.75))
    half = torch.tensor([[0.0, 8.0]]).bfloat16()
    exact = -math.log1p(math.exp(-8))  # in half precision it would be 0
    token, logprob = pick(half, torch.tensor([0.5]), 1.0, 1.0)
    assert logprob.dtype == torch.float32 and logprob.item() == pytest.approx(
        exact, 1e-2
    )


def test_temperature_and_top_p_reach_the_draw():
    """The first token of many rows, against probabilities from the model itself."""
    model = small()
    logits = model(torch.tensor([[5, 6, 7]]))[0, -1].detach()
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (2.0, 0.8)):
        probs = torch.softmax(logits / temperature, -1)
        kept = top_p_filter(probs[None], top_p)[0]
        rollout = generate(
            model, [[5, 6, 7]] * 4000, 1, temperature, top_p, rng(1), eos_id=None
        )
        shares = rollout.ids[:, 3].bincount(minlength=50) / 4000
        expected = kept / kept.sum()
        assert (shares[expected == 0] == 0).all()
        assert (shares - expected).abs().max() < 5 * (0.25 / 4000) ** 0.5
        drawn = probs.log()[rollout.ids[:, 3]]
        torch.testing.assert_close(rollout.logprobs[:, 3], drawn, atol=1e-4, rtol=0)


def test_a_row_ignores_its_batch_mates():
    """Greedy needs no draw: a row alone says what it says in company that ends."""
    model = small()
    # an end of sequence that comes in mid-way of row 0
    said = generate(model, [PROMPTS[0]], 10, temperature=0, eos_id=None).ids[0]
    eos = said[6].item()
    together = generate(model, PROMPTS, 10, temperature=0, eos_id=eos)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], 10, temperature=0, eos_id=eos)
        assert (
            alone.ids[alone.response_mask].tolist()
            == together.ids[row][together.response_mask[row]].tolist()
        )


def test_a_sampled_row_ignores_how_many_follow():
    model = small()
    two, all_of_them = (
        generate(model, prompts, 10, generator=rng(2))
        for prompts in (PROMPTS[:2], PROMPTS)
    )
    for row in range(2):
        texts = [
            rollout.ids[row][rollout.response_mask[row]].tolist()
            for rollout in (two, all_of_them)
        ]
        assert texts[0] == texts[1]


def test_same_seed_same_text_and_logprobs_are_the_models():
    model = small()
    first, second = (generate(model, PROMPTS, 10, generator=rng(1)) for _ in range(2))
    assert torch.equal(first.ids, second.ids)
    logprobs = model(first.ids, first.mask).log_softmax(-1)[:, :-1]
    logprobs = logprobs.gather(2, first.ids[:, 1:, None]).squeeze(2).detach()
    expected = F.pad(logprobs, (1, 0)).masked_fill(~first.response_mask, 0.0)
    torch.testing.assert_close(first.logprobs, expected, atol=1e-4, rtol=0)
    assert not first.logprobs.requires_grad


def test_without_a_generator_the_default_one_draws():
    torch.manual_seed(3)
    first = generate(small(), PROMPTS, 6, eos_id=None)
    second = generate(small(), PROMPTS, 6, eos_id=None)
    assert not torch.equal(first.ids, second.ids)
    torch.manual_seed(3)
    assert torch.equal(generate(small(), PROMPTS, 6, eos_id=None).ids, first.ids)


def test_a_rollout_by_its_fields():
    """Prompts of 3, 1 and 2 tokens, padded on the left, and four new tokens each."""
    rollout = generate(small(), PROMPTS, 4, generator=rng(1), eos_id=None, pad_id=49)
    assert rollout.ids[:, :3].tolist() == [[5, 6, 7], [49, 49, 8], [49, 9, 10]]
    real = [[True] * 3, [False, False, True], [False, True, True]]
    assert rollout.mask[:, :3].tolist() == real and rollout.mask[:, 3:].all()
    assert not rollout.response_mask[:, :3].any() and rollout.response_mask[:, 3:].all()
    assert (rollout.logprobs[:, :3] == 0).all() and (rollout.logprobs[:, 3:] < 0).all()
    assert rollout.logprobs.dtype == torch.float32 and rollout.ids.shape == (3, 7)


def test_a_response_ends_with_its_eos():
    model = small()
    rollout = generate(model, PROMPTS * 20, 12, generator=rng(2), eos_id=11, pad_id=49)
    ended = 0
    for ids, mask in zip(rollout.ids, rollout.response_mask, strict=True):
        response = ids[mask].tolist()
        after = ids[int(mask.nonzero()[-1]) + 1 :].tolist()
        assert 11 not in response[:-1] and set(after) <= {49}
        ended += response[-1] == 11
    assert ended > 0 and torch.equal(rollout.mask[:, 3:], rollout.response_mask[:, 3:])


def test_it_ends_when_all_have_ended_and_padding_is_pad_id():
    """The greedy second token as EOS: two columns, whatever max_new_tokens says."""
    model = small()
    said = generate(model, [PROMPTS[0]], 2, temperature=0, eos_id=None).ids[0, 3:]
    rollout = generate(model, [PROMPTS[0]], 20, temperature=0, eos_id=said[1].item())
    assert rollout.ids[0, 3:].tolist() == said.tolist()
    at_once = generate(model, [PROMPTS[0]], 20, temperature=0, eos_id=said[0].item())
    assert at_once.ids.shape == (1, 4)


def test_the_defaults_are_those_of_the_tokenizer():
    """A model that says EOS at once, and one that never does."""
    model = small()
    says_eos = small()
    with torch.no_grad():
        says_eos.norm.weight.zero_()[0] = 1.0
        says_eos.lm_head.weight.zero_()[EOS_ID, 0] = 1e3
        for block in says_eos.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        says_eos.embed_tokens.weight[:, 0] = 1.0
    rollout = generate(says_eos, PROMPTS, 5)
    assert rollout.ids[:, 3:].tolist() == [[EOS_ID]] * 3
    assert rollout.ids[1, :2].tolist() == [PAD_ID, PAD_ID]
    drawn = generate(model, PROMPTS, 5, generator=rng(4))
    plain = generate(model, PROMPTS, 5, 1.0, 1.0, rng(4))
    assert torch.equal(drawn.ids, plain.ids)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_eval_mode_and_gets_its_own_back(training):
    model, modes = small().train(training), []
    model.norm.register_forward_hook(lambda *call: modes.append(model.training))
    generate(model, PROMPTS, 3, eos_id=None)
    assert modes == [False] * 3 and model.training == training
    model.norm.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        generate(model, PROMPTS, 3)
    assert model.training == training


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_logits_that_are_not_finite_are_refused(bad, temperature, top_p):
    model = small()
    with torch.no_grad():
        model.norm.weight[0] = bad
    with pytest.raises(FloatingPointError, match="^generate: model gave logits"):
        generate(model, PROMPTS, 4, temperature, top_p)


def test_one_bad_row_among_good_ones_is_seen():
    model = small()
    with torch.no_grad():
        model.embed_tokens.weight[8] = math.nan
    generate(model, [[5, 6]], 1, temperature=0)
    with pytest.raises(FloatingPointError, match="^generate: model gave logits"):
        generate(model, PROMPTS, 1, temperature=0)


def test_the_longest_prompt_and_its_response_may_just_fit():
    rollout = generate(small(), [[5] * 28, [6]], 4, eos_id=None)
    assert rollout.ids.shape == (2, 32)
    message = "max_new_tokens must fit in max_seq_len = 32, got 29 . 4"
    with pytest.raises(ValueError, match=f"^generate: prompts and {message}"):
        generate(small(), [[5] * 29, [6]], 4)


BAD = [
    (dict(prompts=[]), ValueError, "prompts must be lists of ids"),
    (dict(prompts=[[]]), ValueError, "prompts must be lists of ids"),
    (dict(prompts=torch.ones(1, 2).long()), TypeError, "prompts must .* got a tensor"),
    (dict(prompts=[[1.5]]), TypeError, "prompts must be lists of ids"),
    (dict(prompts=["boil"]), TypeError, "prompts must be lists of ids"),
    (dict(prompts="boil"), TypeError, "prompts must be lists of ids"),
    (dict(prompts=[1, 2]), TypeError, "prompts must be lists of ids"),
    (dict(prompts=[[50]]), IndexError, "prompts must .* got 50"),
    (dict(prompts=[[-1]]), IndexError, "prompts must .* got -1"),
    (dict(max_new_tokens=0), ValueError, "max_new_tokens must be an int >= 1, got 0"),
    (dict(max_new_tokens=True), TypeError, "max_new_tokens must be an int"),
    (dict(max_new_tokens=2.5), TypeError, "max_new_tokens must be an int"),
    (dict(max_new_tokens=40), ValueError, "prompts and max_new_tokens must fit"),
    (dict(temperature=-1.0), ValueError, "temperature must .* got -1.0"),
    (dict(temperature=1e-5), ValueError, "temperature must be 0 or at least 1e-4"),
    (dict(temperature=math.nan), ValueError, "temperature must .* got nan"),
    (dict(temperature=math.inf), ValueError, "temperature must .* got inf"),
    (dict(temperature="hot"), TypeError, "temperature must .* got 'hot'"),
    (dict(top_p=0.0), ValueError, "top_p must be a number in .0, 1., got 0"),
    (dict(top_p=7), ValueError, "top_p must be a number in .0, 1., got 7"),
    (dict(top_p=math.nan), ValueError, "top_p must .* got nan"),
    (dict(generator=3), TypeError, "generator must be a Generator or None, got 3"),
    (dict(eos_id=50), IndexError, "eos_id must .* got 50"),
    (dict(eos_id=-1), IndexError, "eos_id must .* got -1"),
    (dict(eos_id=2.5), TypeError, "eos_id must .* got 2.5"),
    (dict(pad_id=50), IndexError, "pad_id must .* got 50"),
    (dict(pad_id=None), TypeError, "pad_id must .* got None"),
    (dict(model=None), TypeError, "model must be a Llama, got None"),
]


@pytest.mark.parametrize("change, error, words", BAD, ids=str)
def test_bad_arguments(change, error, words):
    with pytest.raises(error, match=f"^generate: {words}"):
        generate(
            **{"model": small(), "prompts": PROMPTS, "max_new_tokens": 4, **change}
        )


def test_a_body_without_lm_head_writes_nothing():
    with pytest.raises(ValueError, match="^generate: the model must have an lm_head"):
        generate(copy_body(small()), PROMPTS, 4)


PROBS, U = torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0.1, 0.9])
LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (
            lambda: sample(PROBS - 0.3, U),
            ValueError,
            "sample: probs must .* got -0.1 at",
        ),
        (lambda: sample(PROBS * math.nan, U), ValueError, "sample: probs .* got nan"),
        (lambda: sample(PROBS / 0, U), ValueError, "sample: probs must .* got inf"),
        (lambda: sample(PROBS * 0, U), ValueError, "sample: probs .* a row of zeros"),
        (
            lambda: sample(PROBS * torch.tensor([[1.0], [0.0]]), U),
            ValueError,
            "sample: probs .* a row of zeros",
        ),
        (lambda: sample(PROBS, U[:1]), ValueError, "sample: uniforms must be a float"),
        (lambda: sample(PROBS, U[:, None]), ValueError, "sample: uniforms must be a"),
        (lambda: sample(PROBS, U + 1), ValueError, "sample: uniforms must .* got 1.1"),
        (
            lambda: sample(PROBS, U * math.nan),
            ValueError,
            "sample: uniforms .* got nan",
        ),
        (lambda: sample(PROBS[0], U), ValueError, "sample: probs must be a float"),
        (lambda: top_p_filter(PROBS, 0), ValueError, "top_p_filter: top_p .* got 0"),
        (lambda: top_p_filter(PROBS, 7), ValueError, "top_p_filter: top_p .* got 7"),
        (
            lambda: top_p_filter(PROBS, True),
            TypeError,
            "top_p_filter: top_p .* got True",
        ),
        (lambda: top_p_filter(2 * PROBS, 0.5), ValueError, "top_p_filter: probs must"),
        (
            lambda: pick(LOGITS, U, -1, 1),
            ValueError,
            "pick: temperature must .* got -1",
        ),
        (lambda: pick(LOGITS, U, 1, 2), ValueError, "pick: top_p must .* got 2"),
        (lambda: pick(LOGITS, U[:1], 1, 1), ValueError, "pick: uniforms must be a flo"),
        (lambda: pick(LOGITS.long(), U, 1, 1), TypeError, "pick: logits must be a flo"),
    ],
)
def test_what_is_no_probability_is_refused(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


def test_a_rollout_holds_tensors_of_one_shape():
    ids, mask = torch.ones(2, 3).long(), torch.ones(2, 3).bool()
    assert Rollout(ids, mask, mask, torch.zeros(2, 3)).ids is ids
    with pytest.raises(ValueError, match="^Rollout: response_mask must"):
        Rollout(ids, mask, mask[:1], torch.zeros(2, 3))
    with pytest.raises(TypeError, match="^Rollout: logprobs must be a float"):
        Rollout(ids, mask, mask, ids)
