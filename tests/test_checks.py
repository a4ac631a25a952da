"""The checks as a whole: each has a test of its own, and all can be had by one name."""

import pytest
import test_checks_cost
import test_checks_language
import test_checks_policy
import test_checks_real
import test_checks_reward

from minillama.course import checks
from minillama.course.checks import cost, language, policy, real, reward

FILES = {
    language: test_checks_language,
    reward: test_checks_reward,
    policy: test_checks_policy,
    cost: test_checks_cost,
    real: test_checks_real,
}


def checks_of(module):
    return {
        name
        for name, value in vars(module).items()
        if hasattr(value, "__wrapped__") and value.__module__ == module.__name__
    }


def test_every_check_has_a_right_answer_and_three_wrong_ones():
    for module, tests in FILES.items():
        assert checks_of(module) == set(tests.RIGHT)
        for name in tests.RIGHT:
            assert sum(name == of for of, _ in tests.WRONG) >= 3, name


def test_every_check_is_had_from_the_package():
    for module in FILES:
        for name in checks_of(module):
            assert getattr(checks, name) is getattr(module, name)


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
