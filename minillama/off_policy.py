"""Off-policy: what to do when the program that samples is not the one that learns.

The idea. The answers come from a sampler q, the gradient is wanted for a policy p. An
answer that p gives twice as often as q must count twice:

    E_p[ f(y) ] = sum_y p(y) f(y) = E_q[ w(y) f(y) ],   w = p / q

That is exact for any f, as long as q can give whatever p can. The price is noise, which
a cap on the weights takes off again, for some bias.

Conventions. q is what the answers were *really* drawn from: of another age, temperature
or precision, or cut by top-p; its log-probabilities must be those of that law. A weight
multiplies an advantage (so `reinforce_loss` is weighted by weighting its advantages).
Weights are constants. Every per-token tensor is (B, T), entry t about token t;
response_mask is True where a token of the response stands. The error of an estimate is
squared and summed over all entries of the gradient.

Importance weights for policies: Precup, Sutton and Singh 2000 ("Eligibility traces for
off-policy policy evaluation"). Truncation: Ionides 2008 ("Truncated importance
sampling"); per token and for policy gradients in Espeholt et al. 2018 (IMPALA, arXiv
1802.01561, section 4). The effective sample size is Kish's (1965, Survey Sampling) and,
for importance weights, Kong's (1992, University of Chicago, technical report 348).
Top-p: Holtzman et al. 2020 (1904.09751). Left out: weights divided by their sum, values
learned off policy (V-trace), and the clip, which `ppo.policy_loss` has.
"""

import math

import torch

from minillama.contracts import expects
from minillama.generate import top_p_filter
from minillama.policy_gradient import gradient_variance


@expects(
    "logprobs, sampler_logprobs: float (B, T) finite where response_mask",
    "response_mask: bool (B, T) True in every row",
    'level: "answer" or "token"',
    "cap: number > 0",
    'above: "truncate" or "drop"',
    "-> float (B, T)",
)
def importance_weights(
    logprobs,
    sampler_logprobs,
    response_mask,
    level="answer",
    cap=math.inf,
    above="truncate",
):
    """Return the weight of each response token, 0 elsewhere, detached.

        "answer":  w = p(answer) / q(answer), the same at all tokens of the answer
        "token":   w[t] = p(token t) / q(token t), given the tokens before it

    logprobs are those of p, the policy to be trained, sampler_logprobs those of q,
    which drew the answers. A weight above cap becomes cap, or 0 with "drop"; cap = inf
    leaves all as they are. Sources: Precup et al. 2000; Ionides 2008.
    """
    logratio = (logprobs - sampler_logprobs).detach()  # (B, T)
    logratio = torch.where(response_mask, logratio, 0.0)
    if level == "answer":
        logratio = logratio.sum(1, keepdim=True).expand_as(logratio)
    w = logratio.exp()
    w = w.clamp(max=cap) if above == "truncate" else torch.where(w <= cap, w, 0.0)
    return torch.where(response_mask, w, 0.0)


@expects("weights: finite float (N,) >= 0", "-> float ()")
def effective_sample_size(weights):
    """Return how many answers of equal weight these weights are worth, 1 to N.

        (sum of w)^2 / sum of w^2

    A weighted mean is as noisy as a plain one of that many answers, if what is averaged
    does not go with the weights. A gradient does: its noise can be less or more.
    weights: one for each answer that was drawn; a rare one of great weight that is
    missing makes the number look better. Sources: Kish 1965; Kong 1992.
    """
    w = weights.detach()
    w = w / w.max()  # squares could overflow
    if w.isnan().any():
        raise ValueError(
            "effective_sample_size: weights must be more than 0 somewhere, got only 0"
        )
    return w.sum().square() / w.square().sum()


@expects(
    "logits: finite float (B, V)",
    "temperature: number in (0, inf)",
    "top_p: number in (0, 1]",
    "-> float (B, V)",
)
def sampling_logprobs(logits, temperature=1.0, top_p=1.0):
    """Return the log-probabilities of the law that `generate` draws a token from.

        log( kept / sum of kept ),   kept = top_p_filter(softmax(logits / temperature))

    They are -inf for a token that top-p cuts off. (The logprobs of a `Rollout` are
    those before the cut.) Detached. Source: Holtzman et al. 2020, section 3.1.
    """
    probs = torch.softmax(logits.detach() / temperature, dim=-1)  # (B, V)
    kept = top_p_filter(probs, top_p) if top_p < 1 else probs
    return (kept / kept.sum(-1, keepdim=True)).log()


@expects(
    "gradients: finite float (N, P)",
    "chances: float (N,) in [0, 1]",
    "truth: finite float (P,)",
    "n: int >= 1",
    "-> float ()",
)
def squared_error(gradients, chances, truth, n):
    """Return the expected squared error of a gradient that is a mean over n answers.

        E| mean of n - truth |^2 = | E[g] - truth |^2 + variance / n

    gradients: what each of all N answers would give, weights included; chances: how
    often the *sampler* draws it. The first term is the squared bias, which no number of
    answers lowers.
    """
    bias = chances @ gradients - truth  # (P,)
    return bias.square().sum() + gradient_variance(gradients, chances) / n
