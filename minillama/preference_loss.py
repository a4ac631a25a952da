"""Losses that teach a reward model from people's judgements: comparisons and labels.

Conventions. A positive difference chosen - rejected is right. A margin is *subtracted*
from it, so that a comparison with margin m asks for m more. "mean" is over the pairs
(or answers) of the batch.

Bradley and Terry 1952 have the model, P(a beats b) = sigmoid(score_a - score_b);
Stiennon et al. 2020 (arXiv 2009.01325, section 3.4) its loss for language models; Llama
2 (2307.09288, equations 1 and 2) the margin; Yang et al. 2024 (2406.10216) the
language-modelling term; Eisenstein et al. 2023 (2312.09244) the centring term. Left
out: ties, and rankings of more than two answers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minillama.contracts import expects
from minillama.data import Example, endless_batches, pad, pad_examples
from minillama.fast import lm_loss_of
from minillama.optim import Stepper, warmup_cosine

# Margins by strength, weakest first, in units of score (Llama 2, table 27).
MARGINS = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (0.0, 1 / 3, 2 / 3, 1.0),
    "large": (0.0, 1.0, 2.0, 3.0),
}


def reduce_losses(losses, reduction):
    """Return the "mean" or the "sum" of losses (B,), or, for "none", the losses."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


@expects(
    "chosen_scores, rejected_scores: finite float (B,)",
    "margin: None or finite number >= 0 or finite float (B,) >= 0",
    'reduction: "mean" or "sum" or "none"',
)
def bradley_terry_loss(chosen_scores, rejected_scores, margin=None, reduction="mean"):
    """Compute -log P, in nats, that the chosen answer beats the rejected by the margin.

        -logsigmoid(chosen - rejected - margin)

    margin: in units of score, one for all pairs or one each; None = 0. reduction: over
    pairs, to a scalar; "none" leaves (B,). Equal scores without margin give ln 2.
    Source: Llama 2, equation 2.
    """
    margin = 0.0 if margin is None else margin
    losses = -F.logsigmoid(chosen_scores - rejected_scores - margin)  # (B,)
    return reduce_losses(losses, reduction)


@expects(
    "scores: finite float (B,)",
    "labels: bool (B,) or float (B,) in [0, 1]",
    'reduction: "mean" or "sum" or "none"',
)
def safety_label_loss(scores, labels, reduction="mean"):
    """Compute the cross-entropy, in nats, of sigmoid(score) on safe/unsafe labels.

        -label * logsigmoid(score) - (1 - label) * logsigmoid(-score)

    labels: 1 or True = safe, 0 or False = unsafe; in between, the share of annotators
    who say safe. reduction: over answers, to a scalar; "none" leaves (B,). The term
    fixes the zero of the score, which comparisons leave free, so that sigmoid(score)
    can be read as the probability of being safe.
    """
    labels = labels.to(scores.dtype)
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    return reduce_losses(losses, reduction)


@expects(
    "chosen_scores, rejected_scores: finite float (B,)",
    'reduction: "mean" or "sum" or "none"',
)
def centring_loss(chosen_scores, rejected_scores, reduction="mean"):
    """Square the sum of both scores of a pair: a pull of every pair's mean towards 0.

        (chosen + rejected)^2

    In units of score squared. reduction: as for `bradley_terry_loss`. A comparison sees
    the difference of two scores alone, this term their sum alone: for one pair both can
    have what they want. Over many pairs of the same answers they pull against each
    other, and the weight decides. Source: Eisenstein et al. 2023 (arXiv 2312.09244),
    equation 3.
    """
    return reduce_losses((chosen_scores + rejected_scores).square(), reduction)


@expects(
    "epochs, batch_size: int >= 1",
    "lr: finite number >= 0",
    "warmup_steps: int >= 0",
    "label_weight, lm_weight, centre_weight: finite number >= 0",
)
@dataclass(frozen=True)
class RewardSettings:
    """One run of reward modelling; one epoch, as Llama 2 found best (section 3.2.2)."""

    epochs: int = 1  # The loop passes over all groups so often.
    batch_size: int = 16  # Each step sees so many prompts, with all their comparisons.
    lr: float = 8e-4  # The learning rate peaks here, after the warm-up.
    warmup_steps: int = 40  # The learning rate climbs for so many steps.
    label_weight: float = 0.0  # `safety_label_loss` counts so much; 0 = no labels.
    lm_weight: float = 0.0  # `chosen_lm_loss` counts so much; above 0 needs an lm_head.
    centre_weight: float = 0.0  # `centring_loss` counts so much.


