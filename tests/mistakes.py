"""What tests of checks share: ways to make a mistake, and the tests themselves."""

import pytest

from minillama import (
    whiten,
)


def altered(function, change):
    """The function with its result changed."""
    return lambda *arguments, **named: change(function(*arguments, **named))


def row_means(x, mask):
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def mean_of_everything(x, mask):
    whiten.masked_mean(x, mask)
    return x.mean()


def both_tests(module, right, wrong):
    """The two tests of a file of checks: the package passes, each mistake is caught.

    right: check -> what the package has. wrong: (check, a mistake), three a check.
    """

    @pytest.mark.parametrize("name", right)
    def test_the_package_passes(name, capsys):
        getattr(module, name)(right[name])
        line = capsys.readouterr().out
        assert line.startswith(f"{name}: ") and line.endswith(" checks passed\n")
        assert line.count("\n") == 1

    ids = [f"{name}-{i}" for i, (name, _) in enumerate(wrong)]

    @pytest.mark.parametrize("name, mistake", wrong, ids=ids)
    def test_mistakes_are_caught(name, mistake):
        message = f"(?s){name}: .*expected .*got .*Hint: "
        with pytest.raises(AssertionError, match=message):
            getattr(module, name)(mistake)

    return test_the_package_passes, test_mistakes_are_caught
