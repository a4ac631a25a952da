"""One check per taught definition: `check.whiten(whiten)` tries hand-computed cases and properties on it.

A check is a generator of cases (claim, what came, what was expected, hint), each worked out by hand, from a
definition by a slower route, or from a property; none calls the package's own version of what it checks.
It prints one line if all cases hold, and raises AssertionError at the first that does not. What an
implementation raises by itself (NotImplementedError, for one) passes through.
Left out: points and grades, and any check of speed.
"""

import functools
import math

import torch
import torch.nn.functional as F

from minillama.data import PairExample
from minillama.model import Llama, LlamaConfig
from minillama.reward_model import RewardModel

TOLERANCE = 1e-4


def _check(cases):
    """Makes `check(implementation)` of a generator function over cases (claim, got, expected, hint)."""
    @functools.wraps(cases)
    def check(implementation):
        passed = 0
        for claim, got, expected, hint in cases(implementation):
            if not _same(got, expected):
                raise AssertionError(f"{cases.__name__}: {claim}: expected {_show(expected)}, got {_show(got)}. "
                                     f"Hint: {hint}.")
            passed += 1
        print(f"{cases.__name__}: {passed} checks passed")
    return check


def _same(got, expected):
    """Equality, for tensors of shape and, within TOLERANCE, of values."""
    if not isinstance(expected, torch.Tensor):
        return got == expected
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        return False
    return torch.allclose(got.detach().double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE)


