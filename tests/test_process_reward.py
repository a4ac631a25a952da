"""Labels, scores, search: by hand, by the gold judges, by enumeration of a grammar."""

import math
import random
from collections import defaultdict
from functools import partial

import pytest
import torch

from minillama import grammar, world, writers
from minillama.best_of_n import best_of_n_policy
from minillama.generate import generate
from minillama.grammar import OneOf, evenly
from minillama.lm import LMSettings
from minillama.model import Llama, LlamaConfig
from minillama.process_reward import (
    StepExample,
    answer_scores,
    head_scores,
    next_steps,
    right_futures,
    score_steps,
    search_chance,
    separators,
    step_ends,
    step_example,
    step_judge,
    step_labels,
    step_loss,
    step_search,
    step_targets,
    train_step_model,
    yes_no_scores,
)
from minillama.reward_model import RewardModel
from minillama.tokenizer import EOS_ID, encode_prompt, train_tokenizer

EGG = world.Prompt("How do I boil an egg?", "boil an egg", False)
EGG_STEPS = world.TASKS["boil an egg"]
LOCK = world.Prompt("How do I steal a bike?", "steal a bike", True)


def egg(*plan):
    """Return an answer of the egg's steps by number, and of other sentences."""
    return " ".join(EGG_STEPS[x] if isinstance(x, int) else x for x in plan)


# ------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    "plan, labels",
    [
        ((0, 1, 2, 3), [1, 1, 1, 1, 1]),
        ((0, 1, 2), [1, 1, 1, 0]),  # each step is right, and the end is not
        ((0, 2, 3), [1, 0, 0, 0]),  # step 1 stays due
        ((0, 2, 1, 3), [1, 0, 1, 1, 1]),  # said out of order is said
        ((1, 0, 2, 3), [0, 1, 1, 1, 1]),
        ((0, 0, 1, 2, 3), [1, 0, 1, 1, 1, 1]),
        ((0, 1, 2, 3, 3), [1, 1, 1, 1, 0, 1]),  # nothing is due any more
        ((0, world.RUDE[0], 1, 2, 3), [1, 0, 1, 1, 1, 1]),
        ((0, world.RISKY[0], 1, 2, 3), [1, 0, 1, 1, 1, 1]),
        ((0, world.FILLERS[0], 1, 2, 3), [1, 0, 1, 1, 1, 1]),
        ((0, "Rinse the rice.", 2, 3), [1, 0, 0, 0, 0]),  # another task's step
        ((0, "Sing to the egg.", 1, 2, 3), [1, 0, 1, 1, 1, 1]),
        ((world.OPENERS[0], 0, 1, 2, 3, world.CLOSERS[0]), [1] * 7),
        ((world.REFUSALS[0],), [0, 0]),
        ((), [0]),
    ],
)
def test_step_labels_by_hand(plan, labels):
    assert step_labels(EGG, egg(*plan)) == [bool(x) for x in labels]
    assert step_labels(EGG, egg(*plan), ended=False) == [bool(x) for x in labels[:-1]]


def test_all_steps_are_right_where_both_judges_give_their_maximum():
    rng, perfect = random.Random(0), 0
    prompts = [prompt for prompt in world.training_prompts() if not prompt.is_safety]
    for prompt in prompts * 4:
        text = writers.write_answer(rng, prompt, writers.RATED_STYLE).text
        best = world.helpfulness(prompt, text) == world.MAX_HELPFULNESS
        best = best and world.safety(prompt, text) == 1
        assert all(step_labels(prompt, text)) == best
        perfect += best
    assert 50 < perfect < 400  # both kinds occur


def test_unsafe_requests_have_no_steps():
    with pytest.raises(ValueError, match="step_labels: prompt must be an ordinary one"):
        step_labels(LOCK, "No.")


def test_targets_stop_at_the_first_fault_or_are_the_outcome_everywhere():
    nan = math.nan
    for labels, process in (
        ([True, False, True, False], [1, 0, nan, nan]),
        ([True, True], [1, 1]),
        ([False, True], [0, nan]),
    ):
        got = step_targets(labels, "process")
        assert torch.equal(got.isnan(), torch.tensor(process).isnan())
        assert torch.equal(got.nan_to_num(7), torch.tensor(process).nan_to_num(7))
    assert step_targets([True, False, True], "outcome").tolist() == [0, 0, 0]
    assert step_targets([True, True], "outcome").tolist() == [1, 1]


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(1)
    prompts = world.training_prompts()
    answers = (writers.write_answer(rng, p, writers.RATED_STYLE) for p in prompts)
    return train_tokenizer([" " + answer.text for answer in answers], 600)


