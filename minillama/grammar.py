"""Probabilistic grammars of sentences: one description, read in four ways.

A part of a text is one of three things:

    a string         this sentence
    a tuple          its parts, one after another; () is nothing
    a `OneOf`        one of its parts, each with its probability

`draw` writes a text and knows its log-probability. `entropy`, `kl` and `read` walk the
same description and are exact, in nats: nothing is sampled or enumerated. They hold for
*texts* where each text has one derivation, that is, where different choices never write
the same sentences; the grammars of writers.py see to it. Left out: recursion, so every
text is finite.

Source: the entropy of a branching process of independent parts is a sum over its parts
(Grenander 1967; Cover and Thomas, "Elements of Information Theory", section 2.5).
"""

import functools
import math
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

from minillama.contracts import expects


@expects("probabilities: list of number (N,)", "parts: list (N,)")
@dataclass(frozen=True, eq=False)
class OneOf:
    """One of several parts of a text, each with its probability."""

    # They add up to 1.
    probabilities: tuple
    # What is written.
    parts: tuple

    def __post_init__(self):
        if not all(p >= 0 for p in self.probabilities) or not math.isclose(
            sum(self.probabilities), 1, abs_tol=1e-9
        ):
            raise ValueError(
                "OneOf: probabilities must be at least 0 and add up to 1, got "
                f"{self.probabilities}"
            )

    @functools.cached_property
    def possible(self):
        """Return the indices of the parts that can be drawn."""
        return [i for i, p in enumerate(self.probabilities) if p > 0]

    @functools.cached_property
    def bounds(self):
        """Return the points that divide [0, 1) between the possible parts."""
        return list(accumulate(self.probabilities[i] for i in self.possible))[:-1]


@expects("parts: list (N,)")
def evenly(parts):
    """Return a `OneOf` of parts that are equally likely."""
    return OneOf((1 / len(parts),) * len(parts), tuple(parts))


@expects("p: number in [0, 1]")
def maybe(p, part):
    """Return a `OneOf`: the part with probability p, else nothing."""
    return OneOf((p, 1 - p), (part, ()))


@expects("rng: Random", "part: text or tuple or OneOf")
def draw(rng, part):
    """Draw a text: (its sentences, their log-probability in nats).

    `rng` is a `random.Random`, of which only `random()` is used.
    """
    sentences, logprob, ahead = [], 0.0, [part]
    while ahead:
        part = ahead.pop()
        if isinstance(part, str):
            sentences.append(part)
        elif isinstance(part, tuple):
            ahead += reversed(part)
        else:
            i = part.possible[bisect(part.bounds, rng.random())]
            logprob += math.log(part.probabilities[i])
            ahead.append(part.parts[i])
    return sentences, logprob


@expects("part: text or tuple or OneOf")
@functools.lru_cache(maxsize=1 << 16)
def entropy(part):
    """Return the entropy of what a part writes, in nats.

    H(one of) = sum of p * (H(its part) - log p); H(one after another) is a sum.
    """
    if isinstance(part, str):
        return 0.0
    if isinstance(part, tuple):
        return sum(entropy(x) for x in part)
    choices = zip(part.probabilities, part.parts, strict=True)
    return sum(p * (entropy(x) - math.log(p)) for p, x in choices if p > 0)


def outline(part):
    """Return a part's sentence, or its kind and how many parts it has, as words."""
    if isinstance(part, str):
        return repr(part)
    if isinstance(part, tuple):
        return f"a tuple of {len(part)}"
    return f"a OneOf of {len(part.parts)}"


@expects("part, other: text or tuple or OneOf")
@functools.lru_cache(maxsize=1 << 16)
def kl(part, other):
    """Return KL(part || other) in nats, of two grammars that differ in numbers alone.

    inf where the first writes what the second never does. ValueError where they differ
    in more than numbers.
    """
    if outline(part) != outline(other):
        raise ValueError(
            "kl: part and other must differ in probabilities alone, got "
            f"{outline(part)} and {outline(other)}"
        )
    if isinstance(part, str):
        return 0.0
    if isinstance(part, tuple):
        return sum(kl(x, y) for x, y in zip(part, other, strict=True))
    total = 0.0
    for p, q, x, y in zip(
        part.probabilities, other.probabilities, part.parts, other.parts, strict=True
    ):
        if p > 0:
            total += p * (math.log(p / q) + kl(x, y)) if q > 0 else math.inf
    return total


def read(part, step, start):
    """Return where a reader ends, as {state: probability}, sentence after sentence.

    `step(state, sentence)` returns the next state, or None to give up: a text that is
    given up is left out, and the probabilities add up to less than 1. It is asked once
    for each state in which the reader comes to a sentence.
    """

    @functools.cache  # one part is read from the same state in many contexts
    def ends_of(part, start):
        if isinstance(part, str):
            end = step(start, part)
            return {} if end is None else {end: 1.0}
        if isinstance(part, tuple):
            ends = {start: 1.0}
            for x in part:
                ends = _mixed((p, ends_of(x, state)) for state, p in ends.items())
            return ends
        choices = zip(part.probabilities, part.parts, strict=True)
        return _mixed((p, ends_of(x, start)) for p, x in choices if p > 0)

    return ends_of(part, start)


def _mixed(weighted):
    """The mixture of distributions, from pairs (weight, {state: probability})."""
    ends = {}
    for weight, states in weighted:
        for state, p in states.items():
            ends[state] = ends.get(state, 0.0) + weight * p
    return ends