def _show(value):
    """What a learner reads: numbers to four decimals, names of error types."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().round(decimals=4).tolist()
    return value.__name__ if isinstance(value, type) else value


def _error(call):
    """The type of the error that `call` raises, or "no error"; an unwritten exercise stays one."""
    try:
        call()
    except NotImplementedError:
        raise
    except Exception as error:
        return type(error)
    return "no error"


def _row(*values):
    """One float tensor (1, T)."""
    return torch.tensor([values], dtype=torch.float32)


def _gradient(call, at):
    """Gradient of the sum of `call(at)` with respect to `at`, zeros where none arrives."""
    at = at.clone().requires_grad_()
    result = call(at).sum()
    if not result.requires_grad:
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(result, at, allow_unused=True)
    return torch.zeros_like(at) if gradient is None else gradient


# ------------------------------------------------------------------------------- whiten.py

@_check
def masked_mean(f):
    """Checks `masked_mean(values, mask)`."""
    values = torch.tensor([[1.0, 2.0, 3.0], [9.0, 50.0, 70.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    yield ("all entries count alike", f(values, mask), torch.tensor(3.75),         # (1 + 2 + 3 + 9) / 4
           "divide the sum of what counts by how many count; a mean of the two row means is 5.5")
    values[1, 2] = math.nan
    yield ("what does not count may be NaN", f(values, mask), torch.tensor(3.75), "0 * NaN is NaN; index with the mask")
    yield ("the gradient is 1/n where it counts", _gradient(lambda v: f(v, mask), values),
           torch.tensor([[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]), "masked entries must not reach the result")
    yield ("a mask without a True entry is refused", _error(lambda: f(values, torch.zeros_like(mask))), ValueError,
           "the mean of nothing is 0/0")
    yield ("a mask of floats is refused", _error(lambda: f(values, mask.float())), TypeError, "compare mask.dtype")


@_check
def logit(f):
    """Checks `logit(p, eps)`."""
    yield ("by hand, ln(p / (1 - p))", f(torch.tensor([0.9, 0.5, 0.01])), torch.tensor([2.1972, 0.0, -4.5951]),
           "ln 9, ln 1, ln(1/99)")
    scores = torch.linspace(-5, 5, 11)
    yield ("it undoes a sigmoid", f(torch.sigmoid(scores)), scores, "solve p = 1 / (1 + exp(-x)) for x")
    yield ("0 and 1 stay finite", f(torch.tensor([0.0, 1.0])), torch.tensor([-13.8155, 13.8155]),
           "clamp p to [eps, 1 - eps] with eps = 1e-6")
    yield ("eps can be changed", f(torch.tensor([0.0, 1.0]), eps=0.1), torch.tensor([-2.1972, 2.1972]),
           "clamp with the eps that was given")
    yield ("half precision stays finite", f(torch.ones(1, dtype=torch.float16)).isfinite().all().item(), True,
           "1 - 1e-6 is 1 in float16; clamp in float64")
    yield ("the dtype is kept", f(torch.tensor([0.5], dtype=torch.bfloat16)).dtype, torch.bfloat16,
           "convert back at the end")
    yield ("1.5 is no probability", _error(lambda: f(torch.tensor([0.5, 1.5]))), ValueError,
           "refuse a value outside [0, 1], a linear score for example, before clamping hides it")


@_check
def whiten(f):
    """Checks `whiten(values, mask, shift_mean)`."""
    hand = torch.tensor([-1.1619, -0.3873, 0.3873, 1.1619])           # (1, 2, 3, 4) - 2.5, over sqrt(5 / 3)
    four = torch.tensor([1.0, 2.0, 3.0, 4.0])
    yield ("(1, 2, 3, 4) by hand", f(four), hand, "the variance is unbiased, 5/3: divide by n - 1")
    yield ("one mean for all entries", f(four.view(2, 2)), hand.view(2, 2), "not a mean per row or per column")
    yield ("shift_mean=False adds the mean back", f(four, shift_mean=False), hand + 2.5, "the mean is 2.5")
    padded, mask = torch.tensor([99.0, 1.0, 2.0, 3.0, 4.0, -7.0]), torch.tensor([False] + 4 * [True] + [False])
    yield ("padding does not count and becomes 0", f(padded, mask), F.pad(hand, (1, 1)),
           "take mean and variance of the unmasked entries, and leave 0 elsewhere")
    yield ("equal values become 0", f(torch.full((3,), 5.0)), torch.zeros(3), "rsqrt(var + 1e-8) keeps 0 * finite")
    yield ("scale and offset of the input disappear", f(1000 + 50 * four), hand, "subtract the mean, then divide")
    yield ("one value is refused", _error(lambda: f(torch.tensor([3.0]))), ValueError,
           "one value has no variance; n - 1 is 0")


# -------------------------------------------------------------------- reward_selection.py

@_check
def select_reward(f):
    """Checks `select_reward(safety, helpfulness, is_safety_prompt, threshold)`."""
    def one(safety, helpfulness, flag, **threshold):
        return f(torch.tensor([safety]), torch.tensor([helpfulness]), torch.tensor([flag]), **threshold)
    yield ("a safe answer to an ordinary prompt", one(0.9, 0.3, False), torch.tensor([0.3]), "helpfulness decides")
    yield ("a safe answer to a safety prompt", one(0.9, 0.3, True), torch.tensor([0.9]), "safety decides")
    yield ("an unsafe answer to an ordinary prompt", one(0.1, 0.8, False), torch.tensor([0.1]),
           "below the threshold safety decides")
    yield ("safety exactly at the threshold", one(0.15, 0.8, False), torch.tensor([0.8]), "strictly below, not at")
    yield ("another threshold", one(0.4, 0.8, False, threshold=0.5), torch.tensor([0.4]), "use the argument")
    batch = f(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([0.3, 0.4, 0.8]), torch.tensor([False, True, False]))
    yield ("each row by itself", batch, torch.tensor([0.3, 0.9, 0.1]), "choose per row, as torch.where does")
    yield ("linear scores are refused", _error(lambda: one(-1.7, 0.5, False)), ValueError,
           "0.15 is a probability; apply the sigmoid first")


# ---------------------------------------------------------------------------------- kl.py

def _three_tokens():
    """Policy (.1, .2, .7) and reference (.5, .3, .2) over three tokens, as logprobs (1, 3)."""
    return _row(0.1, 0.2, 0.7).log(), _row(0.5, 0.3, 0.2).log()


@_check
def exact_kl(f):
    """Checks `exact_kl(logits, ref_logits)`."""
    policy, reference = (logprobs[None] for logprobs in _three_tokens())           # (1, 1, 3)
    hand = torch.tensor([[0.634897]])              # .1 ln(.1/.5) + .2 ln(.2/.3) + .7 ln(.7/.2)
    yield ("(.1, .2, .7) against (.5, .3, .2)", f(policy, reference), hand, "KL(policy || reference) weighs by the policy")
    yield ("equal distributions", f(policy, policy), torch.zeros(1, 1), "every logratio is 0")
    yield ("logits need not be normalised", f(policy + 3, reference - 2), hand, "log_softmax over the vocabulary")
    yield ("per position", f(torch.cat((policy, reference), 1), torch.cat((reference, policy), 1)),
           torch.tensor([[0.634897, 0.675806]]), "sum over the vocabulary only, (B, T, V) -> (B, T)")
    excluded = torch.tensor([[[0.0, 0.0, -math.inf]]])
    yield ("0 * log 0 is 0", f(excluded, torch.zeros(1, 1, 3)), torch.tensor([[math.log(1.5)]]),
           "set the logratio to 0 where the policy has probability 0")
    yield ("different shapes are refused", _error(lambda: f(policy, reference[0, :, :1])), ValueError,
           "broadcasting would hide a mistake")


@_check
def kl_estimate(f):
    """Checks `kl_estimate(logprobs, ref_logprobs, kind)`."""
    policy, reference = _row(0.5).log(), _row(0.25).log()              # logratio = ln 2
    yield ("k1 is the default: ln(.5 / .25)", f(policy, reference), _row(0.693147), "log pi - log pi_ref, in this order")
    yield ("k2: (ln 2)^2 / 2", f(policy, reference, "k2"), _row(0.240227), "half the squared logratio")
    yield ("k3: 1/2 - 1 + ln 2", f(policy, reference, "k3"), _row(0.193147), "exp(-logratio) - 1 + logratio")
    policy, reference = _three_tokens()
    means = torch.stack([(policy.exp() * f(policy, reference, kind)).sum() for kind in ("k1", "k2", "k3")])
    yield ("mean over the policy's tokens", means, torch.tensor([0.634897, 0.695250, 0.634897]),
           "k1 and k3 are unbiased for KL(policy || reference) = 0.6349, k2 is not")
    yield ("k3 is never negative", (f(policy, reference, "k3") >= 0).all().item(), True, "its minimum is 0 at logratio 0")
    slope = torch.stack([_gradient(lambda x, k=kind: f(x, torch.zeros(1, 1), k), _row(-0.5)) for kind in ("k1", "k2", "k3")])
    yield ("slopes at logratio -0.5", slope, torch.tensor([1.0, -0.5, 1 - math.exp(0.5)]).view(3, 1, 1),
           "gradients must flow through logprobs; lesson 15 compares them")
    yield ("different shapes are refused", _error(lambda: f(torch.zeros(2, 2), torch.zeros(2, 1))), ValueError,
           "(B, 1) would broadcast")
    yield ("an unknown kind is refused", _error(lambda: f(policy, reference, "k4")), ValueError, "name the three kinds")


@_check
def kl_penalised_rewards(f):
    """Checks `kl_penalised_rewards(scores, logprobs, ref_logprobs, response_mask, beta)`."""
    scores = torch.tensor([2.0, -1.0])
    logprobs = torch.tensor([[9.0, -1.0, -2.0, 7.0], [9.0, 8.0, -0.5, -3.0]])
    ref_logprobs = torch.tensor([[5.0, -1.5, -1.0, 3.0], [5.0, 5.0, -1.5, -1.0]])
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    hand = torch.tensor([[0.0, -0.05, 2.1, 0.0], [0.0, 0.0, -0.1, -0.8]])          # beta * .5, -1; 1, -2
    rewards = f(scores, logprobs, ref_logprobs, mask, 0.1)
    yield ("two rows by hand", rewards, hand, "-beta * (logprobs - ref_logprobs), the score once on the last response token")
    yield ("a row sums to score - beta * sum(k1)", rewards.sum(1), torch.tensor([2.05, -0.9]),
           "the score counts once, whatever the length")
    yield ("beta = 0 leaves the score alone", f(scores, logprobs, ref_logprobs, mask, 0.0),
           torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, -1.0]]), "the last True of each row, not the last column")
    garbage = torch.where(mask, logprobs, math.nan)
    yield ("nothing off the response counts", f(scores, garbage, ref_logprobs, mask, 0.1), hand,
           "0 * NaN is NaN; choose with torch.where")
    leaf = logprobs.clone().requires_grad_()
    yield ("a reward is data", f(scores, leaf, ref_logprobs, mask, 0.1).requires_grad, False, "detach the result")
    mask[0] = False
    yield ("a row without response token is refused", _error(lambda: f(scores, logprobs, ref_logprobs, mask, 0.1)),
           ValueError, "its score has no place to go")


# --------------------------------------------------------------------------------- gae.py

@_check
def gae(f):
    """Checks `gae(rewards, values, response_mask, gamma, lam)`."""
    last, full = _row(0, 0, 0, 1), torch.ones(1, 4, dtype=torch.bool)
    advantages, returns = f(last, last, full, gamma=0.9, lam=0.95)
    yield ("advantages by hand", advantages, _row(0.657923, 0.7695, 0.9, 0.0),     # .855^2 * .9, .855 * .9, .9
           "start at the last token, where the next value and the next advantage are 0")
    yield ("returns by hand", returns, _row(0.657923, 0.7695, 0.9, 1.0), "advantages + values")
    rewards, values = _row(1, -2, 0.5, 3), _row(0.3, 0.7, -0.2, 0.4)
    yield ("lam = 0 looks one step ahead", f(rewards, values, full, gamma=0.5, lam=0.0)[0], _row(1.05, -2.8, 0.9, 2.6),
           "rewards[t] + gamma * values[t + 1] - values[t]")
    yield ("lam = 1 forgets the values: Monte-Carlo returns", f(rewards, values, full, gamma=0.5, lam=1.0)[1],
           _row(0.5, -1.0, 2.0, 3.0), "sum of gamma^k * rewards[t + k]")
    mask = torch.tensor([[False, True, True, True, True, False], [False, False, False, True, True, True]])
    padded = [torch.full((2, 6), 50.0).masked_scatter(mask, torch.cat((row[0], row[0, 1:]))) for row in (rewards, values)]
    got = torch.stack(f(*padded, mask, gamma=0.9, lam=0.8))                         # (2, B, T)
    alone = [torch.stack(f(rewards[:, k:], values[:, k:], full[:, k:], gamma=0.9, lam=0.8)) for k in (0, 1)]
    yield ("padding changes nothing and holds 0", got,
           torch.cat((F.pad(alone[0], (1, 1)), F.pad(alone[1], (3, 0))), dim=1),
           "zero rewards and values off the response before the loop, and the advantages after it")
    leaf = values.clone().requires_grad_()
    yield ("both come detached", [x.requires_grad for x in f(rewards, leaf, full)], [False, False],
           "a policy loss must not train the value model")
    yield ("a row without response token is refused", _error(lambda: f(rewards, values, ~full)), ValueError,
           "look at response_mask before the loop")


@_check
def value_model(f):
    """Checks `ValueModel(reward_model)`, the class."""
    reward_model, ids = RewardModel(_tiny_llama(), generator=torch.Generator().manual_seed(1)), torch.tensor([[3, 1, 4, 1, 5]])
    model = f(reward_model)
    yield ("a new value model gives 0 everywhere", model(ids), torch.zeros(1, 5), "start the head at zero")
    with torch.no_grad():
        model.value.weight.copy_(reward_model.score.weight)
        alone = model(ids)                                                         # (1, 5)
        prefixes = torch.stack([reward_model(ids[:, :t]) for t in range(1, 5)], dim=1)     # (1, 4)
        padded_ids = torch.tensor([[0, 0, 3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 0, 0]])
        padded_mask = torch.tensor([[False] * 2 + [True] * 5, [True] * 5 + [False] * 2])
        padded = model(padded_ids, padded_mask)                                    # (2, 7)
    yield ("entry 0 has nothing before it", alone[:, 0], torch.zeros(1), "shift by one, filling with 0")
    yield ("entry t is the score of the text before token t", alone[:, 1:], prefixes,
           "start from the reward model's body; position t - 1 has read tokens 0 .. t - 1")
    yield ("left padding", padded[:1], F.pad(alone, (2, 0)), "pass the mask on; the first real token has value 0")
    yield ("right padding", padded[1:], F.pad(alone, (0, 2)), "0 on padding, also just after the last token")
    model(ids).sum().backward()
    yield ("the reward model is not trained", all(p.grad is None for p in reward_model.parameters()), True,
           "a deep copy of the body")


# --------------------------------------------------------------------------------- ppo.py

@_check
def policy_loss(f):
    """Checks `policy_loss(logprobs, old_logprobs, advantages, response_mask, clip_eps)`."""
    one, zero = torch.tensor([[True]]), _row(0)
    cases = [(1, 1), (-1, 1), (0.1, 1), (1, -1), (-1, -1)]                         # (logratio, advantage)
    got = torch.stack([f(_row(logratio), zero, _row(advantage), one) for logratio, advantage in cases])
    yield ("the five cases at clip_eps 0.2", got, torch.tensor([-1.2, -0.3679, -1.1052, 2.7183, 0.8]),
           "minus the smaller of ratio * A and clip(ratio) * A; with A < 0 the smaller is the clipped one below 0.8 only")
    advantages = torch.tensor([[1.0, 2.0, 3.0], [-10.0, 50.0, 50.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    zeros = torch.zeros(2, 3)
    yield ("mean over all response tokens", f(zeros, zeros, advantages, mask), torch.tensor(1.0),  # -(1 + 2 + 3 - 10) / 4
           "neither a mean of row means, 4, nor one that counts padding")
    yield ("at ratio 1 the gradient is -A / n", _gradient(lambda x: f(x, zeros, advantages, mask), zeros),
           torch.tensor([[-0.25, -0.5, -0.75], [2.5, 0.0, 0.0]]), "4 tokens count")
    slopes = [_gradient(lambda x, a=a: f(x, zero, _row(a), one), _row(logratio)).item() for logratio, a in cases]
    yield ("where the clipped term is the smaller, no gradient", torch.tensor(slopes),
           torch.tensor([0.0, -0.3679, -1.1052, 2.7183, 0.0]), "torch.minimum passes the gradient to the smaller one")
    far = torch.where(mask, 0.0, 500.0)
    yield ("padding reaches no gradient, even where exp overflows",
           _gradient(lambda x: f(x, zeros, advantages, mask), far).isfinite().all().item(), True,
           "0 * inf is NaN; set the logratio to 0 on padding")
    yield ("advantages are constants", _gradient(lambda a: f(zeros, zeros, a, mask), advantages), zeros, "detach them")
    yield ("old_logprobs are constants", _gradient(lambda x: f(zeros, x, advantages, mask), zeros), zeros, "detach them")
    yield ("different shapes are refused", _error(lambda: f(zeros, zeros, advantages[:, :1], mask)), ValueError,
           "(B, 1) would broadcast")


@_check
def value_loss(f):
    """Checks `value_loss(values, old_values, returns, response_mask, clip_eps)`."""
    one, target = torch.tensor([[True]]), _row(3)
    def loss(value):
        return f(value, _row(1), target, one, clip_eps=0.5)                        # old value 1, return 3
    yield ("at the old value: (1 - 3)^2 / 2", loss(_row(1)), torch.tensor(2.0), "the factor 1/2")
    yield ("a big step to the return: (1.5 - 3)^2 / 2", loss(_row(3)), torch.tensor(1.125),
           "the larger of the clipped and the unclipped error")
    yield ("a big step away: (0 - 3)^2 / 2", loss(_row(0)), torch.tensor(4.5), "clip value - old_value, and take the larger")
    slopes = torch.cat([_gradient(loss, _row(value)) for value in (1, 3, 0)])
    yield ("beyond the clipped step, no gradient", slopes, torch.tensor([[-2.0], [0.0], [-3.0]]), "value - return, or 0")
    values, mask = torch.tensor([[1.0, 2.0, 3.0], [5.0, 70.0, 70.0]]), torch.tensor([[True] * 3, [True, False, False]])
    returns = torch.zeros(2, 3)
    yield ("mean over all response tokens", f(values, values, returns, mask), torch.tensor(4.875),  # (1+4+9+25)/4/2
           "neither a mean of row means nor one that counts padding")
    constants = _gradient(lambda x: f(values, x[0], x[1], mask), torch.stack((values, returns)))
    yield ("old_values and returns are constants", constants, torch.zeros(2, 2, 3), "detach them")
    yield ("different shapes are refused", _error(lambda: f(values, values, returns[:, :1], mask)), ValueError,
           "(B, 1) would broadcast")


# --------------------------------------------------------------------- preference_loss.py

@_check
def bradley_terry_loss(f):
    """Checks `bradley_terry_loss(chosen_scores, rejected_scores, margin, reduction)`."""
    zero = torch.zeros(1)
    yield ("equal scores cost ln 2", f(zero, zero), torch.tensor(0.693147), "-log(1/2)")
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])
    hand = torch.tensor([0.313262, 1.313262, 0.693147])                # ln(1 + exp(-1)), ln(1 + e), ln 2
    yield ("one loss per pair", f(chosen, rejected, reduction="none"), hand, "-logsigmoid(chosen - rejected)")
    yield ("the mean is the default, sum the other", torch.stack((f(chosen, rejected), f(chosen, rejected, reduction="sum"))),
           torch.tensor([0.773224, 2.319671]), "mean over the pairs")
    margins = torch.tensor([1 / 3, 2 / 3, 1.0, 3.0])
    yield ("a margin per pair", f(torch.zeros(4), torch.zeros(4), margins, "none"),
           torch.tensor([0.87364, 1.08104, 1.31326, 3.04859]), "subtract it from the difference: ln(1 + exp(m))")
    slopes = torch.cat([_gradient(lambda x, m=m: f(x, zero, m), torch.tensor([1.5])) for m in (0.0, 3.0)])
    yield ("slopes at difference 1.5, margins 0 and 3", slopes, torch.tensor([-0.18243, -0.81757]), "sigmoid(d - m) - 1")
    yield ("a constant added to all scores changes nothing", f(chosen + 7, rejected + 7, reduction="none"), hand,
           "only differences count")
    wrong = torch.tensor([-90.0])
    yield ("no overflow at difference -90", torch.stack((f(wrong, zero), _gradient(lambda x: f(x, zero), wrong)[0])),
           torch.tensor([90.0, -1.0]), "F.logsigmoid, not log(sigmoid), which underflows")
    yield ("a margin (B, 1) is refused", _error(lambda: f(chosen, rejected, torch.ones(3, 1))), ValueError,
           "it would broadcast to a (B, B) loss")
    yield ("a negative margin is refused", _error(lambda: f(chosen, rejected, -1.0)), ValueError, "0 or more")


@_check
def safety_label_loss(f):
    """Checks `safety_label_loss(scores, labels, reduction)`."""
    scores, labels = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([True, False, True])
    hand = torch.tensor([0.313262, 1.313262, 0.693147])                # ln(1 + exp(-1)), ln(1 + e), ln 2
    yield ("1 is safe", f(scores, labels, reduction="none"), hand, "a high score and the label 1 agree")
    yield ("mean over the answers", f(scores, labels), torch.tensor(0.773224), "divide by B")
    yield ("labels may be 0.0 and 1.0", f(scores, labels.float(), reduction="none"), hand, "convert to the scores' dtype")
    yield ("no overflow", f(torch.tensor([-90.0]), torch.tensor([1.0])), torch.tensor(90.0), "the version with logits")
    yield ("labels (B, 1) are refused", _error(lambda: f(scores, labels[:, None])), ValueError, "(B, B) by broadcasting")


class _SumOfIds(torch.nn.Module):
    """Stands in for a reward model: the score is the sum of the real ids; remembers the rows of each call."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = torch.nn.Parameter(torch.ones(())), []

    def forward(self, ids, mask=None):
        self.rows.append(len(ids))
        return self.weight * (ids if mask is None else ids * mask).sum(1)


