"""Exact answers: the chances and optima that the course is held against.

Two parts. First comparisons: a pair (a, b) has a *difference*, a minus b: of utilities,
in units of the annotator's temperature, or of scores, in nats; an outcome says who won
and with which strength, weakest first. Then the enumerable world: a vocabulary and a
length so small that every response to a prompt can be listed. A policy is there a
vector of N log-probabilities, an expectation a sum, and the best policy a formula.

Conventions. All is computed in float64, nothing is estimated. Every KL is
KL(policy || reference), of whole responses, in nats. Nothing here is trained or
sampled, and nothing knows a tokenizer or the world's texts.

The margin loss is Llama 2's (arXiv 2307.09288, equation 2). The objective, a reward
minus beta times a KL, is in Ziegler et al. 2019 (arXiv 1909.08593, section 2); its
optimum is derived in Rafailov et al. 2023 (arXiv 2305.18290, appendix A.1). Left out:
optima of a whole reward model. They exist for a pair, whose difference is free; a model
has one score for each answer.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minillama.contracts import expects
from minillama.data import pad
from minillama.model import Llama, LlamaConfig
from minillama.tokenizer import EOS_ID

# The enumerable world of the lessons: 781 responses. The prompt has two different
# tokens: after [1] alone a transformer could not tell the states [1] and [1, 1] apart,
# since attention takes a mean over equal values.
PROMPT_IDS, VOCAB_SIZE, MAX_NEW_TOKENS = [1, 3], 6, 4


@expects("difference: finite float (N,)", "thresholds: list of number increasing")
def outcome_chances(difference, thresholds):
    """Return the chances that a wins and that b wins with each strength: two (N, K).

    difference is utility of a minus utility of b in units of the temperature;
    thresholds are the K - 1 sizes of the noisy difference at which the strength rises
    by one, all above 0. As in `world.Annotator`: a wins where difference + logistic
    noise is above 0, and its size gives the strength. The results are float64, the
    weakest strength first; each row of both together sums to 1.
    """
    if not all(0 < threshold < math.inf for threshold in thresholds):
        raise ValueError(
            f"outcome_chances: thresholds must be positive and finite, got {thresholds}"
        )
    edges = torch.tensor([0.0, *thresholds, math.inf], dtype=torch.float64)  # (K + 1,)
    difference = difference.double()[:, None]  # (N, 1)
    wins = torch.sigmoid(edges - difference).diff()  # (N, K)
    losses = torch.sigmoid(edges + difference).diff()  # (N, K)
    return wins, losses


@expects(
    "difference: finite float (N,)",
    "wins, losses: finite tensor (N, K) >= 0",
    "margins: finite float (K,)",
)
def margin_slope(difference, wins, losses, margins):
    """Return the slope of the expected margin loss at score differences: float64 (N,).

        loss(d) = sum_k   wins_k softplus(margins_k - d)
                      + losses_k softplus(margins_k + d)

    The loss is convex in d, and its slope is 0 at the minimum. wins and losses say how
    often a and b win with each strength: chances or counts.
    """
    difference, margins = difference.double()[:, None], margins.double()  # (N, 1), (K,)
    of_losses = losses * torch.sigmoid(margins + difference)  # (N, K)
    of_wins = wins * torch.sigmoid(margins - difference)  # (N, K)
    return (of_losses - of_wins).sum(1)


@expects("wins, losses: finite tensor (N, K) >= 0", "margins: finite float (K,)")
def margin_minimiser(wins, losses, margins):
    """Return the score difference of the lowest expected margin loss: float64 (N,).

    It is found by bisection of `margin_slope`, which has the same arguments. Without
    margins it is the log-odds log(wins / losses). Each side must win sometimes in every
    row, or the loss falls without end and has no minimum.
    """
    if not ((wins.sum(1) > 0) & (losses.sum(1) > 0)).all():
        raise ValueError(
            "margin_minimiser: wins and losses must be more than 0 in every row, got "
            f"sums of {wins.sum(1).tolist()} and {losses.sum(1).tolist()}"
        )
    odds = wins.double().sum(1) / losses.double().sum(1)  # (N,)
    # The slope is at least 0 at high and at most 0 at low.
    high = odds.log().abs() + margins.double().abs().max()
    low = -high
    for _ in range(64):
        middle = (low + high) / 2
        # Where the slope is negative, the minimum lies to the right.
        falls = margin_slope(middle, wins, losses, margins) < 0
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return (low + high) / 2


# --------------------------------------------------------------------------------------
# The enumerable world


@expects("ids: int64 (N, T)", "mask, response_mask: bool (N, T)")
@dataclass(frozen=True)
class Responses:
    """Every response to one prompt, one a row, padded on the right."""

    # The prompt and the response.
    ids: torch.Tensor
    # True at a real token.
    mask: torch.Tensor
    # True at a token of the response, the EOS included.
    response_mask: torch.Tensor


@expects(
    "prompt_ids: list of ids (P,) below vocab_size",
    "vocab_size, max_new_tokens: int >= 1",
    "eos_id: int >= 0",
)
def enumerate_responses(prompt_ids, vocab_size, max_new_tokens, eos_id=EOS_ID):
    """Return all `Responses` that sampling can give, a million at most.

    A response ends with eos_id or after max_new_tokens tokens. Every id below
    vocab_size may be drawn, pad and bos too. With L = max_new_tokens and V = vocab_size
    there are 1 + (V - 1) + ... + (V - 1)^(L - 2) + (V - 1)^(L - 1) V of them.
    """
    if vocab_size**max_new_tokens > 10**6:
        raise ValueError(
            "enumerate_responses: vocab_size ** max_new_tokens must be a million at "
            f"most, got {vocab_size} ** {max_new_tokens}"
        )
    ended, going = [], [[]]
    for _ in range(max_new_tokens):
        longer = [
            response + [token] for response in going for token in range(vocab_size)
        ]
        ended += [response for response in longer if response[-1] == eos_id]
        going = [response for response in longer if response[-1] != eos_id]
    ids, mask = pad([[*prompt_ids, *response] for response in ended + going])  # (N, T)
    return Responses(ids, mask, mask & (torch.arange(ids.shape[1]) >= len(prompt_ids)))


@expects("generator: Generator or None", "spread: number in [0, inf)")
def small_policy(generator, spread=0.5):
    """Return a random `Llama` of one layer for the enumerable world.

    Its logits have a standard deviation of about spread. It has 9,696 parameters:
    enough to come within 1 % of the best policy. The generator is one of the CPU; with
    None it is torch's default.
    """
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        dim=32,
        n_layers=1,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=64,
        max_seq_len=len(PROMPT_IDS) + MAX_NEW_TOKENS,
    )
    policy = Llama(config, generator)
    with torch.no_grad():
        # The final norm gives states of mean square 1.
        weight = policy.lm_head.weight
        weight *= spread / (weight.std() * math.sqrt(config.dim))
    return policy


@expects("ids: int64 (B, T)", "mask: bool (B, T)")
def rises(ids, mask):
    """Return the score of the enumerable world, (B,) in -3 .. 3.

    It is +1 for a token above the one before it, -1 for any other. A row is
    `PROMPT_IDS` and a response, padded on the right; True = real token. The first token
    of a response and EOS have no step. The best responses are the five that rise three
    times, such as 0, 1, 3, 4.
    """
    start = len(PROMPT_IDS)
    before, token = ids[:, start:-1], ids[:, start + 1 :]  # (B, R - 1) each
    counted = mask[:, start + 1 :] & (token != EOS_ID)
    return (torch.where(token > before, 1.0, -1.0) * counted).sum(1)


class RisesJudges:
    """The `ppo.Judges` of this world: all is safe, and helpful by how it `rises`."""

    @expects("ids: int64 (B, T)", "mask: bool (B, T)")
    def probabilities(self, ids, mask):
        """Return (1, sigmoid(rises)), two (B,) tensors.

        So the logit of what is selected is the score itself.
        """
        scores = rises(ids, mask)
        return torch.ones_like(scores), torch.sigmoid(scores)


@expects("policy: Llama", "responses: Responses")
def sequence_token_logprobs(policy, responses):
    """Return log p(token | past) of every response token: float64 (N, T).

    Entries elsewhere are 0. The gradient flows into the policy.
    """
    logits = policy(responses.ids, responses.mask).double()  # (N, T, V)
    logprobs = torch.log_softmax(logits[:, :-1], dim=-1)  # (N, T - 1, V)
    chosen = logprobs.gather(-1, responses.ids[:, 1:, None]).squeeze(-1)  # (N, T - 1)
    return F.pad(chosen, (1, 0)).masked_fill(~responses.response_mask, 0.0)


@expects("policy: Llama", "responses: Responses")
def sequence_logprobs(policy, responses):
    """Return log p(response), float64 (N,), with gradient; all chances sum to 1."""
    return sequence_token_logprobs(policy, responses).sum(1)


@expects("logp, ref_logp: float (N,) no NaN")
def response_kl(logp, ref_logp):
    """Return KL(policy || reference) of whole responses in nats, a scalar.

        sum_y p(y) (log p(y) - log p_ref(y)),   with 0 * log 0 = 0

    The arguments are the log-probabilities of all responses. The result is inf where
    the reference excludes a response that the policy may give.
    """
    p = logp.exp()
    return (p * (logp - ref_logp).masked_fill(p == 0, 0.0)).sum()


@expects(
    "logp: float (N,) no NaN",
    "ref_logp, scores: finite float (N,)",
    "beta: number in [0, inf)",
)
def objective(logp, ref_logp, scores, beta):
    """Return what RLHF climbs, a scalar, with gradient through logp.

        J = E[score] - beta * KL(policy || reference)

    logp and ref_logp are the log-probabilities of all responses; beta is a reward per
    nat. Source: Ziegler et al. 2019, section 2.
    """
    return (logp.exp() * scores).sum() - beta * response_kl(logp, ref_logp)


@expects("ref_logp, scores: finite float (N,)", "beta: number in (0, inf)")
def optimal_policy(ref_logp, scores, beta):
    """Return the policy with the highest `objective`, and that height.

        pi*(y) = pi_ref(y) exp(score(y) / beta) / Z,   J(pi*) = beta log Z

    The policy is given as its log-probabilities, float64 (N,). Any other falls short by
    beta * KL(policy || pi*). With beta = 0 the best policy puts all its weight on the
    highest scores and need not be unique. Source: Rafailov et al. 2023, appendix A.1.
    """
    weight = ref_logp.double() + scores.double() / beta  # (N,)
    log_z = weight.logsumexp(0)
    return weight - log_z, beta * log_z


@expects("scalar: finite float ()", "policy: Module")
def exact_gradient(scalar, policy):
    """Return the gradient of a scalar in the policy's parameters, one flat vector (P,).

    It is 0 for a parameter that the scalar does not use.
    """
    if not scalar.requires_grad:
        raise ValueError("exact_gradient: scalar must have a gradient, got a constant")
    gradients = torch.autograd.grad(
        scalar,
        list(policy.parameters()),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([gradient.flatten() for gradient in gradients])


@expects(
    "logp: float (N,) no NaN",
    "rewards: finite float (N, T)",
    "responses: Responses",
    "gamma: number in [0, 1]",
)
def exact_values(logp, rewards, responses, gamma=1.0):
    """Return values and advantages of every state and token: float64 (N, T) each.

        values[n, t]     = E[rewards[t] + gamma * rewards[t + 1] + ... | ids before t]
        advantages[n, t] = rewards[n, t] + gamma * values[n, t + 1] - values[n, t]

    logp are the policy's log-probabilities of all responses. The reward of a token may
    depend on what came before and on the token, not on what follows. Expectations are
    sums over all responses that begin alike. Both results are 0 off the response.
    """
    if rewards.shape != responses.ids.shape:
        raise ValueError(
            "exact_values: rewards must have the shape of responses, "
            f"{tuple(responses.ids.shape)}, got {tuple(rewards.shape)}"
        )
    mask, weight = responses.response_mask, logp.detach().double().exp()  # (N, T), (N,)
    rewards = rewards.double() * mask
    begun = F.pad(responses.ids, (1, 0))  # (N, 1 + T): at t = 0 all begin alike
    values = torch.zeros_like(rewards)
    following = torch.zeros_like(weight)  # (N,): the return from t + 1 on
    for t in reversed(range(rewards.shape[1])):
        returns = rewards[:, t] + gamma * following  # (N,)
        # (N,): the number of each row's state, that is, of the tokens before t.
        state = begun[:, : t + 1].unique(dim=0, return_inverse=True)[1]
        # A response that ended before t is in no state at t.
        counted = weight * mask[:, t]
        total = torch.zeros_like(weight).index_add(0, state, counted)
        summed = torch.zeros_like(weight).index_add(0, state, counted * returns)
        # A state without chance has no response that counts: 0 / 1e-300.
        mean = summed / total.clamp_min(1e-300)  # (N,), one entry a state
        values[:, t], following = mean[state] * mask[:, t], returns
    later = F.pad(values[:, 1:], (0, 1))
    return values, (rewards + gamma * later - values) * mask
