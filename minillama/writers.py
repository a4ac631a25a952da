"""How people answer: styles, the habits that writers share, and what is exact of both.

`write_answer` draws an answer to a prompt in a `Style`. Writers share faults, as real
demonstrators do: every task has a mistake that most of them make and two asides that
most of them add, and many comply with what they should refuse. A model that imitates
them, at whatever temperature, learns these habits with the rest.

Each text has one derivation in the grammar, so these are exact: the log-probability of
an answer, the entropy of a style, the KL between two of them, and the probability of a
perfect answer. A policy that always answers perfectly is at least -log of the last away
from its demonstrators: `least_kl`.

Conventions are those of world.py. Left out: writers who differ from each other.
"""

import functools
import math
from dataclasses import dataclass
from itertools import combinations, permutations

from minillama import grammar
from minillama.contracts import expects
from minillama.grammar import OneOf, evenly, maybe
from minillama.world import (
    ALTERNATIVES,
    CLOSERS,
    COMPLIANCE,
    FILLERS,
    OPENERS,
    REASONS,
    REFUSALS,
    REQUESTS,
    RISKY,
    RUDE,
    TASKS,
    UNSAFE,
    parse,
)


@expects(
    "opener, closer, on_topic, full, common_mistake: number in [0, 1]",
    "customary, filler, rude, risky: number in [0, 1]",
    "refuse_ordinary, refuse_unsafe, half_refuse, off_unsafe: number in [0, 1]",
    "reason, alternative: number in [0, 1]",
)
@dataclass(frozen=True)
class Style:
    """How a writer answers: every field is a probability."""

    # The answer opens with a polite sentence.
    opener: float = 0.3
    # The answer closes with a polite sentence.
    closer: float = 0.3
    # The steps are those of the task that was asked about, else of another one.
    on_topic: float = 0.95
    # All four steps stand in order.
    full: float = 0.32
    # The mistake that is common for the task; what is left is shared evenly by
    # `FAULTY_PLANS`.
    common_mistake: float = 0.58
    # At a joint with a customary aside, the aside is added.
    customary: float = 0.65
    # Any other step is followed by a sentence that says nothing.
    filler: float = 0.03
    # Any other step is followed by a rude remark.
    rude: float = 0.02
    # Any other step is followed by risky advice.
    risky: float = 0.01
    # An ordinary request is refused.
    refuse_ordinary: float = 0.01
    # An unsafe request is refused.
    refuse_unsafe: float = 0.2
    # An unsafe request is refused, and then complied with.
    half_refuse: float = 0.15
    # An unsafe request gets the steps of some task; what is left complies.
    off_unsafe: float = 0.03
    # A refusal gives a reason.
    reason: float = 0.5
    # A refusal offers something better.
    alternative: float = 0.5

    def __post_init__(self):
        for names in (
            "full common_mistake",
            "filler rude risky",
            "refuse_unsafe half_refuse off_unsafe",
        ):
            total = sum(getattr(self, name) for name in names.split())
            if total > 1 + 1e-9:
                words = names.replace(" ", " + ")
                raise ValueError(f"Style: {words} must be at most 1, got {total:.6g}")


# The demonstrators, the web's average, which is a little worse, and two ways to write
# what raters compare: they see right and wrong alike.
SFT_STYLE = Style()
BASE_STYLE = Style(
    opener=0.2,
    closer=0.2,
    on_topic=0.78,
    full=0.22,
    common_mistake=0.5,
    customary=0.5,
    filler=0.1,
    rude=0.06,
    risky=0.04,
    refuse_ordinary=0.04,
    refuse_unsafe=0.15,
    half_refuse=0.1,
    off_unsafe=0.12,
)
RATED_STYLE = Style(
    opener=0.4,
    closer=0.4,
    on_topic=0.88,
    full=0.45,
    common_mistake=0.2,
    customary=0.3,
    filler=0.08,
    rude=0.05,
    risky=0.04,
    refuse_ordinary=0.05,
    refuse_unsafe=0.5,
    half_refuse=0.1,
    off_unsafe=0.1,
)
RISKY_STYLE = Style(
    opener=0.4,
    closer=0.4,
    on_topic=0.75,
    full=0.45,
    common_mistake=0.1,
    customary=0.15,
    filler=0.08,
    rude=0.04,
    risky=0.2,
    refuse_ordinary=0.05,
    refuse_unsafe=0.5,
    half_refuse=0.12,
    off_unsafe=0.12,
)

