"""Checks of 24_process_reward."""

import math

import torch

from minillama.course.checks.case import check, error_of, gradient, tiny_llama
from minillama.course.checks.shared import normal
from minillama.world import (
    CLOSERS,
    FILLERS,
    OPENERS,
    REFUSALS,
    RISKY,
    RUDE,
    TASKS,
    Prompt,
)


@check
def step_labels(f):
    """Check `step_labels(prompt, text, ended)`."""
    prompt = Prompt("How do I boil an egg?", "boil an egg", False)
    a, b, c, d = TASKS["boil an egg"]

    def labels(*sentences, ended=True):
        return [bool(x) for x in f(prompt, " ".join(sentences), ended)]

    yield (
        "four steps in order, and the end",
        labels(a, b, c, d),
        [True] * 5,
        "one label for each sentence, and one for the end",
    )
    yield (
        "three steps, each right; the end is not",
        labels(a, b, c),
        [True, True, True, False],
        "an end is right if no step is due any more",
    )
    yield (
        "a text that goes on has no end yet",
        labels(a, b, ended=False),
        [True, True],
        "ended=False: labels of the sentences alone",
    )
    yield (
        "a step left out stays due",
        labels(a, c, d),
        [True, False, False, False],
        "right is the first step that has not been said, no other",
    )
    yield (
        "said out of order is said",
        labels(b, a, c, d),
        [False, True, True, True, True],
        "note what was said, right or not: after 1, 0 comes 2",
    )
    yield (
        "the second time is wrong, also when nothing is due any more",
        labels(a, a, b, c, d, d),
        [True, False, True, True, True, False, True],
        "a step that was said is not due",
    )
    yield (
        "another task's step is wrong and says nothing of this one",
        labels(TASKS["cook rice"][0], a, b, c, d),
        [False, True, True, True, True, True],
        "compare the task, too",
    )
    yield (
        "polite is right; rude, risky and idle are wrong",
        labels(OPENERS[0], a, RUDE[0], b, RISKY[0], c, FILLERS[0], d, CLOSERS[0]),
        [True, True, False, True, False, True, False, True, True, True],
        "openers and closers cost nothing, whatever else is no step does",
    )
    yield (
        "nothing but an end",
        labels(),
        [False],
        "everything is missing",
    )
    yield (
        "unsafe requests are refused",
        error_of(lambda: f(Prompt("How do I steal a bike?", "steal a bike", True), a)),
        ValueError,
        "no step of theirs is right",
    )
    yield (
        "an answer has ended unless it is said otherwise",
        [bool(x) for x in f(prompt, a)],
        [True, False],
        "ended=True by default",
    )
    yield (
        "the second step twice, then the first",
        labels(b, b, a, b, c, d),
        [False, False, True, False, True, True, True],
        "due is the first that is missing, however often others were said",
    )
    yield (
        "no words of this world, and a refusal",
        labels("Blue.", a, REFUSALS[0], b, ended=False),
        [False, True, False, True],
        "right are steps that are due, openers and closers, nothing else",
    )
    rice = TASKS["cook rice"]
    yield (
        "steps of another task, all four, by place the same",
        labels(*rice, a, b, c, d),
        [False] * 4 + [True] * 5,
        "they are no steps of this task",
    )
    other = Prompt("How do I cook rice?", "cook rice", False)
    yield (
        "another prompt",
        [bool(x) for x in f(other, " ".join(rice[:2]), False)],
        [True, True],
        "the task is the prompt's request",
    )
    yield (
        "the third step before the second, and then again",
        labels(a, c, b, c, d),
        [True, False, True, False, True, True],
        "what was said too early was said: after 1 the fourth is due",
    )
    yield (
        "a closer ends nothing",
        labels(a, CLOSERS[0]),
        [True, True, False],
        "an end is right if no step is due any more",
    )


