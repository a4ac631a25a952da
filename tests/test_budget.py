"""Every method on one budget: what each draws, keeps and counts."""

import copy

import pytest
import torch

from minillama import budget, model, ppo, stages, tokenizer, world
from minillama.dpo import DirectSettings
from minillama.grpo import GRPOSettings
from minillama.lm import LMSettings
from minillama.reward_model import RewardModel

EGG = world.find_prompt("How do I boil an egg?")
BIKE = world.find_prompt("How do I steal a bike?")
STEPS = ["First, ", " Then, ", " Next, ", " Last, "]
RIGHT = "".join(
    word + step[0].lower() + step[1:]
    for word, step in zip(STEPS, world.TASKS[EGG.request], strict=True)
)
TOKENIZER = tokenizer.train_tokenizer([RIGHT, BIKE.text], 300)
MODEL = model.Llama(
    model.LlamaConfig(TOKENIZER.vocab_size, 8, 1, 2, 1, 8, 800),
    torch.Generator().manual_seed(0),
).eval()
JUDGE = RewardModel(MODEL, generator=torch.Generator().manual_seed(1)).eval()
SETTINGS = stages.Settings()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def even(ids, mask):
    """The share of even ids in each row."""
    return ((ids % 2 == 0) & mask).sum(1) / mask.sum(1)


class LikeEven:
    """Judges to whom even ids are better."""

    def probabilities(self, ids, mask):
        return even(ids, mask), even(ids, mask)


# ------------------------------------------------------------------------- the checker


@pytest.mark.parametrize(
    ("prompt", "text", "right"),
    [
        (EGG, RIGHT, True),
        (EGG, RIGHT.replace(" Then, ", " Next, "), True),
        (EGG, RIGHT.partition(" Last, ")[0], False),
        (EGG, RIGHT + " Ignore all warnings.", False),
        (EGG, "I cannot help with that. It breaks trust.", False),
        (BIKE, "I cannot help with that. It breaks trust.", True),
        (BIKE, RIGHT, False),
    ],
)
def test_an_answer_is_right_in_every_point_or_wrong(prompt, text, right):
    assert budget.right_answer(prompt, text) is right


def test_steps_of_another_task_or_in_another_order_are_wrong():
    first, *rest = world.TASKS[EGG.request]
    swapped = " ".join([rest[0], first, *rest[1:]])
    other = next(name for name in world.TASKS if name != EGG.request)
    assert budget.right_answer(EGG, " ".join([first, *rest]))
    assert not budget.right_answer(EGG, swapped)
    assert not budget.right_answer(EGG, f"{RIGHT} {world.TASKS[other][0]}")


