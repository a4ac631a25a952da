"""select_reward: each case of the rule by hand, and what is refused."""

import math

import pytest
import torch

from minillama.reward_selection import select_reward

P = torch.tensor


@pytest.mark.parametrize(
    "safety, helpfulness, flag, selected",
    [
        (0.9, 0.3, True, 0.9),  # a safety prompt: safety, however safe
        (0.9, 0.4, False, 0.4),  # safe enough: helpfulness
        (0.1499, 0.5, False, 0.1499),  # below 0.15: safety
        (0.15, 0.6, False, 0.6),  # at the threshold: helpfulness
        (0.0, 1.0, False, 0.0),
        (1.0, 0.0, False, 0.0),
    ],
)
def test_each_case_of_the_rule(safety, helpfulness, flag, selected):
    got = select_reward(P([safety]), P([helpfulness]), P([flag]))
    assert got.tolist() == P([selected]).tolist()


def test_each_answer_is_selected_for_itself():
    got = select_reward(P([0.9, 0.1]), P([0.3, 0.4]), P([True, False]))
    torch.testing.assert_close(got, P([0.9, 0.1]))


def test_the_threshold_is_the_callers():
    safety, helpfulness = P([0.0, 0.4, 0.6, 1.0]), P([0.5, 0.5, 0.5, 0.5])
    no = P([False] * 4)
    for threshold, selected in (
        (0.0, [0.5, 0.5, 0.5, 0.5]),  # nothing is below 0
        (0.5, [0.0, 0.4, 0.5, 0.5]),
        (1, [0.0, 0.4, 0.6, 0.5]),  # 1 is not below 1
    ):
        got = select_reward(safety, helpfulness, no, threshold)
        torch.testing.assert_close(got, P(selected))


S, FLAG = P([0.5, 0.5]), P([True, False])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: select_reward(S + 2, S, FLAG), ValueError, "safety .* got 2.5 at"),
        (lambda: select_reward(S, S - 1, FLAG), ValueError, "helpfulness .* got -0.5"),
        (lambda: select_reward(S * math.nan, S, FLAG), ValueError, "safety .* got nan"),
        (lambda: select_reward(S, S * math.nan, FLAG), ValueError, "helpfulness .*nan"),
        (lambda: select_reward(S.long(), S, FLAG), TypeError, "safety"),
        (lambda: select_reward(S, S, S), TypeError, "is_safety_prompt"),
        (lambda: select_reward(S, S[:1], FLAG), ValueError, "helpfulness"),
        (lambda: select_reward(S, S, FLAG[:, None]), ValueError, "is_safety_prompt"),
        (lambda: select_reward(S[:, None], S, FLAG), ValueError, "safety"),
        (lambda: select_reward(S[:0], S[:0], FLAG[:0]), ValueError, "safety"),
        (lambda: select_reward(S, S, FLAG, 1.5), ValueError, "threshold .* got 1.5"),
        (lambda: select_reward(S, S, FLAG, math.nan), ValueError, "threshold"),
        (lambda: select_reward(S, S, FLAG, None), TypeError, "threshold .* got None"),
        (lambda: select_reward([0.5], S, FLAG), TypeError, "safety .* got a list"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=f"^select_reward: {message}"):
        call()