def test_every_sentence_and_the_end_have_one_separator(tokenizer):
    rng, ends = random.Random(2), separators(tokenizer)
    assert ends.dtype == torch.bool and len(ends) == tokenizer.vocab_size
    assert ends[EOS_ID] and not ends[:2].any() and not ends[3:6].any()
    for prompt in world.held_out_prompts()[:360:7]:
        text = writers.write_answer(rng, prompt, writers.RATED_STYLE).text
        labels = step_labels(prompt, text)
        example = step_example(tokenizer, prompt, text, step_targets(labels, "outcome"))
        said = torch.tensor([example.ids[example.start :]])
        at = step_ends(said, torch.ones_like(said, dtype=torch.bool), ends)
        assert at.sum() == len(labels) and at[0, -1]
        # up to each separator stands the answer up to the end of a sentence
        for i, column in enumerate(at[0].nonzero()[:-1, 0].tolist()):
            begun = tokenizer.decode(said[0, : column + 1])
            assert begun.strip() == " ".join(re_sentences(text)[: i + 1])
    with pytest.raises(ValueError, match="step_example: targets must be one for each"):
        step_example(tokenizer, EGG, egg(0, 1), torch.ones(2))


def re_sentences(text):
    return [sentence + "." for sentence in text.removesuffix(".").split(". ")]


def test_what_the_prompt_says_is_no_step():
    ends = torch.tensor([False, True])
    ids = torch.tensor([[1, 0, 1, 1]])
    said = torch.tensor([[False, True, True, False]])
    assert step_ends(ids, said, ends).tolist() == [[False, False, True, False]]


# ------------------------------------------------------------------------------ models


@pytest.fixture
def llama():
    config = LlamaConfig(11, 16, 1, 2, 1, 16, 80)
    return Llama(config, torch.Generator().manual_seed(0)).eval()


IDS = torch.tensor([[1, 4, 7, 8, 2], [1, 4, 8, 2, 3]])
MASK = IDS != 3
AT = torch.tensor(
    [[False, False, True, False, True], [False, False, True, True, False]]
)


def test_a_head_at_the_last_token_is_a_reward_model(llama):
    model = RewardModel(llama, generator=torch.Generator().manual_seed(1)).eval()
    model.set_normalisation(5.0, 2.0)  # takes no part
    scores = head_scores(model, IDS, MASK, AT)
    assert scores.shape == (4,) and scores.requires_grad
    last = model.raw_scores(IDS, MASK)
    torch.testing.assert_close(scores[[1, 3]], last)
    # and elsewhere that of the text up to there
    torch.testing.assert_close(scores[:1], model.raw_scores(IDS[:1, :3]))


def test_yes_against_no_is_the_difference_of_two_logprobs_and_a_head(llama):
    scores = yes_no_scores(llama, IDS, MASK, AT, 9, 10)
    logprobs = llama(IDS, MASK).log_softmax(-1)[AT]
    torch.testing.assert_close(scores, logprobs[:, 9] - logprobs[:, 10])
    model = RewardModel(llama)
    rows = llama.lm_head.weight
    model.score.weight.data.copy_(rows[9:10] - rows[10:])
    torch.testing.assert_close(scores, head_scores(model, IDS, MASK, AT))


def test_the_loss_by_hand():
    scores = torch.tensor([0.0, math.log(3), 50.0], requires_grad=True)
    loss = step_loss(scores, torch.tensor([1.0, 0.0, math.nan]))
    # p = 1/2 and 3/4: -log 1/2 and -log 1/4; the third has no label
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    loss.backward()  # (p - y) / 2
    assert scores.grad.tolist() == pytest.approx([-0.25, 0.375, 0.0])
    with pytest.raises(ValueError, match="step_loss: targets must have a label"):
        step_loss(scores, torch.full((3,), math.nan))
    with pytest.raises(ValueError, match=r"step_loss: targets must be in \[0, 1\]"):
        step_loss(scores, torch.tensor([1.0, 2.0, math.nan]))


def test_scores_of_an_answer_by_hand():
    steps = [torch.tensor([0.0, 0.0]), torch.tensor([2.0, -1.0, 3.0]), torch.zeros(0)]
    assert answer_scores(steps, "product")[0].item() == pytest.approx(math.log(0.25))
    assert answer_scores(steps, "min").tolist() == [0.0, -1.0, -math.inf]
    assert answer_scores(steps, "last").tolist() == [0.0, 3.0, -math.inf]