@_check
def pair_scores(f):
    """Checks `pair_scores(reward_model, pairs)`."""
    model = _SumOfIds()
    pairs = [PairExample([5, 6, 7], [8, 9], 0.0, True, True), PairExample([5, 6, 7], [1], 0.0, True, True)]
    scores = torch.stack(tuple(f(model, pairs)))                                   # (2, 2)
    yield ("the chosen first, then the rejected; padding counts nothing", scores, torch.tensor([[18.0, 18.0], [17.0, 1.0]]),
           "18 = 5 + 6 + 7 and 17 = 8 + 9; pass the mask that pad returns to the model")
    yield ("one forward", len(model.rows), 1, "pad chosen and rejected texts together")
    yield ("a text that stands in two pairs is read once", model.rows[0], 3, "collect the distinct texts first")
    scores.sum().backward()
    yield ("the gradient reaches the model", model.weight.grad, torch.tensor(54.0), "no detach, no item")


# ------------------------------------------------------------------------ reward_model.py

def _tiny_llama(dim=32):
    """A model of one layer with random weights, the same on every call."""
    config = LlamaConfig(vocab_size=11, dim=dim, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=16)
    return Llama(config, generator=torch.Generator().manual_seed(0))


@_check
def reward_model(f):
    """Checks `RewardModel(llama, pooling, keep_lm_head, generator)`, the class."""
    llama = _tiny_llama(dim=256)
    model = f(llama, generator=torch.Generator().manual_seed(1))
    long, short = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[9, 2, 6]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    right, left = torch.cat((long, F.pad(short, (0, 2)))), torch.cat((long, F.pad(short, (2, 0))))
    with torch.no_grad():
        head, states = model.score.weight[0], llama.hidden(short)                  # (D,), (1, 3, D)
        by_hand = torch.cat((llama.hidden(long)[:, -1] @ head, states[:, -1] @ head))
        mean_head = (mean_model := f(llama, pooling="mean")).score.weight[0]
        mean_by_hand = torch.stack((llama.hidden(long).mean(1)[0] @ mean_head, states.mean(1)[0] @ mean_head))
    yield ("the head's std is 1 / sqrt(dim + 1)", 0.8 < head.std().item() * math.sqrt(257) < 1.2, True,
           "1 / (dim + 1) is the variance")
    yield ("right padding: one score per row, at the last real token", model(right, mask), by_hand,
           "the last True of the mask, not column -1")
    yield ("left padding", model(left, torch.stack((mask[0], mask[1].flip(0)))), by_hand,
           "the last True is not at mask.sum() - 1 here")
    yield ("mean pooling, over real tokens", mean_model(right, mask), mean_by_hand, "divide by the number of real tokens")
    parameters = sum(p.numel() for p in model.parameters())
    yield ("number of parameters", parameters, sum(p.numel() for p in llama.parameters()) - 11 * 256 + 256,
           "the lm_head goes, a head of dim weights without bias comes")
    model.train()(right, mask).sum().backward()
    yield ("the language model is not trained along", all(p.grad is None for p in llama.parameters()), True, "deep copy")
    model.set_normalisation(2.0, 4.0)
    yield ("no normalisation in train mode", model.train()(right, mask), by_hand, "look at self.training")
    yield ("normalisation in eval mode", model.eval()(right, mask), (by_hand - 2) / 4, "(score - mean) / std")
    yield ("an unknown pooling is refused", _error(lambda: f(llama, pooling="first")), ValueError, '"last" or "mean"')
