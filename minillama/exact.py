"""Exact answers: the chances and optima that the course is held against, computed and never estimated.

Two parts. First comparisons: a pair (a, b) has a *difference*, a minus b: of utilities, in units of the annotator's
temperature, or of scores, in nats; an outcome says who won and with which strength, weakest first. Then the
enumerable world: a vocabulary and a length so small that every response to a prompt can be listed. A policy is there
a vector of N log-probabilities, an expectation a sum, and the best policy a formula.

Conventions. All is computed in float64. Every KL is KL(policy || reference), of whole responses, in nats.
Nothing here is trained or sampled, and nothing knows a tokenizer or the world's texts.

The margin loss is Llama 2's (arXiv 2307.09288, equation 2). The optimum under a KL penalty is in Ziegler et al. 2019
(arXiv 1909.08593, section 2), its derivation in Rafailov et al. 2023 (arXiv 2305.18290, appendix A.1). Left out: optima
of a whole reward model. They exist for a pair, whose difference is free; a model has one score for each answer.
"""

import math
from dataclasses import dataclass

import torch

from minillama.data import pad
from minillama.model import Llama, LlamaConfig
from minillama.tokenizer import EOS_ID

# The enumerable world of the lessons: 781 responses. The prompt has two different tokens: after [1] alone a
# transformer could not tell the states [1] and [1, 1] apart, since attention takes a mean over equal values.
PROMPT_IDS, VOCAB_SIZE, MAX_NEW_TOKENS = [1, 3], 6, 4


def outcome_chances(difference, thresholds):
    """Chances that a wins and that b wins with each strength, weakest first: two float64 tensors (N, K).

    difference: (N,), utility of a minus utility of b in units of the temperature. thresholds: K - 1 sizes of the
    noisy difference at which the strength rises by one. As in `world.Annotator`: a wins where difference +
    logistic noise is above 0, and its size gives the strength. Each row of both together sums to 1.
    """
    edges = torch.tensor([0.0, *thresholds, math.inf], dtype=torch.float64)  # (K + 1,)
    difference = difference.double()[:, None]  # (N, 1)
    return torch.sigmoid(edges - difference).diff(), torch.sigmoid(
        edges + difference
    ).diff()


def margin_slope(difference, wins, losses, margins):
    """Slope of the expected margin loss at score differences (N,): float64 (N,), 0 at the minimum.

    The loss is sum_k wins_k softplus(margins_k - d) + losses_k softplus(margins_k + d), convex in d.
    wins, losses: (N, K), how often a and b win with each strength, chances or counts. margins: (K,).
    """
    difference, margins = difference.double()[:, None], margins.double()  # (N, 1), (K,)
    return (
        losses * torch.sigmoid(margins + difference)
        - wins * torch.sigmoid(margins - difference)
    ).sum(1)


def margin_minimiser(wins, losses, margins):
    """The score difference at which the expected margin loss is lowest, float64 (N,), by bisection of its slope.

    Arguments as for `margin_slope`. Without margins it is the log-odds log(wins / losses).
    Raises ValueError for other shapes, a negative entry, or a row that one side never wins: there the loss
    falls for ever and has no minimum.
    """
    if wins.ndim != 2 or losses.shape != wins.shape or margins.shape != wins.shape[1:]:
        raise ValueError(
            "margin_minimiser: wins and losses must be (N, K) alike and margins (K,), got "
            f"{tuple(wins.shape)}, {tuple(losses.shape)} and {tuple(margins.shape)}"
        )
    if not all((x >= 0).all() and (x.sum(1) > 0).all() for x in (wins, losses)):
        raise ValueError(
            "margin_minimiser: wins and losses must be >= 0, and more than 0 in every row"
        )
    odds = wins.double().sum(1) / losses.double().sum(1)  # (N,)
    high = (
        odds.log().abs() + margins.double().abs().max()
    )  # the slope is >= 0 here, and <= 0 at -high
    low = -high
    for _ in range(64):
        middle = (low + high) / 2
        falls = (
            margin_slope(middle, wins, losses, margins) < 0
        )  # the minimum lies to the right
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return (low + high) / 2


