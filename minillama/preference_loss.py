"""Losses that teach a reward model from people's judgements: comparisons and safety labels.

Conventions. A positive difference chosen - rejected is right. A margin is *subtracted* from it, so that a
comparison with margin m asks for m more.  "mean" is over the pairs (or answers) of the batch.

Bradley and Terry 1952 have the model, P(a beats b) = sigmoid(score_a - score_b); Stiennon et al. 2020 (arXiv
2009.01325, section 3.4) its loss for language models; Llama 2 (2307.09288, equations 1 and 2) the margin; Yang
et al. 2024 (2406.10216) the language-modelling term; Eisenstein et al. 2023 (2312.09244) the centring term.
Left out: ties, and rankings of more than two answers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minillama.data import Example, endless_batches, pad, pad_examples
from minillama.fast import lm_loss_of
from minillama.optim import Stepper, warmup_cosine

# Margins by strength, weakest first, in units of score (Llama 2, appendix A.3.3, table 27).
MARGINS = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (0.0, 1 / 3, 2 / 3, 1.0),
    "large": (0.0, 1.0, 2.0, 3.0),
}


def _reduce(losses, reduction):
    """Mean, sum or neither of `losses` (B,); raises ValueError for an unknown reduction."""
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(
        f'preference_loss: reduction must be "mean", "sum" or "none", got {reduction!r}'
    )


def _check_pair_scores(name, chosen_scores, rejected_scores):
    """Floating point, (B,) alike with B >= 1, finite; else TypeError or ValueError in the name of the caller."""
    if not (chosen_scores.is_floating_point() and rejected_scores.is_floating_point()):
        raise TypeError(
            f"{name}: chosen_scores and rejected_scores must be floating point, "
            f"got {chosen_scores.dtype} and {rejected_scores.dtype}"
        )
    if (
        chosen_scores.ndim != 1
        or len(chosen_scores) == 0
        or rejected_scores.shape != chosen_scores.shape
    ):
        raise ValueError(
            f"{name}: chosen_scores and rejected_scores must be (B,) alike, B >= 1, "
            f"got {tuple(chosen_scores.shape)} and {tuple(rejected_scores.shape)}"
        )
    if not (chosen_scores.isfinite() & rejected_scores.isfinite()).all():
        raise ValueError(
            f"{name}: chosen_scores and rejected_scores must be finite, "
            f"got {chosen_scores.tolist()} and {rejected_scores.tolist()}"
        )


def bradley_terry_loss(chosen_scores, rejected_scores, margin=None, reduction="mean"):
    """Negative log-likelihood, in nats, that the chosen answer beats the rejected one by the margin.

        -logsigmoid(chosen - rejected - margin)

    chosen_scores, rejected_scores: float (B,), one finite score per answer. margin: None (= 0), a number or
    a tensor (B,), finite, >= 0, in units of score. reduction: "mean" or "sum" over pairs, or "none", (B,).
    Equal scores without margin give ln 2. Source: Llama 2, equation 2.
    Raises TypeError for integer scores, ValueError for other shapes (a margin (B, 1) would make a (B, B)
    loss), an empty batch, a non-finite score, a non-finite or negative margin, an unknown reduction.
    """
    _check_pair_scores("bradley_terry_loss", chosen_scores, rejected_scores)
    margin = torch.as_tensor(
        0.0 if margin is None else margin,
        dtype=chosen_scores.dtype,
        device=chosen_scores.device,
    )
    if margin.shape not in ((), chosen_scores.shape):
        raise ValueError(
            f"bradley_terry_loss: margin must be a number or {tuple(chosen_scores.shape)}, "
            f"as the scores, got {tuple(margin.shape)}"
        )
    if not (margin.isfinite() & (margin >= 0)).all():
        raise ValueError(
            f"bradley_terry_loss: margin must be finite and >= 0, got {margin.tolist()}"
        )

    losses = -F.logsigmoid(chosen_scores - rejected_scores - margin)  # (B,)
    return _reduce(losses, reduction)


def safety_label_loss(scores, labels, reduction="mean"):
    """Binary cross-entropy, in nats, of sigmoid(score) on the annotators' safe/unsafe labels.

        -logsigmoid(score) for the label 1 (safe),   -logsigmoid(-score) for the label 0 (unsafe)

    scores: float (B,), finite. labels: (B,), boolean or 0/1. reduction: "mean" or "sum" over answers, or
    "none", (B,). It fixes the zero of the score, which comparisons leave free, so that sigmoid(score) can be
    read as the probability of being safe.
    Raises TypeError for integer scores, ValueError for other shapes, an empty batch, a non-finite score, a
    label other than 0 and 1, an unknown reduction.
    """
    if not scores.is_floating_point():
        raise TypeError(
            f"safety_label_loss: scores must be floating point, got {scores.dtype}"
        )
    if scores.ndim != 1 or len(scores) == 0 or labels.shape != scores.shape:
        raise ValueError(
            "safety_label_loss: scores and labels must be (B,) alike, B >= 1, "
            f"got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError(
            f"safety_label_loss: scores must be finite, got {scores.tolist()}"
        )
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            f"safety_label_loss: labels must be 0 (unsafe) or 1 (safe), got {labels.tolist()}"
        )

    labels = labels.to(scores.dtype)
    losses = F.binary_cross_entropy_with_logits(
        scores, labels, reduction="none"
    )  # (B,)
    return _reduce(losses, reduction)


def centring_loss(chosen_scores, rejected_scores, reduction="mean"):
    """Square of the sum of both scores of a pair: a pull of every pair's mean score towards 0.

        (chosen + rejected)^2

    Arguments, shapes and errors as for `bradley_terry_loss`, without a margin; in units of score squared. A
    comparison sees the difference of two scores alone, this term their sum alone: for one pair both can have what
    they want. Over many pairs of the same answers they pull against each other, and the weight decides.
    Source: Eisenstein et al. 2023 (arXiv 2312.09244), equation 3.
    """
    _check_pair_scores("centring_loss", chosen_scores, rejected_scores)
    return _reduce((chosen_scores + rejected_scores).square(), reduction)


@dataclass(frozen=True)
class RewardSettings:
    """One run of reward modelling; one epoch, as Llama 2 found best (section 3.2.2)."""

    epochs: int = 1
    batch_size: int = 16  # prompts, each with all comparisons of its answers
    lr: float = 8e-4  # peak
    warmup_steps: int = 40
    label_weight: float = (
        0.0  # weight of `safety_label_loss`; 0 for a model that has no labels to learn
    )
    lm_weight: float = 0.0  # weight of `chosen_lm_loss`; more than 0 needs a reward model with an lm_head
    centre_weight: float = 0.0  # weight of `centring_loss`


def pair_scores(reward_model, pairs):
    """Scores of the chosen and of the rejected dialogues, two (B,) tensors, in one concatenated forward.

    A text that stands in several pairs is read once: with all 28 comparisons of 8 answers to a prompt, 8 texts
    serve 28 pairs (Ouyang et al. 2022, arXiv 2203.02155, section 3.5).
    """
    device = next(reward_model.parameters()).device
    texts = list(
        dict.fromkeys(
            tuple(text) for pair in pairs for text in (pair.chosen, pair.rejected)
        )
    )
    ids, mask = pad(texts)  # (N, T), N distinct texts
    scores = reward_model(ids.to(device), mask.to(device))  # (N,)
    place = {text: i for i, text in enumerate(texts)}
    return (
        scores[[place[tuple(pair.chosen)] for pair in pairs]],
        scores[[place[tuple(pair.rejected)] for pair in pairs]],
    )


def pair_loss(chosen, rejected, pairs, label_weight=0.0, centre_weight=0.0):
    """Bradley-Terry loss of scores (B,) with each pair's margin, plus the weighted safety-label and centring losses."""
    loss = bradley_terry_loss(
        chosen, rejected, chosen.new_tensor([pair.margin for pair in pairs])
    )
    if label_weight:
        labels = [pair.chosen_is_safe for pair in pairs] + [
            pair.rejected_is_safe for pair in pairs
        ]
        loss = loss + label_weight * safety_label_loss(
            torch.cat((chosen, rejected)), chosen.new_tensor(labels)
        )
    if centre_weight:
        loss = loss + centre_weight * centring_loss(chosen, rejected)
    return loss


