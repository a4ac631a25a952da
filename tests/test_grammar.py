"""Grammars small enough to write down: four readings, and every text as a witness."""

import math
import random
from collections import Counter

import pytest
from derivations import derivations, nodes, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama.grammar import OneOf, draw, entropy, evenly, kl, maybe, read

# A. with 1/4; else B., and after it C. or nothing, each with 1/2:
# P(A.) = 1/4, P(B. C.) = P(B.) = 3/8.
TAIL = maybe(0.5, "C.")
SMALL = OneOf((0.25, 0.75), ("A.", ("B.", TAIL)))
# The same texts with 1/2, 1/2 * 1/4 and 1/2 * 3/4.
OTHER = OneOf((0.5, 0.5), ("A.", ("B.", maybe(0.25, "C."))))


class Random:
    """Numbers from a list; nothing but `random`, so no other method can be used."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


# ------------------------------------------------------------------------------ writing


@pytest.mark.parametrize(
    "numbers, sentences, probability",
    [
        ((0.0,), ["A."], 0.25),
        ((0.249,), ["A."], 0.25),
        # A number on a bound belongs to the part above it: [0, 1/4) and [1/4, 1).
        ((0.25, 0.499), ["B.", "C."], 0.75 * 0.5),
        ((0.999, 0.5), ["B."], 0.75 * 0.5),
    ],
)
def test_a_draw_by_hand(numbers, sentences, probability):
    rng = Random(*numbers)
    written, logprob = draw(rng, SMALL)
    assert written == sentences and rng.numbers == []
    assert logprob == pytest.approx(math.log(probability), abs=1e-12)


def test_parts_are_written_from_left_to_right():
    """The draws, too: the first number decides what stands first."""
    part = ("A.", evenly(["B.", ("C.", evenly(["D.", "E."]))]), (), (("F.",), "G."))
    # 0.9: C., then of D. and E. 0.1 takes D.
    written, logprob = draw(Random(0.9, 0.1), part)
    assert written == ["A.", "C.", "D.", "F.", "G."]
    assert logprob == pytest.approx(-2 * math.log(2))
    assert draw(Random(), "A.") == (["A."], 0.0) and draw(Random(), ()) == ([], 0.0)


def test_what_has_probability_0_is_never_drawn():
    part = OneOf((0.0, 0.5, 0.0, 0.5, 0.0), tuple("ABCDE"))
    for number, letter in ((0.0, "B"), (0.4999, "B"), (0.5, "D"), (0.9999999, "D")):
        written, logprob = draw(Random(number), part)
        assert written == [letter] and logprob == pytest.approx(math.log(0.5))
    # Numbers that fall short of 1 by rounding leave no gap at the top.
    short = OneOf((0.5, 0.5 - 1e-10, 0.0), ("A", "B", "C"))
    assert draw(Random(1 - 1e-16), short)[0] == ["B"]
    # A choice with one way out takes a number all the same.
    rng = Random(0.3)
    assert draw(rng, evenly(["A"])) == (["A"], 0.0) and rng.numbers == []


def test_texts_come_as_often_as_they_say():
    """20,000 draws, within 4 standard errors of 1/4, 3/8 and 3/8."""
    rng, n = random.Random(0), 20_000
    drawn = [draw(rng, SMALL) for _ in range(n)]
    counts = Counter(tuple(sentences) for sentences, _ in drawn)
    assert counts.keys() == texts(SMALL).keys()
    for text, p in texts(SMALL).items():
        assert abs(counts[text] - n * p) < 4 * math.sqrt(n * p * (1 - p))
    for sentences, logprob in drawn[:100]:
        assert math.exp(logprob) == pytest.approx(texts(SMALL)[tuple(sentences)])


def test_the_short_names():
    thirds = evenly(["A", "B", ("C", "D")])
    assert thirds.parts == ("A", "B", ("C", "D"))
    assert thirds.probabilities == (1 / 3, 1 / 3, 1 / 3)
    assert maybe(0.2, "A").parts == ("A", ())
    assert maybe(0.2, "A").probabilities == (0.2, 0.8)
    assert maybe(1, "A").possible == [0] and maybe(0, "A").possible == [1]
    assert maybe(1, "A").bounds == [] and thirds.bounds == [1 / 3, 2 / 3]


# --------------------------------------------------------------------- exact, by hand


def test_entropy_by_hand():
    # H(1/4, 3/4) + 3/4 ln 2 = 1/4 ln 4 + 3/4 ln 4/3 + 3/4 ln 2
    # = 0.346574 + 0.215762 + 0.519860
    assert entropy(SMALL) == pytest.approx(1.082196, abs=1e-6)
    assert entropy("A.") == entropy(()) == entropy(("A.", "B.")) == 0.0
    assert entropy(evenly(list("ABCDE"))) == pytest.approx(math.log(5))
    # One after another adds up: 3 coins have 3 ln 2.
    assert entropy((TAIL, "A.", (TAIL, TAIL))) == pytest.approx(3 * math.log(2))
    # What is certain has none, and 0 log 0 is 0.
    assert entropy(OneOf((0.0, 1.0), (SMALL, "A."))) == 0.0
    assert entropy(OneOf((1.0, 0.0), (SMALL, "A."))) == pytest.approx(
        1.082196, abs=1e-6
    )


def test_kl_by_hand():
    # 1/4 ln (1/4 / 1/2) + 3/4 ln (3/4 / 1/2) = -0.173287 + 0.304099 = 0.130812, and
    # 3/4 of 1/2 ln (1/2 / 1/4) + 1/2 ln (1/2 / 3/4) = 0.346574 - 0.202733 = 0.143841
    assert kl(SMALL, OTHER) == pytest.approx(0.130812 + 0.75 * 0.143841, abs=1e-6)
    # The other way: 1/2 ln 2 + 1/2 ln 2/3 = 0.143841, and 1/2 of
    # 1/4 ln 1/2 + 3/4 ln 3/2 = 0.130812
    assert kl(OTHER, SMALL) == pytest.approx(0.143841 + 0.5 * 0.130812, abs=1e-6)
    assert kl(SMALL, SMALL) == kl(OTHER, OTHER) == kl("A.", "A.") == kl((), ()) == 0.0
    # One after another adds up.
    one, two = maybe(0.5, "A."), maybe(0.25, "A.")
    assert kl((one, "B.", one), (two, "B.", two)) == pytest.approx(
        2 * 0.143841, abs=1e-6
    )


def test_kl_is_infinite_only_where_the_first_writes_what_the_second_never_does():
    never, always = OneOf((0.0, 1.0), ("A.", "B.")), OneOf((1.0, 0.0), ("A.", "B."))
    half = evenly(["A.", "B."])
    # Sure of one of two that are equally likely: ln 2.
    assert kl(never, half) == kl(always, half) == pytest.approx(math.log(2))
    assert kl(half, never) == kl(half, always) == kl(never, always) == math.inf
    assert kl(never, never) == 0.0
    # What the first never does costs nothing, also where it would be infinite inside.
    outer = OneOf((0.0, 1.0), (half, "C."))
    assert kl(outer, OneOf((0.5, 0.5), (never, "C."))) == pytest.approx(math.log(2))
    assert kl(("A.", half), ("A.", never)) == math.inf
    assert kl(evenly([half, "C."]), evenly([never, "C."])) == math.inf


def test_where_a_reader_ends_by_hand():
    def count(state, sentence):
        return state + 1

    # A. and B. are one sentence, B. C. are two.
    assert read(SMALL, count, 0) == {1: pytest.approx(0.625), 2: pytest.approx(0.375)}
    assert read((SMALL, "D.", SMALL), count, 5) == {
        8: pytest.approx(0.625**2),
        9: pytest.approx(2 * 0.625 * 0.375),
        10: pytest.approx(0.375**2),
    }
    assert read((), count, 7) == {7: 1.0} and read("A.", count, 7) == {8: 1.0}

    def no_b(state, sentence):
        return None if sentence == "B." else (*state, sentence)

    # 3/4 gives up at B., and is never asked about C.
    assert read(SMALL, no_b, ()) == {("A.",): 0.25}
    assert read("B.", no_b, ()) == {} and read(("A.", "B.", "C."), no_b, ()) == {}
    # The reader is told the sentences in their order.
    part = ("A.", evenly(["C.", "D."]), "E.")
    assert read(part, no_b, ()) == {("A.", "C.", "E."): 0.5, ("A.", "D.", "E."): 0.5}
    # A falsy state is a state; only None gives up.
    assert read("A.", lambda state, sentence: 0, 1) == {0: 1.0}

    def never_asked(state, sentence):
        raise AssertionError(sentence)

    assert read(OneOf((0.0, 1.0), ("A.", ())), never_asked, 0) == {0: 1.0}


# ------------------------------------------------ exact, by writing every text (oracle)

WEIGHTS = st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any)


@st.composite
def grammars(draw_from, depth=3):
    """Two grammars that differ in numbers alone, each text with one derivation.

    Every sentence is another one, and what can be chosen begins with one of its own.
    """
    fresh = iter(range(10_000))

    def pair(depth):
        kind = draw_from(st.integers(0, 2)) if depth else 0
        if kind == 0:
            return (f"{next(fresh)}.",) * 2
        if kind == 1:
            pairs = [pair(depth - 1) for _ in range(draw_from(st.integers(0, 2)))]
            return tuple(x for x, _ in pairs), tuple(y for _, y in pairs)
        first = draw_from(WEIGHTS)
        second = draw_from(st.permutations(first))
        pairs = []
        for _ in first:
            x, y = pair(depth - 1)
            name = f"{next(fresh)}."
            pairs.append(((name, x), (name, y)))
        total = sum(first)
        return (
            OneOf(tuple(w / total for w in first), tuple(x for x, _ in pairs)),
            OneOf(tuple(w / total for w in second), tuple(y for _, y in pairs)),
        )

    return pair(depth)


@settings(max_examples=150, deadline=None)
@given(grammars())
def test_every_reading_agrees_with_the_list_of_all_texts(pair):
    part, other = pair
    written, told = texts(part), texts(other)
    assert len(written) == len(derivations(part))
    assert sum(written.values()) == pytest.approx(1)
    expected = sum(-p * math.log(p) for p in written.values())
    assert entropy(part) == pytest.approx(expected, abs=1e-9)
    nats = sum(
        p * math.log(p / told[text]) if text in told else math.inf
        for text, p in written.items()
    )
    assert kl(part, other) == pytest.approx(nats, abs=1e-9)
    assert kl(part, other) > -1e-12
    ends = read(part, lambda state, sentence: (*state, sentence), ())
    assert ends == {text: pytest.approx(p) for text, p in written.items()}
    sentences, logprob = draw(random.Random(0), part)
    assert math.exp(logprob) == pytest.approx(written[tuple(sentences)])


def test_the_oracle_by_hand():
    assert texts(SMALL) == {("A.",): 0.25, ("B.", "C."): 0.375, ("B.",): 0.375}
    twice = evenly(["A.", ("A.",), "B."])
    assert len(derivations(twice)) == 3
    assert texts(twice) == {
        ("A.",): pytest.approx(2 / 3),
        ("B.",): pytest.approx(1 / 3),
    }
    assert texts(OneOf((0.0, 1.0), ("A.", "B."))) == {("B.",): 1.0}
    assert nodes((SMALL, SMALL, "A.")) == [SMALL, TAIL]


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "probabilities, parts, kind, words",
    [
        ((0.5, 0.4), ("A", "B"), ValueError, "add up to 1, got (0.5, 0.4)"),
        ((0.5, 0.6), ("A", "B"), ValueError, "add up to 1, got (0.5, 0.6)"),
        ((1.5, -0.5), ("A", "B"), ValueError, "add up to 1, got (1.5, -0.5)"),
        ((0.5, math.nan), ("A", "B"), ValueError, "add up to 1, got (0.5, nan)"),
        ((0.5, 0.5 + 2e-9), ("A", "B"), ValueError, "add up to 1, got (0.5, 0.5000"),
        ((1.0,), ("A", "B"), ValueError, "parts must be a list (N,), got 2 entries"),
        ((), (), ValueError, "probabilities must be a list of number (N,), got 0"),
        (("1",), ("A",), TypeError, "probabilities must be a list of number (N,)"),
        ((1.0,), "A", TypeError, "parts must be a list (N,), got 'A'"),
    ],
)
def test_a_choice_that_is_none_is_refused(probabilities, parts, kind, words):
    with pytest.raises(kind) as caught:
        OneOf(probabilities, parts)
    assert str(caught.value).startswith("OneOf: ") and words in str(caught.value)


def test_rounding_is_forgiven():
    assert OneOf((0.1,) * 10, tuple("ABCDEFGHIJ")).possible == list(range(10))
    assert OneOf((0.5, 0.5 + 5e-10), ("A", "B")).possible == [0, 1]
    assert OneOf((0, 1), ("A", "B")).possible == [1]


@pytest.mark.parametrize(
    "part, other, got",
    [
        ("A.", "B.", "'A.' and 'B.'"),
        ("A.", ("A.",), "'A.' and a tuple of 1"),
        (("A.",), ("A.", "B."), "a tuple of 1 and a tuple of 2"),
        (TAIL, ("C.", ()), "a OneOf of 2 and a tuple of 2"),
        (TAIL, evenly(["C.", (), "D."]), "a OneOf of 2 and a OneOf of 3"),
    ],
)
def test_kl_compares_numbers_alone(part, other, got):
    for x, y in ((part, other), (("X.", part), ("X.", other))):
        with pytest.raises(ValueError) as caught:
            kl(x, y)
        assert str(caught.value) == (
            f"kl: part and other must differ in probabilities alone, got {got}"
        )


def test_a_grammar_is_told_apart_by_what_it_is_not_by_its_text():
    """Results are remembered; two choices with equal numbers stay two choices."""
    assert evenly(["A."]) != evenly(["A."])
    assert entropy(maybe(0.5, "A.")) == entropy(maybe(0.5, "A.")) == math.log(2)
