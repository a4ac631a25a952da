"""What tests of checks share: ways to make a mistake, and the tests themselves."""

import pytest
import torch

from minillama import whiten
from minillama.course import checks


def altered(function, change):
    """The function with its result changed."""
    return lambda *arguments, **named: change(function(*arguments, **named))


def detached(function):
    """The function without the gradient of its result."""
    return altered(function, torch.Tensor.detach)


def in_float32(function):
    """The function with a result that is always float32."""
    return altered(function, torch.Tensor.float)


def rounded(function, decimals=2):
    """The function with its result rounded."""
    return altered(function, lambda x: x.round(decimals=decimals))


def limited(function, low, high):
    """The function with its result kept between two limits."""
    return altered(function, lambda x: x.clamp(low, high))


def of_the_first_row(function, count=1):
    """The function with the first of its first `count` arguments' rows for all."""

    def f(*arguments, **named):
        same = [x[:1].expand_as(x) for x in arguments[:count]]
        return function(*same, *arguments[count:], **named)

    return f


def by_default(function, name, place):
    """The function that does not hand on the argument `name`, or that at `place`."""

    def f(*arguments, **named):
        named.pop(name, None)
        return function(*arguments[:place], *arguments[place + 1 :], **named)

    return f


def overwriting(function, place=0):
    """The function that writes zeros into one of its arguments."""

    def f(*arguments, **named):
        result = function(*arguments, **named)
        with torch.no_grad():
            arguments[place].zero_()
        return result

    return f


def seeding(function):
    """The function that seeds the random numbers that everybody draws from."""

    def f(*arguments, **named):
        torch.manual_seed(0)
        return function(*arguments, **named)

    return f


def switching(function, place=0):
    """The function that turns the mode of a model that it is given."""

    def f(*arguments, **named):
        arguments[place].train(not arguments[place].training)
        return function(*arguments, **named)

    return f


def row_means(x, mask):
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def mean_of_everything(x, mask):
    whiten.masked_mean(x, mask)
    return x.mean()


def both_tests(right, wrong):
    """The two tests of a file of checks: the package passes, each mistake is caught.

    right: check -> what the package has. wrong: (check, a mistake), three a check.
    """

    @pytest.mark.parametrize("name", right)
    def test_the_package_passes(name, capsys):
        getattr(checks, name)(right[name])
        line = capsys.readouterr().out
        assert line.startswith(f"{name}: ") and line.endswith(" checks passed\n")
        assert line.count("\n") == 1

    ids = [f"{name}-{i}" for i, (name, _) in enumerate(wrong)]

    @pytest.mark.parametrize("name, mistake", wrong, ids=ids)
    def test_mistakes_are_caught(name, mistake):
        message = f"(?s){name}: .*expected .*got .*Hint: "
        with pytest.raises(AssertionError, match=message):
            getattr(checks, name)(mistake)

    return test_the_package_passes, test_mistakes_are_caught
