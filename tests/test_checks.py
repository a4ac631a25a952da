"""The checks as a whole: each has a test of its own, and all can be had by one name."""

import re
from importlib import import_module
from pkgutil import iter_modules

import pytest
import test_checks_cost
import test_checks_language
import test_checks_policy
import test_checks_real
import test_checks_reward

from minillama.course import checks, sync

TESTS = (
    test_checks_language,
    test_checks_reward,
    test_checks_policy,
    test_checks_cost,
    test_checks_real,
)
LESSONS = [x.name for x in iter_modules(checks.__path__) if x.name[:7] == "lesson_"]


def checks_of(name):
    """The checks that a lesson's file holds, by their names."""
    module = import_module(f"{checks.__name__}.{name}")
    return {
        name: value
        for name, value in vars(module).items()
        if hasattr(value, "__wrapped__") and value.__module__ == module.__name__
    }


def test_every_check_has_a_right_answer_and_three_wrong_ones():
    names = sorted(name for lesson in LESSONS for name in checks_of(lesson))
    assert len(LESSONS) > 25 and names == sorted(x for t in TESTS for x in t.RIGHT)
    for tests in TESTS:
        for name in tests.RIGHT:
            assert sum(name == of for of, _ in tests.WRONG) >= 3, name


def test_every_check_is_had_from_the_package():
    for lesson in LESSONS:
        for name, check in checks_of(lesson).items():
            assert getattr(checks, name) is check


def test_a_lessons_checks_stand_in_its_file():
    for path in sync.NOTEBOOKS.glob("[01][0-9]_*.ipynb"):
        asked = set(re.findall(r'"check\.(\w+)\(', path.read_text(encoding="utf-8")))
        file = f"lesson_{path.stem}"
        assert asked == (set(checks_of(file)) if file in LESSONS else set())


def test_a_failed_check_is_shown_in_a_few_lines():
    def doubled(values, mask=None, shift_mean=True):
        return 2 * values

    with pytest.raises(AssertionError) as failed:
        checks.whiten(doubled)
    lines = failed.value._render_traceback_()
    assert len(lines) == 4
    starts = ("whiten: ", "expected ", "got ", "Hint: ")
    assert all(line.startswith(x) for line, x in zip(lines, starts, strict=True))
    assert all(line in str(failed.value) for line in lines)