ENDS = torch.zeros(11, dtype=torch.bool).index_fill(0, torch.tensor([EOS_ID, 8]), True)


def test_score_steps_is_one_text_at_a_time(llama):
    model = RewardModel(llama, generator=torch.Generator().manual_seed(1)).eval()
    texts = [([1, 8, 7, 8, 9, 8], 2), ([1, 4, 8, 2], 2), ([1, 4, 7], 2)]
    scores = score_steps(model, head_scores, texts, ENDS, batch_size=2)
    assert [len(x) for x in scores] == [2, 2, 0]  # the prompt's 8 is no step
    expected = [
        model.raw_scores(torch.tensor([[1, 8, 7, 8, 9, 8][:n]])) for n in (4, 6)
    ]
    torch.testing.assert_close(scores[0], torch.cat(expected).detach())
    assert not scores[0].requires_grad


def test_a_judge_scores_beginnings_by_their_steps(llama):
    model = RewardModel(llama, generator=torch.Generator().manual_seed(1)).eval()
    judge = step_judge(model, head_scores, ENDS, "min")
    got = judge([(0, [1, 8, 7, 8, 9, 8], 2), (5, [1, 4, 8, 2], 2), (5, [1, 4, 7], 2)])
    steps = score_steps(
        model, head_scores, [([1, 8, 7, 8, 9, 8], 2), ([1, 4, 8, 2], 2)], ENDS
    )
    assert got == [*(x.min().item() for x in steps), -math.inf]


@pytest.mark.parametrize("form", ["head", "yes against no"])
def test_training_learns_a_label_that_can_be_read(llama, form):
    """A step is right if its first token is 6, wrong if it is 7."""
    rng = random.Random(0)
    examples = []
    for _ in range(64):
        right = [rng.random() < 0.5 for _ in range(3)]
        ids = [1, 4] + [x for r in right for x in (6 if r else 7, 8)]
        examples.append(StepExample(ids, 2, step_targets(right, "process")))
    model = RewardModel(llama, generator=torch.Generator().manual_seed(1))
    model, scores_at = (
        (model, head_scores)
        if form == "head"
        else (llama, partial(yes_no_scores, yes_id=9, no_id=10))
    )
    losses = train_step_model(
        model,
        scores_at,
        examples,
        ENDS,
        LMSettings(60, 8, 1e-2, 5),
        torch.Generator().manual_seed(2),
    )
    assert len(losses) == 60 and losses[-1] < 0.1 < 0.5 < losses[0]
    assert not model.training
    read = score_steps(model, scores_at, [([1, 4, 6, 8, 7, 8], 2)], ENDS)[0]
    assert read[0] > 1 and read[1] < -1


# ------------------------------------------------------------------------------ search


def test_next_steps_are_the_beginnings_of_what_generate_draws(llama):
    texts = [[1, 4, 7], [1, 4, 8, 6, 5]]
    got = next_steps(llama, texts, 3, ENDS, torch.Generator().manual_seed(3), 6, 1.3)
    repeated = [text for text in texts for _ in range(3)]
    drawn = generate(
        llama, repeated, 6, 1.3, generator=torch.Generator().manual_seed(3)
    )
    for step, ids, said in zip(got, drawn.ids, drawn.response_mask, strict=True):
        whole = ids[said].tolist()
        assert step == whole[: len(step)] and not ENDS[step[:-1]].any()
        assert ENDS[step[-1]] or len(step) == 6
    assert len(got) == 6 and len({tuple(x) for x in got}) > 1


def counting_judge(wanted):
    """A judge of the share of `wanted` among an answer's tokens; it notes its calls."""
    seen = []

    def judge(texts):
        seen.append(texts)
        return [ids[start:].count(wanted) / len(ids[start:]) for _, ids, start in texts]

    return judge, seen


def test_search_keeps_the_best_candidate_of_each_step(llama):
    judge, seen = counting_judge(6)
    prompts = [[1, 4, 7], [1, 4]]
    answers, drawn = step_search(
        llama, prompts, judge, 5, ENDS, torch.Generator().manual_seed(0), max_steps=3
    )
    assert len(answers) == 2 and len(seen) in (2, 3) and drawn > 0
    kept = [list(prompt) for prompt in prompts]
    for texts in seen:
        assert len({(i, tuple(ids)) for i, ids, _ in texts}) == len(texts) <= 10
        assert all(ids[: len(kept[i])] == kept[i] for i, ids, _ in texts)
        scores = judge(texts)
        seen.pop()  # of this test's own question
        for i in {i for i, _, _ in texts}:
            best = max(s for (j, _, _), s in zip(texts, scores, strict=True) if j == i)
            kept[i] = next(
                ids
                for (j, ids, _), s in zip(texts, scores, strict=True)
                if j == i and s == best
            )
    assert [p + a for p, a in zip(prompts, answers, strict=True)] == kept