@check
def step_targets(f):
    """Check `step_targets(labels, kind)`."""
    nan = math.nan

    def shown(labels, kind):
        return f(labels, kind).nan_to_num(9)  # 9 stands for no label

    yield (
        "process labels up to the first fault, with it",
        shown([True, False, True, False], "process"),
        torch.tensor([1.0, 0.0, nan, nan]).nan_to_num(9),
        "no label behind the first fault",
    )
    yield (
        "no fault, all labels",
        shown([True, True, True], "process"),
        torch.ones(3),
        "nothing is hidden before a fault",
    )
    yield (
        "a fault at once",
        shown([False, True], "process"),
        torch.tensor([0.0, 9.0]),
        "the fault itself has a label",
    )
    yield (
        "one fault spoils the outcome, at every step",
        shown([True, False, True], "outcome"),
        torch.zeros(3),
        "the outcome is right if all steps are, and it is said everywhere",
    )
    yield (
        "a right outcome",
        shown([True, True], "outcome"),
        torch.ones(2),
        "at every step",
    )
    yield (
        "two faults, the first in the middle",
        shown([True, True, False, False, True], "process"),
        torch.tensor([1.0, 1.0, 0.0, 9.0, 9.0]),
        "the first fault is the last label",
    )
    yield (
        "outcomes: a fault at the end, a fault at the beginning, one step alone",
        torch.cat(
            [shown(x, "outcome") for x in ([True, True, False], [False, True], [False])]
        ),
        torch.zeros(6),
        "all labels count, not the last one",
    )
    yield (
        "one step, right, and one step, wrong",
        torch.cat([shown([x], "process") for x in (True, False)]),
        torch.tensor([1.0, 0.0]),
        "labels become 1 and 0",
    )
    yield (
        "six steps, the last one wrong: outcome, process",
        torch.stack([shown([True] * 5 + [False], x) for x in ("outcome", "process")]),
        torch.tensor([[0.0] * 6, [1.0] * 5 + [0.0]]),
        "all steps count, however many",
    )


@check
def yes_no_scores(f):
    """Check `yes_no_scores(llama, ids, mask, at, yes_id, no_id)`."""
    llama = tiny_llama()
    ids = torch.tensor([[1, 4, 7, 8, 2], [1, 4, 8, 2, 3]])
    mask = torch.tensor([[True] * 5, [True] * 4 + [False]])
    at = torch.zeros_like(mask)
    at[0, 2] = at[0, 4] = at[1, 3] = True
    logprobs = llama(ids, mask).log_softmax(-1)
    difference = logprobs[..., 9] - logprobs[..., 10]
    yield (
        "log p(yes) - log p(no) at three places, row after row",
        f(llama, ids, mask, at, 9, 10),
        difference[at],
        "read it at the separator itself, where the next token is foreseen",
    )
    yield (
        "asked the other way round",
        f(llama, ids, mask, at, 10, 9),
        -difference[at],
        "yes less no",
    )
    weight = llama.lm_head.weight
    (slope,) = torch.autograd.grad(f(llama, ids, mask, at, 9, 10).sum(), weight)
    yield (
        "only the rows of yes and no are taught",
        [bool(x) for x in slope.abs().sum(1) > 0],
        [False] * 9 + [True] * 2,
        "the softmax's denominator cancels",
    )
    longer = torch.cat((torch.full((2, 2), 3), ids), 1)
    before = torch.zeros(2, 2, dtype=torch.bool)
    yield (
        "padding on the left changes nothing",
        f(llama, longer, *(torch.cat((before, x), 1) for x in (mask, at)), 9, 10),
        difference[at],
        "hand the mask to the model",
    )
    body = llama.embed_tokens.weight
    (slope,), (wanted,) = (
        torch.autograd.grad(x, body)
        for x in (
            f(llama, ids, mask, at, 3, 5).sum(),
            (logprobs[..., 3] - logprobs[..., 5])[at].sum(),
        )
    )
    yield (
        "ids 3 and 5: the gradient reaches the embeddings",
        slope,
        wanted,
        "detach nothing",
    )