@expects(
    "reward_model: Module",
    "pairs: list of PairExample (B,)",
    "-> float (B,)",
    "-> float (B,)",
)
def pair_scores(reward_model, pairs):
    """Score the chosen and the rejected dialogues in one concatenated forward.

    A text that stands in several pairs is read once: with all 28 comparisons of 8
    answers to a prompt, 8 texts serve 28 pairs (Ouyang et al. 2022, arXiv 2203.02155,
    section 3.5).
    """
    device = next(reward_model.parameters()).device
    sides = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    row = {text: i for i, text in enumerate(dict.fromkeys(map(tuple, sides)))}
    ids, mask = pad(list(row))  # (N, T), N distinct texts
    scores = reward_model(ids.to(device), mask.to(device))  # (N,)
    chosen = [row[tuple(pair.chosen)] for pair in pairs]
    rejected = [row[tuple(pair.rejected)] for pair in pairs]
    return scores[chosen], scores[rejected]


@expects(
    "chosen, rejected: finite float (B,)",
    "pairs: list of PairExample (B,)",
    "label_weight, centre_weight: finite number >= 0",
    "-> float ()",
)
def pair_loss(chosen, rejected, pairs, label_weight=0.0, centre_weight=0.0):
    """Add up the losses of scored pairs: Bradley-Terry, safety labels, centring.

        Bradley-Terry with each pair's margin
        + label_weight * safety-label loss + centre_weight * centring loss

    chosen, rejected: scores, as from `pair_scores`. Every term is a mean, over pairs
    or, for the labels, over both answers of all pairs.
    """
    margins = chosen.new_tensor([pair.margin for pair in pairs])  # (B,)
    loss = bradley_terry_loss(chosen, rejected, margins)
    if label_weight:
        labels = [pair.chosen_is_safe for pair in pairs]
        labels += [pair.rejected_is_safe for pair in pairs]
        scores = torch.cat((chosen, rejected))  # (2B,)
        labels = chosen.new_tensor(labels)  # (2B,)
        loss = loss + label_weight * safety_label_loss(scores, labels)
    if centre_weight:
        loss = loss + centre_weight * centring_loss(chosen, rejected)
    return loss


@expects(
    "reward_model: RewardModel",
    "pairs: list of PairExample (B,)",
    "-> float ()",
)
def chosen_lm_loss(reward_model, pairs):
    """Compute the next-token loss of the distinct chosen answers, given their prompts.

    In nats per token of an answer. It keeps a reward model able to write (Yang et al.
    2024, arXiv 2406.10216, section 3.2, "SFT regularization"), and needs its lm_head.
    """
    if reward_model.llama.lm_head is None:
        raise ValueError(
            "chosen_lm_loss: reward_model must be made with keep_lm_head=True, "
            "got one without lm_head"
        )
    device = next(reward_model.parameters()).device
    starts = {tuple(pair.chosen): pair.response_start for pair in pairs}
    examples = [Example(list(text), start) for text, start in starts.items()]
    ids, mask, loss_mask = (x.to(device) for x in pad_examples(examples))  # (N, T) each
    # equals lm_loss(reward_model.llama(ids, mask), ids, loss_mask)
    return lm_loss_of(reward_model.llama, ids, mask, loss_mask)


@expects(
    "reward_model: Module",
    "groups: lists of PairExample none empty",
    "settings: RewardSettings",
    "generator: Generator",
    "desc: text or None",
)
def train_reward_model(reward_model, groups, settings, generator, desc=None):
    """Train on groups of pairs in place; return the loss of every step, nats per pair.

    The pairs of a group compare answers to one prompt and stay in one batch.
    `generator` (CPU) orders the batches. `desc` names the progress bar; None shows
    none. Trains in train mode and leaves the model in eval mode.
    """
    if len(groups) < settings.batch_size:
        raise ValueError(
            "train_reward_model: groups must be at least settings.batch_size = "
            f"{settings.batch_size}, got {len(groups)}"
        )
    if settings.lm_weight and reward_model.llama.lm_head is None:
        raise ValueError(
            "train_reward_model: reward_model must be made with keep_lm_head=True for "
            "an lm_weight above 0, got one without lm_head"
        )
    steps = settings.epochs * (len(groups) // settings.batch_size)
    batches = endless_batches(len(groups), settings.batch_size, generator)
    stepper = Stepper(
        reward_model,
        settings.lr,
        lambda step: warmup_cosine(step, steps, settings.warmup_steps),
    )
    reward_model.train()
    losses = []
    for _ in tqdm(range(steps), desc=desc, disable=desc is None):
        batch = next(batches)
        pairs = [pair for i in batch for pair in groups[i]]
        scores = pair_scores(reward_model, pairs)  # chosen and rejected, (B,) each
        stepper.require_finite("scores", torch.cat(scores), batch)
        loss = pair_loss(*scores, pairs, settings.label_weight, settings.centre_weight)
        if settings.lm_weight:
            loss = loss + settings.lm_weight * chosen_lm_loss(reward_model, pairs)
        stepper.step(loss, batch)
        losses.append(loss.item())
    reward_model.eval()
    return losses
