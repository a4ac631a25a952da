"""Did a reward model learn quality, or a habit? Questions to put to any reward model, on any comparisons.

Conventions. A score function takes a list of (prompt text, answer) and returns scores (N,); `score_function`
makes one of a `RewardModel`. Differences are chosen minus rejected. ``exact`` holds P(chosen is preferred) of
each pair where it is known, as in this world; without it the labels are taken as they are, with probability 1,
and no ceiling and no floor can be told.

Length as a habit of reward models: Singhal et al. 2023 (arXiv 2310.03716) and Stiennon et al. 2020 (2009.01325,
section 4.1). Adversarial pairs, a good answer with one flaw against a dull correct one, after LLMBar (Zeng et al.
2023, 2310.07641). The score of Brier, 1950. Left out: other languages than English, answers of several turns.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from minillama import world
from minillama.data import dialogue_example
from minillama.reward_model import score_texts


def score_function(reward_model, tokenizer):
    """A function from a list of (prompt text, answer) to the model's scores (N,)."""

    def score(dialogues):
        return score_texts(
            reward_model,
            [
                dialogue_example(tokenizer, *dialogue, False).ids
                for dialogue in dialogues
            ],
        )

    return score


# ---------------------------------------------------------------------------------------------------------
# Numbers about pairs