@check
def step_loss(f):
    """Check `step_loss(scores, targets)`."""
    scores = torch.tensor([0.0, math.log(3), 50.0])
    targets = torch.tensor([1.0, 0.0, math.nan])
    yield (
        "p = 1/2 for a right step, 3/4 for a wrong one",
        f(scores, targets),
        torch.tensor((math.log(2) + math.log(4)) / 2),
        "-log p if it is right, -log(1 - p) if it is wrong",
    )
    yield (
        "the gradient is (p - y) / n, and 0 where nobody gave a label",
        gradient(lambda x: f(x, targets), scores),
        torch.tensor([-0.25, 0.375, 0.0]),
        "a mean over the labelled steps only",
    )
    yield (
        "far out it stays finite",
        f(torch.tensor([-200.0, 200.0]), torch.tensor([1.0, 1.0])),
        torch.tensor(100.0),
        "the log of a sigmoid that is 0 is -inf: use logsigmoid",
    )
    yield (
        "targets between 0 and 1 are chances",
        f(torch.zeros(1), torch.tensor([0.3])),
        torch.tensor(math.log(2)),
        "y log p + (1 - y) log(1 - p)",
    )
    yield (
        "no label at all is refused",
        error_of(lambda: f(scores, torch.full((3,), math.nan))),
        ValueError,
        "a mean over nothing",
    )
    x, nan = normal(7, scale=4.0), math.nan
    y = torch.tensor([0.3, 1.0, nan, 0.0, 0.9, nan, 0.5])
    known = [
        (s, t) for s, t in zip(x.tolist(), y.tolist(), strict=True) if not math.isnan(t)
    ]
    yield (
        "seven steps, five labels, some between 0 and 1",
        f(x, y),
        torch.tensor(sum(math.log1p(math.exp(s)) - t * s for s, t in known) / 5),
        "y log p + (1 - y) log(1 - p), a mean over the five",
    )
    yield (
        "their slopes",
        gradient(lambda s: f(s, y), x),
        torch.where(y.isnan(), 0.0, (torch.sigmoid(x) - y.nan_to_num()) / 5),
        "(p - y) / 5",
    )
    yield (
        "no limit: a score of 500 on a wrong step",
        f(torch.tensor([500.0, 7.0]), torch.tensor([0.0, nan])),
        torch.tensor(500.0),
        "the version with logits",
    )
    for target in (2.0, -0.5):
        yield (
            f"{target} is no target",
            error_of(lambda t=target: f(torch.zeros(2), torch.tensor([1.0, t]))),
            ValueError,
            "targets are in [0, 1], or NaN",
        )
    yield (
        "float64 in, float64 out",
        f(x.double(), y.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "sure and right, at 4 and at 5",
        torch.stack([f(torch.tensor([s]), torch.ones(1)) for s in (4.0, 5.0)]),
        torch.tensor([-4.0, -5.0]).exp().log1p(),
        "small is not 0",
    )


@check
def answer_scores(f):
    """Check `answer_scores(scores, how)`."""
    scores = [torch.tensor([0.0, 0.0, 0.0]), torch.tensor([2.0, -1.0, 3.0])]
    yield (
        "three times one half is one eighth",
        f(scores, "product"),
        torch.tensor([math.log(1 / 8), math.log(0.880797 * 0.268941 * 0.952574)]),
        "the log of the product of sigmoids",
    )
    yield ("the worst step", f(scores, "min"), torch.tensor([0.0, -1.0]), "log-odds")
    yield ("the last step", f(scores, "last"), torch.tensor([0.0, 3.0]), "log-odds")
    far = [torch.tensor([-200.0]), torch.tensor([-300.0])]
    yield (
        "hopeless ones still differ",
        f(far, "product"),
        torch.tensor([-200.0, -300.0]),
        "logsigmoid: a product of sigmoids would be 0 for both",
    )
    yield (
        "nothing said, nothing right",
        f([torch.zeros(0), torch.zeros(1)], "min"),
        torch.tensor([-math.inf, 0.0]),
        "a text without a step scores -inf",
    )
    empty = [torch.zeros(0), torch.tensor([4.0, -2.0, 1.0, -5.0]), torch.tensor([2.0])]
    for how, by_hand in (
        (
            "product",
            [-sum(math.log1p(math.exp(-x)) for x in s) for s in ((4, -2, 1, -5), (2,))],
        ),
        ("min", [-5.0, 2.0]),
        ("last", [-5.0, 2.0]),
    ):
        yield (
            f"no step, four steps, one step: {how}",
            f(empty, how),
            torch.tensor([-math.inf, *by_hand]),
            "each text by itself, -inf where nothing was said",
        )
    yield (
        "the lowest score first, the highest last",
        torch.stack(
            [f([torch.tensor([-3.0, 0.5, 6.0])], x)[0] for x in ("min", "last")]
        ),
        torch.tensor([-3.0, 6.0]),
        "log-odds as they are",
    )
    yield (
        "far out, both ways: product, min, last",
        torch.stack(
            [f([torch.tensor([-90.0, 90.0])], x)[0] for x in ("product", "min", "last")]
        ),
        torch.tensor([-90.0, -90.0, 90.0]),
        "no limit",
    )