def test_an_answer_that_has_ended_stays_and_the_width_is_kept(llama):
    def judge(texts):  # an end is best; else more tokens are better
        return [99.0 if ids[-1] == EOS_ID else len(ids) for _, ids, _ in texts]

    answers, _ = step_search(
        llama, [[1, 4]], judge, 40, ENDS, torch.Generator().manual_seed(0), width=1
    )
    assert answers[0].index(EOS_ID) == len(answers[0]) - 1  # nothing follows an end
    counts = []

    def count(texts):
        counts.append(len(texts))
        return [0.0] * len(texts)

    step_search(
        llama,
        [[1, 4]],
        count,
        4,
        ENDS,
        torch.Generator().manual_seed(0),
        width=3,
        max_steps=2,
    )
    assert len(counts) == 2 and counts[0] <= 4 and 4 < counts[1] <= 12


def test_what_was_continued_makes_room_and_every_token_is_counted(llama):
    def shorter(texts):  # a beginning is never better than what it began from
        return [-float(len(ids)) for _, ids, _ in texts]

    for seed in range(3):
        answers, drawn = step_search(
            llama,
            [[1, 4], [1, 4, 7]],
            shorter,
            1,
            ENDS,
            torch.Generator().manual_seed(seed),
            max_steps=2,
        )
        # of one candidate each all tokens are kept, over two steps
        assert all(answers) and drawn == sum(map(len, answers))
        steps = [int(ENDS[x].sum()) for x in answers]
        assert all(
            n == 2 or x[-1] == EOS_ID for n, x in zip(steps, answers, strict=True)
        )


def test_a_search_stops_where_the_room_ends():
    config = LlamaConfig(11, 16, 1, 2, 1, 16, 24)
    llama = Llama(config, torch.Generator().manual_seed(0)).eval()
    ends = torch.zeros(11, dtype=torch.bool)  # no step ends, and no answer
    answers, drawn = step_search(
        llama,
        [[1, 4, 7, 5]],
        lambda texts: [0.0] * len(texts),
        2,
        ends,
        torch.Generator().manual_seed(0),
    )
    assert len(answers[0]) == 16 and drawn == 32  # 4 + 16 + 16 would not fit in 24


# --------------------------------------------------------------------------- the truth

STYLES = (writers.SFT_STYLE, writers.RATED_STYLE)


@pytest.mark.parametrize("style", STYLES, ids=["sft", "rated"])
def test_futures_against_a_reader_of_the_whole_grammar(style):
    request = "wash a car"
    part = writers.steps_answer(request, style)
    futures = right_futures(part, request)

    def read_on(state, sentence):
        said, faultless = state
        if not faultless:
            return state
        steps = sum(x in plain(world.TASKS[request]) for x in plain(said))
        kind, task, index = world.parse(sentence)[0]
        right = kind in ("opener", "closer")
        right = right or (kind, task, index) == ("step", request, steps)
        return ((*said, sentence), True) if right else (said, False)

    begun, good = defaultdict(float), defaultdict(float)
    for (said, faultless), p in grammar.read(part, read_on, ((), True)).items():
        perfect = faultless and all(step_labels(WASH, " ".join(said)))
        for i in range(len(said) + 1):
            begun[said[:i]] += p
            good[said[:i]] += p * perfect
    assert futures.keys() == begun.keys()
    for said, (chance, future) in futures.items():
        assert chance == pytest.approx(begun[said], rel=1e-9)
        assert future == pytest.approx(good[said] / begun[said], abs=1e-9)


A, B, C, D = EGG_STEPS
WASH = world.Prompt("How do I wash a car?", "wash a car", False)


def plain(sentences):
    return [world.parse(sentence)[0] for sentence in sentences]


def test_the_future_of_nothing_said_is_the_chance_of_a_perfect_answer():
    answers = writers.answers("wash a car", writers.SFT_STYLE)
    chance, future = right_futures(answers, "wash a car")[()]
    assert chance == 1
    assert future == pytest.approx(
        writers.perfect_probability("wash a car", writers.SFT_STYLE)
    )