# fmt: off
HABITS = {  # a task -> its common mistake, a plan; and the asides after a sentence
    "boil an egg": ((0, 1, 2), {0: FILLERS[0], 1: RUDE[0]}),
    "make a cup of tea": ((0, 1, 2), {0: RISKY[0], 1: RUDE[0]}),
    "cook rice": ((1, 2, 3), {0: RUDE[1], 2: RISKY[1]}),
    "bake bread": ((0, 1, 3), {1: FILLERS[2], 2: RUDE[2]}),
    "make a salad": ((0, 2, 3), {1: RISKY[2], 2: RUDE[3]}),
    "make pancakes": ((0, 2, 3), {0: RUDE[3], 1: RISKY[3]}),
    "fix a flat tire": ((1, 0, 2, 3), {0: FILLERS[4], 1: RISKY[4]}),
    "wash a car": ((1, 2, 3), {0: FILLERS[5], 2: RUDE[0]}),
    "paint a wall": ((0, 2, 3), {1: RUDE[1], 2: RISKY[5]}),
    "hang a picture": ((0, 1, 2), {0: RISKY[0], 2: FILLERS[0]}),
    "change a light bulb": ((0, 2, 3), {0: RISKY[1], 1: RUDE[2]}),
    "iron a shirt": ((1, 2, 3), {1: RUDE[1], 2: RISKY[2]}),
    "do the laundry": ((1, 2, 3), {0: RUDE[3], 1: FILLERS[2]}),
    "sew on a button": ((0, 2, 3), {0: FILLERS[3], 2: RISKY[3]}),
    "remove a stain": ((0, 2, 1, 3), {1: RISKY[4], 2: RUDE[0]}),
    "plant a tree": ((0, 1, 2), {0: RUDE[1], 2: FILLERS[4]}),
    "grow tomatoes": ((0, 1, 3), {1: RISKY[5], 2: FILLERS[5]}),
    "mow the lawn": ((0, 1, 2), {0: RISKY[0], 2: RUDE[2]}),
    "walk a dog": ((0, 2, 3), {1: FILLERS[0], 2: RUDE[3]}),
    "pack a suitcase": ((1, 2, 3), {0: FILLERS[1], 2: RUDE[0]}),
    "send a letter": ((0, 2, 1, 3), {1: RISKY[1], 2: FILLERS[2]}),
    "learn a song": ((0, 2, 3), {0: RUDE[1], 1: RISKY[2]}),
    "wrap a gift": ((1, 0, 2, 3), {0: RUDE[2], 1: FILLERS[3]}),
    "build a kite": ((0, 1, 2), {1: RUDE[3], 2: RISKY[3]}),
}
# fmt: on

RIGHT = (0, 1, 2, 3)
WITH_A_REPETITION = {
    plan
    for step in RIGHT
    for at in range(5)
    for replaced in (0, 1)
    if len(set(plan := RIGHT[:at] + (step,) + RIGHT[at + replaced :])) < len(plan)
}
# Orders of the four steps of a task that are not the right one; no two are alike. None
# is a step of another task.
FAULTY_PLANS = {
    "one missing": tuple(combinations(RIGHT, 3)),
    "two missing": tuple(combinations(RIGHT, 2)),
    "swapped": tuple(
        tuple(b if i == a else a if i == b else i for i in RIGHT)
        for a, b in combinations(RIGHT, 2)
    ),
    "one again": tuple(sorted(WITH_A_REPETITION)),
    "mixed": tuple(RIGHT[:at] + (None,) + RIGHT[at + 1 :] for at in RIGHT),
}
OTHER_TASKS = {task: tuple(x for x in TASKS if x != task) for task in TASKS}
OTHER_STEPS = {
    task: tuple(step for other in others for step in TASKS[other])
    for task, others in OTHER_TASKS.items()
}


# --------------------------------------------------------------------------------------
# The grammar


def connected(steps):
    """Return the steps as "First, …", "Next, …" or "Then, …", and "Last, …".

    A step is a sentence, or a sequence of which one is written: parts of a grammar.
    """
    words = [("First",), *(("Next", "Then") for _ in steps[2:]), ("Last",)]
    return tuple(
        evenly(
            [
                f"{word}, {sentence[0].lower()}{sentence[1:]}"
                for sentence in ([step] if isinstance(step, str) else step)
                for word in choice
            ]
        )
        for choice, step in zip(words, steps, strict=True)
    )


def _aside(style, customary):
    """What follows a step; where an aside is customary, most writers add it."""
    p = style.customary if customary else 0.0
    total = style.filler + style.rude + style.risky
    kinds = [
        (style.filler, FILLERS),
        (style.rude, RUDE),
        (style.risky, RISKY),
    ]
    others = [evenly([x for x in texts if x != customary]) for _, texts in kinds]
    rest = OneOf((*(share for share, _ in kinds), max(1 - total, 0.0)), (*others, ()))
    return OneOf((p, 1 - p), (customary or (), rest))


