"""A reward model: a LLaMA body, one linear head, one number for a whole text.

Conventions. A score is a real number (nats, as the logit of a preference), read at the
last *real* token on either padding side, never at the last column. Heads compute in
float32 whatever the body's dtype: in half precision 5.03 would be 5.03125.
Normalisation, (score - score_mean) / score_std, applies in eval mode only: training
sees raw scores, since a Bradley-Terry loss does not see an offset and would be rescaled
by a division.

Stiennon et al. 2020 (arXiv 2009.01325, section 3.4 and appendix B.1) have the head on a
fine-tuned language model, its initial variance of 1 / (dim + 1), and the shift of all
scores to mean 0 on reference texts; Llama 2 (2307.09288, section 3.2.2) likewise starts
from the chat model and replaces its output projection.
Left out: ensembles, heads of several layers, scores for every token.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from minillama.contracts import expects
from minillama.data import pad
from minillama.fast import hidden_once


@expects("llama: Llama", "keep_lm_head: flag")
def copy_body(llama, keep_lm_head=False):
    """Copy a `Llama` deeply, without its lm_head unless `keep_lm_head`.

    Without it, lm_head is None and only `hidden` works. A tied embedding table stays,
    as embed_tokens. `llama` may be such a copy itself.
    """
    body = copy.deepcopy(llama)
    if not keep_lm_head:
        body.lm_head = None  # neither stored nor trained
    return body


@expects("mask: bool (B, T) True in every row", "-> bool (B, T)")
def last_token(mask):
    """Mark the last real token of each row: True there and nowhere else.

    mask: True = real, padding on either side. As an index the result picks one state a
    row: `hidden[last_token(mask)]` is (B, D).
    """
    # (B, T): real tokens from here to the end of the row
    from_the_right = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (from_the_right == 1)


@expects(
    "hidden: float (B, T, D)",
    "mask: bool (B, T) True in every row",
    "-> float (B, D)",
)
def pool_mean(hidden, mask):
    """Return the mean state of each row's real tokens (mask: True = real)."""
    kept = hidden.masked_fill(~mask[:, :, None], 0.0)  # (B, T, D)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