# ---------------------------------------------------------------------------------------------------------
# The enumerable world


@dataclass(frozen=True)
class Responses:
    """Every response to one prompt, one a row, padded on the right; tensors (N, T), the prompt in front.

    ids: int64. mask: bool, True = real token. response_mask: bool, True = response token, the EOS included.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    response_mask: torch.Tensor


def enumerate_responses(prompt_ids, vocab_size, max_new_tokens, eos_id=EOS_ID):
    """All `Responses` that sampling can give: a response ends with eos_id or after max_new_tokens tokens.

    Every id below vocab_size may be drawn, pad and bos too. With L = max_new_tokens and V = vocab_size there are
    1 + (V - 1) + ... + (V - 1)^(L - 2) + (V - 1)^(L - 1) V of them.
    Raises ValueError for an empty prompt, max_new_tokens < 1 or more than a million responses.
    """
    if not prompt_ids or max_new_tokens < 1:
        raise ValueError(
            "enumerate_responses: prompt_ids must not be empty and max_new_tokens at least 1, got "
            f"{prompt_ids} and {max_new_tokens}"
        )
    if vocab_size**max_new_tokens > 10**6:
        raise ValueError(
            "enumerate_responses: vocab_size ** max_new_tokens must be a million at most, got "
            f"{vocab_size} ** {max_new_tokens}"
        )
    ended, going = [], [[]]
    for _ in range(max_new_tokens):
        longer = [
            response + [token] for response in going for token in range(vocab_size)
        ]
        ended += [response for response in longer if response[-1] == eos_id]
        going = [response for response in longer if response[-1] != eos_id]
    ids, mask = pad(
        [prompt_ids + response for response in ended + going]
    )  # (N, T) each
    return Responses(ids, mask, mask & (torch.arange(ids.shape[1]) >= len(prompt_ids)))


def small_policy(generator, spread=0.5):
    """A random `Llama` of one layer for the enumerable world, its logits with a standard deviation of about ``spread``.

    9,696 parameters: enough to come within 1 % of the best policy. generator: CPU, or None for torch's default.
    """
    policy = Llama(
        LlamaConfig(VOCAB_SIZE, 32, 1, 4, 2, 64, len(PROMPT_IDS) + MAX_NEW_TOKENS),
        generator,
    )
    with torch.no_grad():  # the final norm gives states of mean square 1
        policy.lm_head.weight *= spread / (
            policy.lm_head.weight.std() * math.sqrt(policy.config.dim)
        )
    return policy


def rises(ids, mask):
    """The score of the enumerable world, (B,) in -3 .. 3: +1 for a token above the one before it, -1 for any other.

    ids, mask: (B, T), `PROMPT_IDS` and a response, padded on the right. The first token of a response and EOS have
    no step. The best responses are the five that rise three times, such as 0, 1, 3, 4.
    """
    before, token = (
        ids[:, len(PROMPT_IDS) : -1],
        ids[:, len(PROMPT_IDS) + 1 :],
    )  # (B, R - 1) each
    counted = mask[:, len(PROMPT_IDS) + 1 :] & (token != EOS_ID)
    return (torch.where(token > before, 1.0, -1.0) * counted).sum(1)


class RisesJudges:
    """For `ppo.train_ppo` what `ppo.Judges` is in the large world: every response safe, and helpful by its `rises`."""

    def probabilities(self, ids, mask):
        """(1, sigmoid(rises)), two (B,) tensors, so that the logit of what is selected is the score itself."""
        scores = rises(ids, mask)
        return torch.ones_like(scores), torch.sigmoid(scores)


def sequence_token_logprobs(policy, responses):
    """log p(token | past) of every response token under a `Llama`, 0 elsewhere: float64 (N, T), with gradient."""
    logits = policy(responses.ids, responses.mask).double()  # (N, T, V)
    logprobs = (
        torch.log_softmax(logits[:, :-1], dim=-1)
        .gather(-1, responses.ids[:, 1:, None])
        .squeeze(-1)
    )
    return torch.nn.functional.pad(logprobs, (1, 0)).masked_fill(
        ~responses.response_mask, 0.0
    )


def sequence_logprobs(policy, responses):
    """log p(response) under a `Llama`: float64 (N,), with gradient. Their exponentials sum to 1."""
    return sequence_token_logprobs(policy, responses).sum(1)


def response_kl(logp, ref_logp):
    """KL(policy || reference) of whole responses in nats, a scalar, from log-probabilities (N,) of all of them."""
    p = logp.exp()
    return (p * (logp - ref_logp).masked_fill(p == 0, 0.0)).sum()  # 0 * log 0 = 0


def objective(logp, ref_logp, scores, beta):
    """J = E[score] - beta * KL(policy || reference), what RLHF climbs: a scalar, with gradient through logp.

    logp, ref_logp: (N,) log-probabilities of all responses. scores: (N,). beta: reward per nat.
    """
    return (logp.exp() * scores).sum() - beta * response_kl(logp, ref_logp)


def optimal_policy(ref_logp, scores, beta):
    """The policy with the highest `objective`, and that height: log-probabilities (N,) and a scalar.

        pi*(y) = pi_ref(y) exp(score(y) / beta) / Z,   J(pi*) = beta log Z

    Any other policy falls short by beta * KL(policy || pi*). Raises ValueError for beta <= 0: there the best policy
    puts all its weight on the highest scores and need not be unique. Source: Rafailov et al. 2023, appendix A.1.
    """
    if not beta > 0:
        raise ValueError(f"optimal_policy: beta must be > 0, got {beta}")
    weight = ref_logp.double() + scores.double() / beta  # (N,)
    log_z = weight.logsumexp(0)
    return weight - log_z, beta * log_z


def exact_gradient(scalar, policy):
    """Gradient of a scalar in the policy's parameters, one flat vector (P,); 0 for a parameter that is not used."""
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(
        scalar, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in gradients])