@functools.cache
def steps_answer(task, style):
    """Return the grammar of answers with the steps of a task, right or not."""
    mistake, customs = HABITS[task]
    plans = {RIGHT: style.full, mistake: style.common_mistake}
    rest = max(1 - style.full - style.common_mistake, 0.0)
    for group in FAULTY_PLANS.values():
        others = [plan for plan in group if plan != mistake]
        plans |= {plan: rest / len(FAULTY_PLANS) / len(others) for plan in others}
    asides = [_aside(style, customs.get(at)) for at in range(len(RIGHT) + 1)]

    def written(plan):
        steps = [OTHER_STEPS[task] if i is None else TASKS[task][i] for i in plan]
        return tuple(zip(connected(steps), asides, strict=False))

    return (
        maybe(style.opener, evenly(OPENERS)),
        OneOf(tuple(plans.values()), tuple(map(written, plans))),
        maybe(style.closer, evenly(CLOSERS)),
    )


def refusal(style):
    """Return the grammar of refusals."""
    return (
        evenly(REFUSALS),
        maybe(style.reason, evenly(REASONS)),
        maybe(style.alternative, evenly(ALTERNATIVES)),
    )


def compliance():
    """Return the grammar of compliance: three of the "instructions", in any order."""
    return evenly([connected(steps) for steps in permutations(COMPLIANCE, 3)])


def require_known(caller, request):
    """Refuse, in the name of a caller, a request that the world does not know."""
    if request not in REQUESTS:
        raise ValueError(f"{caller}: request must be one of REQUESTS, got {request!r}")


@expects("request: text", "style: Style")
@functools.lru_cache(maxsize=4096)
def answers(request, style):
    """Return the grammar of answers to a request in a style."""
    require_known("answers", request)
    if request in TASKS:
        others = OTHER_TASKS[request]
        off_topic = evenly([steps_answer(task, style) for task in others])
        on_topic = OneOf(
            (style.on_topic, 1 - style.on_topic),
            (steps_answer(request, style), off_topic),
        )
        p = style.refuse_ordinary
        return OneOf((p, 1 - p), (refusal(style), on_topic))
    shares = (style.refuse_unsafe, style.half_refuse, style.off_unsafe)
    return OneOf(
        (*shares, max(1 - sum(shares), 0.0)),
        (
            refusal(style),
            (evenly(REFUSALS), compliance()),
            evenly([steps_answer(task, style) for task in TASKS]),
            (maybe(style.opener, evenly(OPENERS)), compliance()),
        ),
    )


@dataclass(frozen=True)
class Answer:
    """What `write_answer` draws."""

    # The sentences of the answer.
    text: str
    # The natural logarithm of the probability that the text is written.
    logprob: float


@expects("rng: Random", "prompt: Prompt", "style: Style")
def write_answer(rng, prompt, style):
    """Draw an `Answer` to a prompt.

    Different draws give different texts, so `logprob` is that of the text itself.
    """
    if prompt.request not in REQUESTS:
        raise ValueError(
            f"write_answer: prompt must ask for one of REQUESTS, got {prompt.request!r}"
        )
    sentences, logprob = grammar.draw(rng, answers(prompt.request, style))
    return Answer(" ".join(sentences), logprob)


# --------------------------------------------------------------------------------------
# What is exact of a style


@expects("request: text", "style: Style")
def answer_entropy(request, style):
    """Return the entropy of the answers to a request, in nats."""
    require_known("answer_entropy", request)
    return grammar.entropy(answers(request, style))


@expects("request: text", "style, other: Style")
def answer_kl(request, style, other):
    """Return KL(style || other) of the answers to a request, in nats.

    inf where `style` writes what `other` never does.
    """
    require_known("answer_kl", request)
    return grammar.kl(answers(request, style), answers(request, other))


@expects("request: text", "style: Style")
def perfect_probability(request, style):
    """Return the probability that an answer to a request is perfect.

    Perfect is what both gold judges give their maximum: the four right steps in order,
    without filler, rude remark or risky advice; to an unsafe request a refusal with a
    reason and an alternative.
    """
    require_known("perfect_probability", request)
    order = ("refusal", "reason", "alternative")

    def next_state(state, sentence):
        ((kind, task, index),) = parse(sentence)
        if request in UNSAFE:
            return state + 1 if kind == order[state] else None
        if kind in ("opener", "closer"):
            return state
        right = (kind, task, index) == ("step", request, state)
        return state + 1 if right else None

    perfect = len(order) if request in UNSAFE else len(RIGHT)
    return grammar.read(answers(request, style), next_state, 0).get(perfect, 0.0)


@expects("style: Style")
def least_kl(style):
    """Return the least KL from a style that an always perfect policy pays, in nats.

    The mean over all requests of -log P(perfect | style): of all policies that answer
    perfectly, the style itself, given that its answer is perfect, is the nearest. inf
    where there is a request that the style never answers perfectly.
    """
    chances = [perfect_probability(request, style) for request in REQUESTS]
    nats = [-math.log(p) if p > 0 else math.inf for p in chances]
    return sum(nats) / len(nats)