@expects(
    "llama: Llama",
    'pooling: "last" or "mean"',
    "keep_lm_head: flag",
    "generator: None or Generator",
)
class RewardModel(nn.Module):
    """Scores of texts: a deep copy of a `Llama` body and a linear head on one state.

    pooling: "last" (the last real token) or "mean" (over real tokens); the same in
    training and afterwards. keep_lm_head: keep the output projection for a
    language-modelling term in the loss; else it is dropped. The head has no bias and is
    drawn from N(0, 1 / (dim + 1)), a *variance*, with the CPU `generator` (None: the
    default one). Head and normalisation are float32 whatever the body's dtype.
    """

    def __init__(self, llama, pooling="last", keep_lm_head=False, generator=None):
        super().__init__()
        dim, device = llama.config.dim, next(llama.parameters()).device
        self.pooling = pooling
        self.llama = copy_body(llama, keep_lm_head)
        self.score = nn.Linear(dim, 1, bias=False, device=device)
        drawn = torch.randn(1, dim, generator=generator) / math.sqrt(dim + 1)
        self.score.weight.data.copy_(drawn)
        self.register_buffer("score_mean", torch.zeros((), device=device))
        self.register_buffer("score_std", torch.ones((), device=device))

    @expects(
        "ids: int64 (B, T) below self.llama.config.vocab_size",
        "mask: None or bool (B, T) True in every row",
        "-> float (B,)",
    )
    def raw_scores(self, ids, mask=None):
        """Score texts without normalisation in either mode; arguments as for a call."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if self.pooling == "last":
            # equals self.llama.hidden(ids, mask)[last_token(mask)]
            pooled = hidden_once(self.llama, ids, mask, last_token(mask))  # (B, D)
        else:
            pooled = pool_mean(self.llama.hidden(ids, mask), mask)  # (B, D)
        return F.linear(pooled.float(), self.score.weight.float()).squeeze(-1)  # (B,)

    @expects(
        "ids: int64 (B, T) below self.llama.config.vocab_size",
        "mask: None or bool (B, T) one run of True in every row",
        "-> float (B,)",
    )
    def forward(self, ids, mask=None):
        """Score texts: raw in train mode, normalised in eval mode.

        mask: True = real token, padding on either side, None = all real.
        """
        scores = self.raw_scores(ids, mask)
        return scores if self.training else (scores - self.score_mean) / self.score_std

    @expects("mean: finite number", "std: finite number > 0")
    def set_normalisation(self, mean, std=1.0):
        """Set what eval mode subtracts and divides by, in units of raw score.

        std = 1 centres only.
        """
        device = self.score_mean.device
        self.score_mean = torch.tensor(mean, dtype=torch.float32, device=device)
        self.score_std = torch.tensor(std, dtype=torch.float32, device=device)


@expects("reward_model: RewardModel")
class ValueModel(nn.Module):
    """Values of all states of a text: a deep copy of a reward model's body, a new head.

    The head `value` is linear, without bias, in float32 whatever the body's dtype, and
    starts at zero: the body knows good answers from bad ones, but the rewards of PPO
    are whitened and penalised, and so on another scale than the reward model's score.
    """

    def __init__(self, reward_model):
        super().__init__()
        dim, device = reward_model.llama.config.dim, reward_model.score.weight.device
        self.llama = copy_body(reward_model.llama)
        self.value = nn.Linear(dim, 1, bias=False, device=device)
        nn.init.zeros_(self.value.weight)

    @expects(
        "ids: int64 (B, T) below self.llama.config.vocab_size",
        "mask: None or bool (B, T) one run of True in every row",
        "-> float (B, T)",
    )
    def forward(self, ids, mask=None):
        """Return the values of all states; mask: True = real token, None = all real.

        Entry t is computed at position t - 1, before token t; it is 0 for a row's first
        real token, which has nothing before it, and on padding.
        """
        hidden = self.llama.hidden(ids, mask).float()  # (B, T, D)
        # (B, T): the value once token t is read
        after = F.linear(hidden, self.value.weight.float()).squeeze(-1)
        before = F.pad(after[:, :-1], (1, 0))  # (B, T), shifted by one
        if mask is None:
            return before
        known = mask & F.pad(mask[:, :-1], (1, 0))  # tokens t - 1 and t are real
        return before.masked_fill(~known, 0.0)


@expects(
    "value_model: ValueModel",
    "ids: int64 (B, T)",
    "mask, response_mask: bool (B, T)",
    "-> float (B, T)",
)
def response_values(value_model, ids, mask, response_mask):
    """Return the value before each response token, 0 elsewhere, with gradient.

    In units of reward. mask: True = real. response_mask: True = response token.
    """
    return value_model(ids, mask).masked_fill(~response_mask, 0.0)


@expects(
    "reward_model: Module",
    "texts: lists of ids none empty",
    "batch_size: int >= 1",
    "-> float (N,)",
)
@torch.no_grad()
def score_texts(reward_model, texts, batch_size=128):
    """Score texts given as lists of ids, in their order, in the model's own mode.

    Batched by length, so that little work goes into padding; on the CPU, in float32.
    """
    device = next(reward_model.parameters()).device
    scores = torch.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, mask = pad([texts[i] for i in batch])
        batch_scores = reward_model(ids.to(device), mask.to(device))
        if batch_scores.shape != (len(batch),):
            raise ValueError(
                "score_texts: reward_model must give one score a text, got shape "
                f"{tuple(batch_scores.shape)} for {len(batch)}"
            )
        scores[batch] = batch_scores.float().cpu()
    return scores


@expects(
    "scores: finite float (N,)",
    "centre_only: flag",
    "-> number",
    "-> number > 0",
)
def score_normalisation(scores, centre_only=False):
    """Return mean and std of raw reference scores, two floats for `set_normalisation`.

    The standard deviation is unbiased (n - 1). centre_only: it is 1 instead, so that
    differences of scores stay the log-odds that Bradley-Terry made of them.
    """
    if not centre_only and (scores == scores[0]).all():
        raise ValueError(
            "score_normalisation: scores must be at least 2 different ones for an std, "
            f"got {len(scores)} times {scores[0].item():.6g}"
        )
    scores = scores.double()
    std = 1.0 if centre_only else scores.std(correction=1).item()
    return scores.mean().item(), std
