"""A reward model: a LLaMA body, one linear head, one number for a whole text.

Conventions. A score is a real number (nats, as the logit of a preference), read at the last *real* token on
either padding side, never at the last column. Normalisation, (score - score_mean) / score_std, applies in
eval mode only: training sees raw scores, since a Bradley-Terry loss does not see an offset and would be
rescaled by a division.

Stiennon et al. 2020 (arXiv 2009.01325, section 3.4 and appendix B.1) have the head on a fine-tuned language
model, its initial variance of 1 / (dim + 1), and the shift of all scores to mean 0 on reference texts;
Llama 2 (2307.09288, section 3.2.2) likewise starts from the chat model and replaces its output projection.
Left out: ensembles, heads of several layers, scores for every token.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from minillama.data import pad
from minillama.fast import hidden_at


def copy_body(llama, keep_lm_head=False):
    """An independent copy of a `Llama`; unless `keep_lm_head`, its lm_head is None and only `hidden` works.

    A tied embedding table stays, as embed_tokens. `llama` may be such a copy itself.
    """
    body = copy.deepcopy(llama)
    if not keep_lm_head:
        body.lm_head = None  # neither stored nor trained
    return body


def last_token(mask):
    """True at the last real token of each row and nowhere else: mask bool (B, T), True = real -> bool (B, T).

    Padding on either side. As an index it picks one state a row: ``hidden[last_token(mask)]`` is (B, D).
    """
    from_the_right = (
        mask.flip(-1).cumsum(-1).flip(-1)
    )  # (B, T): real tokens from here to the end of the row
    return mask & (from_the_right == 1)


def pool_mean(hidden, mask):
    """The mean state of each row's real tokens: hidden (B, T, D), mask bool (B, T), True = real -> (B, D)."""
    kept = hidden.masked_fill(~mask[:, :, None], 0.0)  # (B, T, D)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


class RewardModel(nn.Module):
    """Scores texts with a deep copy of a `Llama` body and a linear head without bias on its pooled state.

    pooling: "last" (the last real token) or "mean" (over real tokens); the same in training and afterwards.
    keep_lm_head: keep the output projection for a language-modelling term in the loss; else it is dropped.
    The head is drawn from N(0, 1 / (dim + 1)), a *variance*, with the CPU `generator` (None: the default).
    Raises ValueError for another pooling.
    """

    def __init__(self, llama, pooling="last", keep_lm_head=False, generator=None):
        super().__init__()
        if pooling not in ("last", "mean"):
            raise ValueError(
                f'RewardModel: pooling must be "last" or "mean", got {pooling!r}'
            )
        self.pooling = pooling
        self.llama = copy_body(llama, keep_lm_head)
        dim, like = llama.config.dim, llama.embed_tokens.weight
        self.score = nn.Linear(dim, 1, bias=False, device=like.device, dtype=like.dtype)
        self.register_buffer("score_mean", like.new_zeros(()))
        self.register_buffer("score_std", like.new_ones(()))
        with torch.no_grad():
            self.score.weight.copy_(
                torch.randn(1, dim, generator=generator) / math.sqrt(dim + 1)
            )

    def raw_scores(self, ids, mask=None):
        """Scores (B,) without normalisation, in either mode; arguments and errors as for `Llama.hidden`."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if self.pooling == "last":
            pooled = hidden_at(self.llama, ids, mask, last_token(mask))
        else:
            pooled = pool_mean(self.llama.hidden(ids, mask), mask)  # (B, D)
        return self.score(pooled).squeeze(-1)  # (B,)

    def forward(self, ids, mask=None):
        """Scores (B,) of ids int64 (B, T); mask bool (B, T), True = real token, None = all real.

        Raw in train mode, normalised in eval mode. Errors as for `Llama.hidden`: an empty batch, a row of
        padding only, a mask that is not boolean, another shape, an id outside the vocabulary.
        """
        scores = self.raw_scores(ids, mask)
        return scores if self.training else (scores - self.score_mean) / self.score_std

    def set_normalisation(self, mean, std=1.0):
        """Sets what eval mode subtracts and divides by, in units of raw score; std = 1 centres only.

        Raises ValueError for a non-finite mean or an std that is not positive and finite.
        """
        if not math.isfinite(mean):
            raise ValueError(f"set_normalisation: mean must be finite, got {mean}")
        if not 0 < std < math.inf:
            raise ValueError(
                f"set_normalisation: std must be positive and finite, got {std}"
            )
        self.score_mean.fill_(mean)
        self.score_std.fill_(std)


class ValueModel(nn.Module):
    """Values of all states of a text, from a deep copy of a reward model's body and a head of its own.

    The head `value`, Linear(dim, 1) without bias, starts at zero: the body knows good answers from bad ones, but
    the rewards of PPO are whitened and penalised, and so on another scale than the reward model's score.
    """

    def __init__(self, reward_model):
        super().__init__()
        self.llama = copy_body(reward_model.llama)
        like = reward_model.score.weight
        self.value = nn.Linear(
            like.shape[1], 1, bias=False, device=like.device, dtype=like.dtype
        )
        nn.init.zeros_(self.value.weight)

    def forward(self, ids, mask=None):
        """Values (B, T) of ids int64 (B, T); mask bool (B, T), True = real token, None = all real.

        Entry t is computed at position t - 1, before token t; it is 0 for a row's first real token, which
        has nothing before it, and on padding. Errors as for `Llama.hidden`.
        """
        after = self.value(self.llama.hidden(ids, mask)).squeeze(
            -1
        )  # (B, T) once token t is read
        before = F.pad(after[:, :-1], (1, 0))  # (B, T) shifted by one
        if mask is None:
            return before
        known = mask & F.pad(mask[:, :-1], (1, 0))  # tokens t - 1 and t are real
        return before.masked_fill(~known, 0.0)


def response_values(value_model, ids, mask, response_mask):
    """The value before each response token, 0 elsewhere: (B, T), in units of reward, with gradient.

    ids: int64 (B, T). mask, response_mask: bool (B, T), True = real, True = response token.
    """
    return value_model(ids, mask).masked_fill(~response_mask, 0.0)


@torch.no_grad()
def score_texts(reward_model, texts, batch_size=128):
    """Scores (N,) of texts given as lists of ids, in their order; batched by length, in the model's own mode."""
    device = reward_model.score.weight.device
    scores = torch.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, mask = pad([texts[i] for i in batch])
        scores[batch] = reward_model(ids.to(device), mask.to(device)).float().cpu()
    return scores


def score_normalisation(scores, centre_only=False):
    """Mean and unbiased standard deviation of raw reference scores (N,): two floats for `set_normalisation`.

    centre_only: std is 1, so that differences of scores stay the log-odds that Bradley-Terry made of them.
    Raises ValueError for a non-finite score, no score at all, or an std of fewer than 2 or of equal scores.
    """
    if len(scores) == 0 or not scores.isfinite().all():
        raise ValueError(
            f"score_normalisation: scores must be finite and at least 1, got {scores.tolist()}"
        )
    if centre_only:
        return scores.double().mean().item(), 1.0
    if len(scores) < 2 or (scores == scores[0]).all():
        raise ValueError(
            "score_normalisation: scores needs 2 different entries for an std, "
            f"got {scores.tolist()}"
        )
    return scores.double().mean().item(), scores.double().std(correction=1).item()
