"""Sampling: greedy as transformers does it, frequencies as the probabilities say, rows that ignore each other."""

import pytest
import torch
from test_model import small, transplant

from minillama.generate import generate, sample, top_p_filter

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
    drawn = (
        sample(probs.expand(40_000, 4), torch.rand(40_000, generator=rng())).bincount(
            minlength=4
        )
        / 40_000
    )
    assert drawn[1] == 0 and (drawn - probs).abs().max() < 4 * (0.25 / 40_000) ** 0.5


@pytest.mark.parametrize(
    "probs, uniform, token",
    [
        ([0.0, 0.2, 0.8], 0.0, 1),  # a first token of probability 0 is passed over
        ([0.25, 0.25, 0.5], 0.25, 1),  # exceeds, not reaches
        ([0.0, 1.0, 0.0], 1 - 2**-24, 1),
        (
            [0.2, 0.8, 0.0],
            1.0,
            1,
        ),  # a number that rounding made 1 draws the most probable token, not the last one
    ],
)
def test_the_edges_of_sampling(probs, uniform, token):
    assert sample(torch.tensor([probs]), torch.tensor([uniform])).item() == token


@pytest.mark.parametrize(
    "top_p, kept",
    [(0.4, [0]), (0.5, [0]), (0.6, [0, 2]), (0.81, [0, 2, 3]), (1.0, [0, 2, 3])],
)
def test_top_p_keeps_the_smallest_sufficient_set(top_p, kept):
    filtered = top_p_filter(
        torch.tensor([[0.5, 0.0, 0.3, 0.2]], dtype=torch.float64), top_p
    )
    assert filtered[0].nonzero().flatten().tolist() == kept


def test_a_row_ignores_its_batch_mates():
    """Greedy needs no draw, so a row alone must say what it says in company that ends sooner or later."""
    model = small()
    eos = (
        generate(model, [PROMPTS[0]], 10, temperature=0, eos_id=None).ids[0, 6].item()
    )  # ends row 0 in mid-way
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
    logprobs = (
        model(first.ids, first.mask)
        .log_softmax(-1)[:, :-1]
        .gather(2, first.ids[:, 1:, None])
        .squeeze(2)
    )
    expected = torch.nn.functional.pad(logprobs, (1, 0)).masked_fill(
        ~first.response_mask, 0.0
    )
    torch.testing.assert_close(first.logprobs, expected.detach(), atol=1e-4, rtol=0)
    assert not first.logprobs.requires_grad


def test_a_response_ends_with_its_eos():
    model = small()
    rollout = generate(model, PROMPTS * 20, 12, generator=rng(2), eos_id=11, pad_id=49)
    ended = 0
    for ids, mask in zip(rollout.ids, rollout.response_mask, strict=True):
        response, after = (
            ids[mask].tolist(),
            ids[int(mask.nonzero()[-1]) + 1 :].tolist(),
        )
        assert 11 not in response[:-1] and set(after) <= {49}
        ended += response[-1] == 11
    assert ended > 0 and torch.equal(rollout.mask[:, 3:], rollout.response_mask[:, 3:])


@pytest.mark.parametrize(
    "change, error, named",
    [
        ({"prompts": []}, ValueError, "prompts"),
        ({"prompts": [[]]}, ValueError, "prompts"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
        ({"max_new_tokens": 40}, ValueError, "max_seq_len"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"top_p": 0.0}, ValueError, "top_p"),
        ({"prompts": [[50]]}, IndexError, "ids"),
        ({"eos_id": 50}, IndexError, "eos_id"),
    ],
)
def test_bad_arguments(change, error, named):
    with pytest.raises(error, match=named):
        generate(small(), **{"prompts": PROMPTS, "max_new_tokens": 4, **change})