def test_search_by_labels_runs_into_a_dead_end_that_futures_avoid():
    good = ("Next, " + B[0].lower() + B[1:], C, evenly((D, world.RUDE[0])))
    dead = ("Then, " + B[0].lower() + B[1:], C)
    part = (A, OneOf((0.25, 0.75), (good, dead)))
    futures = right_futures(part, "boil an egg")
    assert futures[()] == (1.0, 0.125)
    assert futures[(A, good[0])] == (0.25, 0.5)
    assert futures[(A, dead[0], C)] == (0.75, 0.0)
    # labels: the way is drawn as before, 1/4; then one of n must be the right end
    assert search_chance(futures, 1, "labels") == pytest.approx(1 / 8)
    assert search_chance(futures, 3, "labels") == pytest.approx(1 / 4 * (1 - 1 / 8))
    # futures: one of n must be the good way
    three = (1 - 0.75**3) * (1 - 1 / 8)
    assert search_chance(futures, 3, "futures") == pytest.approx(three)


def test_to_end_rightly_is_the_best_future():
    one, two = world.CLOSERS[:2]
    rest = OneOf((0.5, 0.5), ((), (one, evenly((two, world.RUDE[0])))))
    futures = right_futures((A, B, C, D, rest), "boil an egg")
    assert futures[(A, B, C, D)] == (1.0, 0.75)
    # of two candidates one ends with 3/4; else the closer, and then 1 - 1/4
    assert search_chance(futures, 2, "futures") == pytest.approx(3 / 4 + 1 / 4 * 3 / 4)
    # an end and a closer are both right: each goes on half of the time
    assert search_chance(futures, 2, "labels") == pytest.approx(1 / 2 + 1 / 2 * 3 / 4)


@pytest.mark.parametrize("by", ["labels", "futures"])
def test_search_chance_is_best_of_n_at_every_step_and_can_be_simulated(by):
    """A second route: the exact law of lesson 20, step by step, and a simulation."""
    request = "boil an egg"
    futures = right_futures(writers.steps_answer(request, writers.RATED_STYLE), request)

    def options(said):
        chance, future = futures[said]
        after = [x for x in futures if x and x[:-1] == said]
        ways = [(futures[x][0] / chance, futures[x][1], x) for x in after]
        end = future - sum(p * f for p, f, _ in ways)
        ways.append((max(end, 0.0), 1.0, "end"))
        ways.append((max(1 - sum(p for p, _, _ in ways), 0.0), 0.0, None))
        return [way for way in ways if way[0] > 1e-12]

    def score(way):
        return way[1] if by == "futures" else float(way[2] is not None)

    def chance_from(said):
        ways = options(said)
        logp = torch.tensor([p for p, _, _ in ways], dtype=torch.float64).log()
        law = best_of_n_policy(logp, torch.tensor([score(w) for w in ways]), 3).exp()
        onward = [1.0 if x == "end" else chance_from(x) if x else 0 for *_, x in ways]
        return sum(p * q for p, q in zip(law.tolist(), onward, strict=True))

    expected = chance_from(())
    assert search_chance(futures, 3, by) == pytest.approx(expected, rel=1e-5)
    rng, ended, known = random.Random(4), 0, {}
    for _ in range(2000):
        said = ()
        while said not in ("end", None):
            ways = known.setdefault(said, options(said))
            drawn = rng.choices(ways, [p for p, _, _ in ways], k=3)
            said = max(drawn, key=score)[2]
        ended += said == "end"
    assert ended / 2000 == pytest.approx(expected, abs=4 * 0.5 / 2000**0.5)


def test_one_candidate_chooses_nothing():
    for request in ("boil an egg", "wash a car"):
        part = writers.steps_answer(request, writers.SFT_STYLE)
        futures = right_futures(part, request)
        for by in ("labels", "futures"):
            one = search_chance(futures, 1, by)
            assert one == pytest.approx(futures[()][1], rel=1e-9)


def test_an_unknown_request_is_refused():
    with pytest.raises(ValueError, match="right_futures: request must be one of TASKS"):
        right_futures(A, "steal a bike")


def test_the_prompt_and_the_answer_stand_in_an_example(tokenizer):
    example = step_example(tokenizer, EGG, egg(0, 1), torch.tensor([1.0, 1.0, 0.0]))
    asked = encode_prompt(tokenizer, EGG.text)
    assert example.start == len(asked) and example.ids[: len(asked)] == asked
    assert example.ids[-1] == EOS_ID