def chosen_lm_loss(reward_model, pairs):
    """Next-token loss of the distinct chosen answers given their prompts, in nats per token of an answer.

    Keeps a reward model able to write (Yang et al. 2024, arXiv 2406.10216, section 3.2, "SFT regularization").
    Raises ValueError for a reward model without lm_head.
    """
    if reward_model.llama.lm_head is None:
        raise ValueError(
            "chosen_lm_loss: reward_model must be made with keep_lm_head=True, got one without lm_head"
        )
    device = next(reward_model.parameters()).device
    examples = {
        tuple(pair.chosen): Example(pair.chosen, pair.response_start) for pair in pairs
    }
    ids, mask, loss_mask = (
        x.to(device) for x in pad_examples(list(examples.values()))
    )  # (N, T) each
    return lm_loss_of(reward_model.llama, ids, mask, loss_mask)


def train_reward_model(reward_model, groups, settings, generator, desc=None):
    """Train on groups of `PairExample` in place; returns the loss of every step, in nats per pair.

    ``groups``: lists of pairs; the pairs of a group compare answers to one prompt and stay in one batch.
    ``generator`` (CPU) orders the batches. ``desc`` names the progress bar; None shows none.
    """
    lengths = [
        max(max(len(pair.chosen), len(pair.rejected)) for pair in group)
        for group in groups
    ]
    steps = settings.epochs * (len(groups) // settings.batch_size)
    batches = endless_batches(lengths, settings.batch_size, generator)
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
        chosen, rejected = pair_scores(reward_model, pairs)  # (B,), (B,)
        stepper.require_finite("scores", torch.cat((chosen, rejected)), batch)
        loss = pair_loss(
            chosen, rejected, pairs, settings.label_weight, settings.centre_weight
        )
        if settings.lm_weight:
            loss = loss + settings.lm_weight * chosen_lm_loss(reward_model, pairs)
        stepper.step(loss, batch)
        losses.append(loss.item())
    reward_model.eval()
    return losses