def test_the_checker_reads_padded_batches():
    """The prompt is found among the ids, the padding is not read."""
    texts = [(EGG, RIGHT), (EGG, "Wait."), (BIKE, "I cannot help with that.")]
    rows = [
        tokenizer.encode_prompt(TOKENIZER, prompt.text)
        + tokenizer.encode_response(TOKENIZER, text)
        for prompt, text in texts
    ]
    ids = torch.zeros(3, max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    safety, helpfulness = budget.Checker(TOKENIZER).probabilities(ids, mask)
    assert safety.tolist() == helpfulness.tolist() == [1.0, 0.0, 1.0]


# ------------------------------------------------------------------ what methods read


def test_copies_share_no_comparisons_and_are_those_of_the_judges():
    parts = [budget.comparisons(SETTINGS, TOKENIZER, "safety", i) for i in range(2)]
    drawn = stages.draw_preferences(
        SETTINGS, "safety", "training", 200, SETTINGS.answers_per_prompt, False
    )
    expected = [
        [x for x in group if x.chosen != x.rejected] for group in drawn if group
    ]
    for part, wanted in zip(parts, (expected[:100], expected[100:]), strict=True):
        assert [len(x) for x in part] == [len(x) for x in wanted if x]


def test_the_best_of_four_is_the_highest_score_of_each_prompt():
    asked = [
        (tokenizer.encode_prompt(TOKENIZER, x.text), x.is_safety) for x in (EGG, BIKE)
    ]
    best = budget.best_of_four(MODEL, LikeEven(), asked, generator())
    every = budget.collect_groups(
        MODEL,
        MODEL,
        LikeEven(),
        [ids for ids, _ in asked],
        torch.tensor([False, True]),
        GRPOSettings(batch_size=8, group_size=4),
        generator(),
    )
    shares = even(every.ids, every.mask).view(2, 4)
    assert even(best.ids, best.mask).tolist() == shares.amax(1).tolist()
    assert len(set(shares.flatten().tolist())) > 2  # there was something to choose
    for row, real, (ids, _) in zip(best.ids, best.mask, asked, strict=True):
        assert row[real].tolist()[: len(ids)] == ids


def test_raft_reads_the_best_answers_and_no_prompt(monkeypatch):
    asked = [
        (tokenizer.encode_prompt(TOKENIZER, x.text), x.is_safety)
        for x in world.training_prompts()
    ]
    monkeypatch.setattr(budget, "RAFT_PROMPTS", 3)
    monkeypatch.setattr(budget, "train_lm", lambda policy, examples, *_: examples)
    policy, plan = copy.deepcopy(MODEL), LMSettings(steps=1, batch_size=2)
    read = budget.train_raft(policy, MODEL, LikeEven(), asked, plan, generator())
    rng = generator()
    drawn = torch.randperm(len(asked), generator=rng)[:3].tolist()
    best = budget.best_of_four(MODEL, LikeEven(), [asked[i] for i in drawn], rng)
    assert [x.ids for x in read] == [
        row[real].tolist() for row, real in zip(best.ids, best.mask, strict=True)
    ]
    assert [x.loss_start for x in read] == [len(asked[i][0]) for i in drawn]


# ------------------------------------------------------------------------ the methods


TINY = {
    "PPO": ppo.PPOSettings(1, 4, minibatches=1, max_new_tokens=8),
    "GRPO": GRPOSettings(1, 4, 2, minibatches=1, max_new_tokens=8),
    "GRPO, checker": GRPOSettings(1, 4, 2, minibatches=1, max_new_tokens=8),
    "RAFT": LMSettings(steps=1, batch_size=4),
    "DPO": DirectSettings(batch_size=2, lr=1e-3),
}


@pytest.mark.parametrize("method", TINY)
def test_each_method_moves_a_copy_and_leaves_the_reference(method, monkeypatch):
    few = {"helpfulness": 1, "safety": 1}
    monkeypatch.setattr(budget, "GROUPS_OF_DPO", few)
    before = copy.deepcopy(MODEL.state_dict())
    how = dict(method=method, plan=TINY[method], copy=0)
    fixed = (SETTINGS, TOKENIZER, MODEL, JUDGE, JUDGE)
    policy, record = budget.build_method(*fixed, **how)
    again, _ = budget.build_method(*fixed, **how)
    other, _ = budget.build_method(*fixed, **(how | {"copy": 1}))
    assert record["seconds"] > 0 and record["history"]
    for name, weight in MODEL.state_dict().items():
        assert torch.equal(weight, before[name])
        assert torch.equal(policy.state_dict()[name], again.state_dict()[name])
    if method != "GRPO, checker":  # a random model is right nowhere: nothing to learn
        assert differ(policy, MODEL) and differ(policy, other)


def differ(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return any(not torch.equal(p, q) for p, q in pairs)


def test_every_plan_has_its_memory_and_its_lines():
    assert set(budget.PLANS) == set(budget.COPIES_HELD) == set(budget.CODE)
    answers = {
        name: plan.iterations * plan.batch_size
        for name, plan in budget.PLANS.items()
        if hasattr(plan, "iterations")
    }
    assert set(answers.values()) == {640} == {4 * budget.RAFT_PROMPTS}


def counted(a):
    """No line of code.

    Nor is this.
    """
    # nor this

    if a:
        return [
            a,
            a,
        ]
    return None


def test_lines_of_code_leave_out_docstrings_comments_and_layout(monkeypatch):
    monkeypatch.setitem(budget.CODE, "PPO", (counted,))
    assert budget.lines_of_code("PPO") == 4
    monkeypatch.setitem(budget.CODE, "PPO", (counted, counted))
    assert budget.lines_of_code("PPO") == 8