def exact_values(logp, rewards, responses, gamma=1.0):
    """Values and advantages of every state and token under the policy: float64 (N, T) each, 0 off the response.

        values[n, t]     = E[ rewards[t] + gamma * rewards[t + 1] + ... | the tokens before t ]
        advantages[n, t] = rewards[n, t] + gamma * values[n, t + 1] - values[n, t]

    logp: (N,), the policy's log-probabilities of all responses. rewards: (N, T); the reward of a token may depend on
    what came before and on the token, not on what follows. Expectations are sums over all responses that begin alike.
    """
    weight, rewards = (
        logp.detach().double().exp(),
        rewards.double() * responses.response_mask,
    )
    values, following = (
        torch.zeros_like(rewards),
        torch.zeros_like(weight),
    )  # (N, T), (N,): return from t + 1 on
    for t in reversed(range(rewards.shape[1])):
        returns = rewards[:, t] + gamma * following  # (N,)
        state = (
            responses.ids[:, :t].unique(dim=0, return_inverse=True)[1]
            if t
            else torch.zeros(len(weight), dtype=torch.long)
        )
        counted = (
            weight * responses.response_mask[:, t]
        )  # a response that ended before t is in no state at t
        total = torch.zeros_like(weight).index_add(
            0, state, counted
        )  # (N,): chance of each state
        mean = torch.zeros_like(weight).index_add(
            0, state, counted * returns
        ) / total.clamp_min(1e-300)
        values[:, t], following = mean[state] * responses.response_mask[:, t], returns
    later = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    return values, (rewards + gamma * later - values) * responses.response_mask