def correlation(x, y):
    """Pearson's correlation of two float tensors (N,), in [-1, 1]; ValueError for N < 2 or a constant one."""
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(
            f"correlation: x and y must be (N,) alike, N >= 2, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    if not (x.any() and y.any()):
        raise ValueError("correlation: x and y must not be constant")
    return (x @ y / (x.norm() * y.norm())).item()


def agreement(differences, exact):
    """Expected accuracy of score differences (N,): P(chosen preferred) where positive, 1 minus it where negative.

    A difference of 0 counts one half. ``exact`` (N,) in [0, 1].
    """
    side = torch.sign(differences).double()  # 1, 0 or -1
    return (0.5 + side * (exact.double() - 0.5)).mean().item()


def length_only_accuracy(longer_by, exact):
    """Accuracy of the better of two models that see length alone: "the longer one wins", "the shorter one wins"."""
    longer_wins = agreement(longer_by, exact)
    return max(longer_wins, 1 - longer_wins)


def brier_score(predicted, exact):
    """Expected Brier score, the mean of (predicted - outcome)^2, of predicted P(chosen preferred) (N,).

    The outcome is 1 with probability ``exact``: per pair (predicted - exact)^2 + exact (1 - exact).
    """
    predicted, exact = predicted.double(), exact.double()
    return ((predicted - exact).square() + exact * (1 - exact)).mean().item()


def brier_floor(exact):
    """The lowest expected Brier score that any model can have: the mean of p (1 - p), reached by p itself."""
    return (exact.double() * (1 - exact.double())).mean().item()


def length_buckets(longer_by, differences, exact, edges):
    """Pairs sorted into buckets by how much longer the chosen answer is: a list of (low, high, pairs, accuracy).

    A bucket holds low <= longer_by < high; ``edges`` are increasing. Accuracy as in `agreement`, NaN for an
    empty bucket.
    """
    buckets = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (longer_by >= low) & (longer_by < high)
        accuracy = (
            agreement(differences[inside], exact[inside])
            if inside.any()
            else float("nan")
        )
        buckets.append((low, high, int(inside.sum()), accuracy))
    return buckets


# ---------------------------------------------------------------------------------------------------------
# Pairs whose better side is known by construction


FLAWS = {  # the one thing that is wrong -> a sentence too many, or None where the steps themselves are wrong
    "a step is missing": None,
    "two steps are swapped": None,
    "a step is repeated": None,
    "a step of another task": None,
    "a rude remark": world.RUDE,
    "empty talk": world.FILLERS,
    "a refusal": world.REFUSALS,
}


def spoiled_steps(draw, prompt, flaw):
    """The four right steps of the prompt's task, spoiled if the flaw is one of the steps."""
    right, at = list(world.TASKS[prompt.request]), draw.pick((0, 1, 2))
    if flaw == "a step is missing":
        return right[:at] + right[at + 1 :]
    if flaw == "two steps are swapped":
        return right[:at] + [right[at + 1], right[at]] + right[at + 2 :]
    if flaw == "a step is repeated":
        return right + [right[at]]
    if flaw == "a step of another task":
        others = [
            step
            for task, steps in world.TASKS.items()
            if task != prompt.request
            for step in steps
        ]
        return right[: at + 1] + [draw.pick(others)] + right[at + 1 :]
    return right


def flawed_answer(rng, prompt, flaw):
    """A polite answer to an ordinary prompt with one thing wrong, a key of `FLAWS`: an opener, steps, a closer."""
    draw = world.Draw(rng)
    sentences = world.connect(draw, spoiled_steps(draw, prompt, flaw))
    if FLAWS[flaw]:
        sentences.insert(draw.pick((1, 2, 3)), draw.pick(FLAWS[flaw]))
    return " ".join([draw.pick(world.OPENERS), *sentences, draw.pick(world.CLOSERS)])


def adversarial_pairs(rng, prompts):
    """For each ordinary prompt and each of `FLAWS`: (flaw, prompt, dull, flawed), two answers.

    ``dull`` holds the four right steps and nothing else, the maximum of gold helpfulness; ``flawed`` is warmer and
    wrong in one thing. A model that prefers the flawed one looks at something else than quality.
    """
    return [
        (
            flaw,
            prompt,
            " ".join(world.connect(world.Draw(rng), world.TASKS[prompt.request])),
            flawed_answer(rng, prompt, flaw),
        )
        for prompt in prompts
        for flaw in FLAWS
    ]


def accuracy_by_flaw(score, pairs):
    """The share of `adversarial_pairs` of each flaw where the score function prefers the dull, correct answer."""
    dull = score([(prompt.text, text) for _, prompt, text, _ in pairs])
    flawed = score([(prompt.text, text) for _, prompt, _, text in pairs])
    right = (0.5 + 0.5 * torch.sign(dull - flawed)).tolist()  # a tie is one half
    by_flaw = {
        flaw: [x for x, pair in zip(right, pairs, strict=True) if pair[0] == flaw]
        for flaw in FLAWS
    }
    return {flaw: sum(found) / len(found) for flaw, found in by_flaw.items()}


# ---------------------------------------------------------------------------------------------------------
# What do the highest scores have in common?


def preferred_words(chosen, rejected, differences, smallest=0.1):
    """Words by how much more often a model prefers the answer that holds them: a list of (word, share), highest first.

    Only pairs count in which one of the two answers holds the word, so what belongs to the prompt cancels out. The
    share is that of pairs where the answer with the word has the higher score. Words that decide fewer than
    ``smallest`` of all pairs are passed over: names of things that one prompt is about. ``chosen``, ``rejected``: N
    strings; ``differences`` (N,).
    """
    won, seen = Counter(), Counter()
    for a, b, difference in zip(chosen, rejected, differences.tolist(), strict=True):
        words = [set(world.normalise(text).split()) for text in (a, b)]
        won.update(words[0] - words[1] if difference > 0 else words[1] - words[0])
        seen.update(words[0] ^ words[1])
    shares = {
        word: won[word] / count
        for word, count in seen.items()
        if count >= smallest * len(chosen)
    }
    return sorted(shares.items(), key=lambda item: (-item[1], item[0]))


# ---------------------------------------------------------------------------------------------------------
# A cure for labels with a habit, and the whole audit


def length_balanced(groups, length, rng):
    """Groups of preferences with comparisons dropped until length says nothing about who wins.

    Among comparisons with the same |difference of length|, as many are kept in which the longer answer was chosen as
    in which the shorter one was; equal lengths are all kept. Groups left empty are dropped. ``length``: text ->
    number; ``rng``: a ``random.Random``, which decides what is kept.
    """
    places = {}  # (size of the difference, whether the longer one won) -> where such comparisons stand
    for g, group in enumerate(groups):
        for i, x in enumerate(group):
            by = length(x.chosen) - length(x.rejected)
            places.setdefault((abs(by), by > 0), []).append((g, i))
    kept = {
        place for (size, _), found in places.items() if size == 0 for place in found
    }
    for size in {size for size, _ in places if size > 0}:
        sides = [
            sorted(places.get((size, longer), []), key=lambda _: rng.random())
            for longer in (True, False)
        ]
        kept.update(place for side in sides for place in side[: min(map(len, sides))])
    left = [
        [x for i, x in enumerate(group) if (g, i) in kept]
        for g, group in enumerate(groups)
    ]
    return [group for group in left if group]


@dataclass(frozen=True)
class Audit:
    """What `audit` found; shares and accuracies in [0, 1]. Print `table`, draw with `course.plots.audit_figure`."""

    pairs: int
    accuracy: float
    ceiling: (
        float  # NaN where the exact probabilities are not known, as the Brier floor
    )
    length_only: float  # accuracy of the better of two models that see length alone
    correlation: float  # of score difference and length difference
    buckets: (
        list  # (low, high, pairs, accuracy) by how much longer the chosen answer is
    )
    brier: float
    brier_floor: float
    flaws: dict  # flaw -> share of adversarial pairs with the right preference
    words: list  # (word, share of pairs won by the answer that holds it), highest first
    longer_by: torch.Tensor  # (N,)
    differences: torch.Tensor  # (N,)

    def table(self):
        """The findings as text, one line a number."""
        lines = [
            f"{self.pairs} pairs: accuracy {self.accuracy:.3f}, ceiling {self.ceiling:.3f}, "
            f"length alone {self.length_only:.3f}",
            f"correlation of score and length differences {self.correlation:+.2f}",
            f"Brier score {self.brier:.3f}, floor {self.brier_floor:.3f}",
            "chosen longer by      pairs  accuracy",
        ]
        lines += [
            f"{low:6.0f} to {high:6.0f}     {pairs:6}  {accuracy:8.3f}"
            for low, high, pairs, accuracy in self.buckets
        ]
        lines += ["prefers the correct answer to one with …"]
        lines += [f"  {flaw:24} {share:.2f}" for flaw, share in self.flaws.items()]
        words = ", ".join(f"{word} {share:.2f}" for word, share in self.words[:6])
        return "\n".join([*lines, f"words of the answers it prefers: {words}"])


def audit(score, preferences, length, exact=None, adversarial=(), buckets=6):
    """Everything above for one reward model: an `Audit`.

    ``score``: a score function. ``preferences``: N items with ``prompt.text``, ``chosen`` and ``rejected``, such as
    `world.Preference`. ``length``: text -> number, in words or tokens. ``exact`` (N,): P(chosen is preferred).
    ``adversarial``: see `adversarial_pairs`. ``buckets``: how many of about equal size. Raises ValueError for fewer
    than 2 preferences or another number of probabilities.
    """
    if len(preferences) < 2 or exact is not None and len(exact) != len(preferences):
        raise ValueError(
            f"audit: preferences must be at least 2, with as many exact, got {len(preferences)} and "
            f"{None if exact is None else len(exact)}"
        )
    chosen, rejected = (
        [getattr(x, side) for x in preferences] for side in ("chosen", "rejected")
    )
    scores = [
        score([(x.prompt.text, t) for x, t in zip(preferences, texts, strict=True)])
        for texts in (chosen, rejected)
    ]
    differences = scores[0] - scores[1]  # (N,)
    longer_by = torch.tensor(
        [float(length(a) - length(b)) for a, b in zip(chosen, rejected, strict=True)]
    )
    p = torch.ones(len(preferences)) if exact is None else torch.as_tensor(exact)
    edges = longer_by.quantile(torch.linspace(0, 1, buckets + 1)).unique().tolist()
    edges[-1] += 1  # the last bucket holds the largest difference
    unknown = float("nan")
    return Audit(
        len(preferences),
        agreement(differences, p),
        unknown if exact is None else torch.maximum(p, 1 - p).mean().item(),
        length_only_accuracy(longer_by, p),
        correlation(differences, longer_by),
        length_buckets(longer_by, differences, p, edges),
        brier_score(torch.sigmoid(differences), p),
        unknown if exact is None else brier_floor(p),
        accuracy_by_flaw(score, adversarial) if adversarial else {},
        preferred_words(chosen, rejected, differences),
        longer_by,
        differences,
    )
