"""Checks of lessons 07 to 13 and 25 pass the package and fail plausible mistakes."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from mistakes import (
    altered,
    both_tests,
    by_default,
    detached,
    in_float32,
    limited,
    of_the_first_row,
    overwriting,
    rounded,
    row_means,
    seeding,
    switching,
)

from minillama import (
    arena,
    audit,
    best_of_n,
    data,
    evidence,
    exact,
    lm,
    preference_loss,
    reward_model,
    reward_selection,
    whiten,
    world,
)
from minillama.course import checks
from minillama.data import pad

RIGHT = {
    "sigmoid": world.sigmoid,
    "annotator": world.Annotator,
    "bayes_ceiling": world.bayes_ceiling,
    "expected_accuracy": world.expected_accuracy,
    "fit_strengths": arena.fit_strengths,
    "strength_errors": arena.strength_errors,
    "last_token": reward_model.last_token,
    "pool_mean": reward_model.pool_mean,
    "reward_model": reward_model.RewardModel,
    "bradley_terry_loss": preference_loss.bradley_terry_loss,
    "pair_scores": preference_loss.pair_scores,
    "pair_example": data.pair_example,
    "outcome_chances": exact.outcome_chances,
    "margin_slope": exact.margin_slope,
    "margin_minimiser": exact.margin_minimiser,
    "centring_loss": preference_loss.centring_loss,
    "chosen_lm_loss": preference_loss.chosen_lm_loss,
    "chosen_chance": best_of_n.chosen_chance,
    "score_normalisation": reward_model.score_normalisation,
    "length_only_accuracy": audit.length_only_accuracy,
    "brier_score": audit.brier_score,
    "brier_floor": audit.brier_floor,
    "length_balanced": audit.length_balanced,
    "safety_label_loss": preference_loss.safety_label_loss,
    "select_reward": reward_selection.select_reward,
    "wilson_interval": evidence.wilson_interval,
    "bootstrap_interval": evidence.bootstrap_interval,
    "intraclass_correlation": evidence.intraclass_correlation,
    "roc_curve": audit.roc_curve,
    "auc": audit.auc,
}


def reduced(losses, reduction):
    return losses if reduction == "none" else getattr(losses, reduction)()


def naive_bt(chosen, rejected, margin=None, reduction="mean"):
    preference_loss.bradley_terry_loss(chosen, rejected, margin, reduction)
    losses = -torch.log(
        torch.sigmoid(chosen - rejected - (0.0 if margin is None else margin))
    )
    return reduced(losses, reduction)


def broadcasting_bt(chosen, rejected, margin=None, reduction="mean"):
    losses = -F.logsigmoid(chosen - rejected - (0.0 if margin is None else margin))
    return reduced(losses, reduction)


class Swapped(reward_model.RewardModel):
    fault = ""

    def raw_scores(self, ids, mask=None):
        hidden = self.llama.hidden(ids, mask)
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if self.fault == "last column":
            pooled = hidden[:, -1]
        elif self.fault == "count":
            pooled = hidden[torch.arange(len(ids)), mask.sum(1) - 1]
        else:
            pooled = (
                hidden[reward_model.last_token(mask)]
                if self.pooling == "last"
                else hidden.mean(1)
            )
        return self.score(pooled).squeeze(-1)


class LastColumn(Swapped):
    fault = "last column"


class CountsFromTheLeft(Swapped):
    fault = "count"


class MeanOverPadding(Swapped):
    pass


class HeadTooSmall(reward_model.RewardModel):
    def __init__(self, llama, pooling="last", keep_lm_head=False, generator=None):
        super().__init__(llama, pooling, keep_lm_head, generator)
        self.score.weight.data /= math.sqrt(llama.config.dim + 1)


class NormalisesInTraining(reward_model.RewardModel):
    def forward(self, ids, mask=None):
        return (self.raw_scores(ids, mask) - self.score_mean) / self.score_std


def pair_scores_of(texts_of, masked=True, forwards=1):
    """`pair_scores` with faults: texts read twice, no mask, two forwards."""

    def f(model, pairs):
        texts = texts_of(pairs)
        ids, mask = pad(texts)
        call = (ids, mask) if masked else (ids,)
        scores = [model(*call) for _ in range(forwards)][0]
        place = [
            texts.index(text) for pair in pairs for text in (pair.chosen, pair.rejected)
        ]
        return scores[place[0::2]], scores[place[1::2]]

    return f


def all_texts(pairs):
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def distinct_texts(pairs):
    return [list(text) for text in dict.fromkeys(map(tuple, all_texts(pairs)))]


def annotator_class(**methods):
    """`world.Annotator` with other methods."""
    return type("Other", (world.Annotator,), methods)


def without_noise(self, rng, prompt, a, b):
    certain = annotator_class()(self.gold, 1e-3, thresholds=self.thresholds)
    return certain.compare(rng, prompt, a, b)


def strength_of_utilities(self, rng, prompt, a, b):
    preference = world.Annotator.compare(self, rng, prompt, a, b)
    size = abs(self.utility(prompt, a) - self.utility(prompt, b)) / self.temperature
    return dataclasses.replace(
        preference, strength=sum(size >= threshold for threshold in self.thresholds)
    )


def ceiling_by(share):
    """`bayes_ceiling` with another accuracy share(p) of a pair."""

    def f(annotator, preferences):
        p = [annotator.prefers(x.prompt, x.chosen, x.rejected) for x in preferences]
        return sum(map(share, p)) / len(p), world.bayes_ceiling(annotator, preferences)[
            1
        ]

    return f


def unbalanced(keep):
    """`length_balanced` with another rule keep(longer_by)."""

    def f(groups, length, rng):
        left = [
            [x for x in group if keep(length(x.chosen) - length(x.rejected))]
            for group in groups
        ]
        return [group for group in left if group]

    return f


def replaced(**fields):
    """`pair_example` with some fields of its result computed from it."""
    return altered(
        data.pair_example,
        lambda pair: dataclasses.replace(
            pair, **{k: f(pair) for k, f in fields.items()}
        ),
    )


def unrefused_minimiser(start):
    """A search from a fixed interval, which refuses what has no minimum."""

    def f(wins, losses, margins):
        exact.margin_minimiser(wins, losses, margins)
        low, high = torch.full(
            (2, len(wins)), start, dtype=torch.float64
        ) * torch.tensor([[-1.0], [1.0]])
        for _ in range(60):
            falls = exact.margin_slope((low + high) / 2, wins, losses, margins) < 0
            low, high = (
                torch.where(falls, (low + high) / 2, low),
                torch.where(falls, high, (low + high) / 2),
            )
        return low

    return f


def log_odds(wins, losses, margins):
    exact.margin_minimiser(wins, losses, margins)
    return (wins.sum(1) / losses.sum(1)).log()


def centring_by(square):
    """`centring_loss` with another loss square(chosen, rejected) of a pair."""

    def f(chosen, rejected, reduction="mean"):
        preference_loss.centring_loss(chosen, rejected)  # its refusals
        losses = square(chosen, rejected)
        return reduced(losses, reduction)

    return f


def squared_mean(chosen, rejected, reduction="mean"):
    if reduction == "mean":
        return (chosen + rejected).mean().square()
    return preference_loss.centring_loss(chosen, rejected, reduction)


def speaking(texts_of, shift=1, mean=None, start=None):
    """`chosen_lm_loss` with other texts, another shift, mean or start of the loss."""

    def f(reward_model, pairs):
        preference_loss.chosen_lm_loss(reward_model, pairs)  # its refusals
        examples = [
            data.Example(text, begin if start is None else start)
            for text, begin in texts_of(pairs)
        ]
        ids, mask, loss_mask = data.pad_examples(examples)
        logits = reward_model.llama(ids, mask)
        if shift == 0:
            return F.cross_entropy(logits[loss_mask], ids[loss_mask])
        if shift == 2:  # shifted by hand, and once more inside
            return lm.lm_loss(
                logits[:, :-1],
                ids[:, 1:],
                loss_mask[:, 1:] & (torch.arange(1, ids.shape[1]) > 1),
            )
        return -(mean or whiten.masked_mean)(lm.token_logprobs(logits, ids), loss_mask)

    return f


def all_chosen(pairs):
    return [(pair.chosen, pair.response_start) for pair in pairs]


def distinct_chosen(pairs):
    return [
        (list(text), start)
        for text, start in dict.fromkeys(
            (tuple(p.chosen), p.response_start) for p in pairs
        )
    ]


def distinct_rejected(pairs):
    return [
        (list(text), start)
        for text, start in dict.fromkeys(
            (tuple(p.rejected), p.response_start) for p in pairs
        )
    ]


def without_gradient(model, pairs):
    return preference_loss.chosen_lm_loss(model, pairs).detach().requires_grad_()


def normalising(std=lambda x: x.std(), mean=lambda x: x.mean(), checked=True):
    """`score_normalisation` with another std or mean, or without its refusals."""

    def f(scores, centre_only=False):
        if checked:
            reward_model.score_normalisation(scores, centre_only)
        scores = scores.double()
        return mean(scores).item(), 1.0 if centre_only else std(scores).item()

    return f


def chosen_by(loses=None, chance=None):
    """`chosen_chance` with another chance to lose, or to be chosen given that."""

    def f(utilities, others, n, temperature=1.0):
        best_of_n.chosen_chance(utilities, others, n, temperature)  # its refusals
        behind = (others.double() - utilities[:, None]) / temperature  # (N, M)
        p = (loses or (lambda x: torch.sigmoid(x).mean(1)))(behind)
        return (chance or (lambda p, n: 1 - p ** (n - 1)))(p, n)

    return f


def test_other_roads_to_the_chosen_pass(capsys):
    checks.chosen_chance(chosen_by(lambda x: (1 / (1 + (-x).exp())).mean(1)))
    checks.chosen_chance(
        chosen_by(chance=lambda p, n: -torch.expm1((n - 1) * torch.log(p)))
    )


def after_passes(passes, explained=None):
    """`fit_strengths` stopped early, or with other games that strengths explain."""

    def f(wins):
        arena.require_connected(wins.double())
        wins = wins.double()
        games = wins + wins.mT if explained is None else explained(wins)
        strengths = torch.zeros_like(wins[..., 0])
        for _ in range(passes):
            p = torch.sigmoid(strengths[..., :, None] - strengths[..., None, :])
            strengths = strengths + (wins.sum(-1) / (games * p).sum(-1)).log()
            strengths = strengths - strengths.mean(-1, keepdim=True)
        return strengths

    return f


def by_newton(wins):
    """`fit_strengths` by another road: Newton's method on the log-likelihood."""
    arena.require_connected(wins.double())
    wins = wins.double()
    games = wins + wins.mT
    strengths = torch.zeros_like(wins[..., 0])
    for _ in range(30):
        p = torch.sigmoid(strengths[..., :, None] - strengths[..., None, :])
        slope = (wins - games * p).sum(-1)
        w = games * p * (1 - p)
        information = torch.diag_embed(w.sum(-1)) - w
        strengths = (
            strengths + (torch.linalg.pinv(information) @ slope[..., None])[..., 0]
        )
    return strengths


def share_of_games(wins):
    """The log-odds of the share of games won, whoever the opponent was."""
    arena.require_connected(wins.double())
    won = wins.double().sum(-1) / (wins + wins.mT).double().sum(-1)
    strengths = (won / (1 - won)).log()
    return strengths - strengths.mean(-1, keepdim=True)


def pseudo_inverse(information):
    return torch.linalg.pinv(information, rtol=1e-6, hermitian=True)


def errors_by(invert, weight=lambda p: p * (1 - p)):
    """`strength_errors` with another inverse, or another weight of a game."""

    def f(wins, strengths):
        p = torch.sigmoid(strengths[..., :, None] - strengths[..., None, :]).double()
        w = (wins + wins.mT).double() * weight(p)
        information = torch.diag_embed(w.sum(-1)) - w
        return invert(information).diagonal(dim1=-2, dim2=-1).sqrt()

    return f


def test_other_roads_to_the_strengths_pass(capsys):
    checks.fit_strengths(by_newton)
    checks.fit_strengths(after_passes(500))
    checks.strength_errors(errors_by(pseudo_inverse))


def wald(share, n, z=1.96):
    half = z * (share * (1 - share) / n) ** 0.5
    return max(0.0, share - half), min(1.0, share + half)


def plus_four(share, n, z=1.96):
    """Agresti and Coull's interval, which is another one."""
    return wald((share * n + z * z / 2) / (n + z * z), n + z * z, z)


def resampling(
    size=lambda units: units,
    tails=lambda level: ((1 - level) / 2, (1 + level) / 2),
    mean=lambda sums, sizes, drawn: sums[drawn].sum(1) / sizes[drawn].sum(1),
    grouped=True,
    seeded=True,
    checked=True,
):
    """`bootstrap_interval` in other words, each of which may be wrong."""

    def f(values, generator, groups=None, draws=1000, level=0.95):
        if checked:
            evidence.bootstrap_interval(values, _fresh(), groups, draws, level)
        names = list(range(len(values)) if groups is None or not grouped else groups)
        units = sorted(set(names))
        rows = [
            [v for v, name in zip(values, names, strict=True) if name == u]
            for u in units
        ]
        sums = torch.tensor([sum(row) for row in rows])
        sizes = torch.tensor([len(row) for row in rows])
        source = generator if seeded else None
        shape = (draws, size(len(units)))
        drawn = torch.randint(len(units), shape, generator=source)
        means = mean(sums, sizes, drawn).double()
        return tuple(means.quantile(x).item() for x in tails(level))

    return f


def _fresh():
    return torch.Generator().manual_seed(0)


def correlating(between=None, within=None, formula=None, checked=True):
    """`intraclass_correlation` in other words, each of which may be wrong."""
    between = between or (lambda x: x.shape[1] * x.mean(1).var())
    within = within or (lambda x: x.var(1).mean())
    formula = formula or (lambda b, w, K: (b - w) / (b + (K - 1) * w))

    def f(values):
        if checked:
            evidence.intraclass_correlation(values)
        x = values.double()
        return formula(between(x), within(x), x.shape[1]).item()

    return f


def curve_by_thresholds(
    flag=lambda scores, t: scores >= t, per=None, start=True, ties=False, checked=True
):
    """`roc_curve` in other words, each of which may be wrong."""

    def f(scores, labels):
        if checked:
            audit.roc_curve(scores, labels)
        levels = sorted(scores.tolist() if ties else set(scores.tolist()), reverse=True)
        points = [(0.0, 0.0)] if start else []
        for t in levels:
            flagged = flag(scores, t)
            points.append(
                [
                    (flagged & kind).sum().item() / (per or kind.sum().item())
                    for kind in (~labels, labels)
                ]
            )
        return tuple(torch.tensor(points, dtype=torch.float64).T)

    return f


def curve_by_sorting(scores, labels):
    """`roc_curve` as one pass over the answers, which keeps the last of equal ones."""
    audit.roc_curve(scores, labels)
    order = scores.argsort(descending=True)
    sorted_scores, sorted_labels = scores[order], labels[order]
    last = torch.cat((sorted_scores.diff() != 0, torch.tensor([True])))
    counts = [(~sorted_labels).cumsum(0), sorted_labels.cumsum(0)]
    return tuple(F.pad(x[last] / x[-1], (1, 0)).double() for x in counts)


def by_pairs(tie=0.5, value=lambda x: x, count=None):
    """`auc` as a count of pairs, perhaps a wrong one."""

    def f(scores, labels):
        audit.auc(scores, labels)
        bad, good = scores[labels], scores[~labels]
        apart = bad[:, None] - good
        points = (apart > 0).double() + tie * (apart == 0).double()
        return value(points.sum().item() / (count or points.numel()))

    return f


WRONG = [
    ("sigmoid", lambda x: 1 - world.sigmoid(-x)),
    ("sigmoid", lambda x: world.sigmoid(-x)),
    ("sigmoid", lambda x: 0.5 + 0.5 * math.tanh(x)),
    (
        "annotator",
        annotator_class(
            prefers=lambda self, prompt, a, b: world.Annotator.prefers(
                self, prompt, b, a
            )
        ),
    ),
    (
        "annotator",
        annotator_class(
            prefers=lambda self, prompt, a, b: world.sigmoid(
                (self.utility(prompt, a) - self.utility(prompt, b)) * self.temperature
            )
        ),
    ),
    (
        "annotator",
        annotator_class(
            utility=lambda self, prompt, text: (
                self.gold(prompt, text) + self.length_bias * len(text)
            )
        ),
    ),
    ("annotator", annotator_class(compare=without_noise)),
    ("annotator", annotator_class(compare=strength_of_utilities)),
    ("bayes_ceiling", ceiling_by(lambda p: p)),
    ("bayes_ceiling", ceiling_by(lambda p: p * p + (1 - p) * (1 - p))),
    (
        "bayes_ceiling",
        altered(world.bayes_ceiling, lambda x: (x[0], x[1] / math.log(2))),
    ),
    ("bayes_ceiling", altered(world.bayes_ceiling, lambda x: (x[0], -math.log(x[0])))),
    ("fit_strengths", after_passes(3)),
    ("fit_strengths", after_passes(500, lambda wins: 2 * wins)),
    ("fit_strengths", share_of_games),
    ("fit_strengths", lambda wins: -arena.fit_strengths(wins)),
    (
        "fit_strengths",
        altered(arena.fit_strengths, lambda x: x - x[..., :1]),
    ),
    (
        "fit_strengths",
        altered(arena.fit_strengths, lambda x: x / math.log(10)),
    ),
    (
        "strength_errors",
        errors_by(pseudo_inverse, weight=lambda p: torch.full_like(p, 0.25)),
    ),
    (
        "strength_errors",
        errors_by(lambda x: torch.diag_embed(1 / x.diagonal(dim1=-2, dim2=-1))),
    ),
    ("strength_errors", altered(arena.strength_errors, torch.square)),
    ("strength_errors", altered(arena.strength_errors, lambda x: x * math.sqrt(2))),
    (
        "strength_errors",
        lambda wins, strengths: arena.strength_errors(wins / 2, strengths),
    ),
    (
        "expected_accuracy",
        lambda annotator, pairs, shares: sum(map(float, shares)) / len(pairs),
    ),
    (
        "expected_accuracy",
        lambda annotator, pairs, shares: world.expected_accuracy(
            annotator, pairs, [not x for x in shares]
        ),
    ),
    (
        "expected_accuracy",
        lambda a, pairs, shares: world.expected_accuracy(
            a, pairs, [x > 0.5 for x in shares]
        ),
    ),
    (
        "last_token",
        lambda mask: torch.arange(mask.shape[1]).expand_as(mask) == mask.shape[1] - 1,
    ),
    (
        "last_token",
        lambda mask: torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1,
    ),
    ("last_token", lambda mask: mask),
    ("last_token", lambda mask: reward_model.last_token(mask).float()),
    ("pool_mean", lambda x, mask: x.mean(1)),
    (
        "pool_mean",
        lambda x, mask: (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True),
    ),
    (
        "pool_mean",
        lambda x, mask: reward_model.pool_mean(x, mask) * mask.sum(1, keepdim=True),
    ),
    ("pool_mean", lambda x, mask: x.masked_fill(~mask[:, :, None], 0.0).mean(1)),
    ("reward_model", LastColumn),
    ("reward_model", CountsFromTheLeft),
    ("reward_model", MeanOverPadding),
    ("reward_model", HeadTooSmall),
    ("reward_model", NormalisesInTraining),
    ("bradley_terry_loss", naive_bt),
    ("bradley_terry_loss", broadcasting_bt),
    (
        "bradley_terry_loss",
        lambda c, r, m=None, reduction="mean": preference_loss.bradley_terry_loss(
            r, c, m, reduction
        ),
    ),
    (
        "bradley_terry_loss",
        lambda c, r, m=None, reduction="mean": preference_loss.bradley_terry_loss(
            c, r, None, reduction
        ),
    ),
    ("pair_scores", pair_scores_of(all_texts)),
    ("pair_scores", pair_scores_of(distinct_texts, masked=False)),
    ("pair_scores", pair_scores_of(distinct_texts, forwards=2)),
    ("pair_scores", altered(preference_loss.pair_scores, lambda result: result[::-1])),
    (
        "pair_scores",
        altered(
            preference_loss.pair_scores,
            lambda result: [x.detach() + 0 * x for x in result],
        ),
    ),
    (
        "pair_example",
        lambda t, x, margins=(0.0,) * 4: data.pair_example(t, x, margins[::-1]),
    ),
    ("pair_example", lambda t, x, margins=(0.0,) * 4: data.pair_example(t, x)),
    (
        "pair_example",
        lambda t, x, margins=(0.0, 1.0, 2.0, 3.0): data.pair_example(t, x, margins),
    ),
    (
        "pair_example",
        replaced(chosen=lambda x: x.rejected, rejected=lambda x: x.chosen),
    ),
    ("pair_example", replaced(response_start=lambda x: 1)),
    ("pair_example", replaced(rejected_is_safe=lambda x: x.chosen_is_safe)),
    (
        "pair_example",
        replaced(
            chosen=lambda x: x.chosen[x.response_start :],
            rejected=lambda x: x.rejected[x.response_start :],
        ),
    ),
    ("outcome_chances", lambda d, thresholds: exact.outcome_chances(-d, thresholds)),
    ("outcome_chances", altered(exact.outcome_chances, lambda x: (x[0] + x[1], x[1]))),
    (
        "outcome_chances",
        altered(
            exact.outcome_chances,
            lambda x: (x[0] / x[0].sum(1, True), x[1] / x[1].sum(1, True)),
        ),
    ),
    (
        "outcome_chances",
        lambda d, thresholds: [
            torch.nn.functional.one_hot(
                (s * d[:, None] >= torch.tensor(thresholds)).sum(1), len(thresholds) + 1
            )
            * (s * d > 0)[:, None]
            for s in (1, -1)
        ],
    ),
    ("margin_slope", altered(exact.margin_slope, torch.neg)),
    ("margin_slope", altered(exact.margin_slope, lambda x: x.sum())),
    (
        "margin_slope",
        lambda d, wins, losses, m: exact.margin_slope(d, wins, losses, -m),
    ),
    (
        "margin_slope",
        lambda d, wins, losses, m: (
            exact.margin_slope(d, wins, 0 * losses, m)
            + exact.margin_slope(d, 0 * wins, losses, 0 * m)
        ),
    ),
    (
        "margin_slope",
        lambda d, wins, losses, m: (
            exact.margin_slope(d, wins, losses, m) / wins.shape[1]
        ),
    ),
    ("margin_minimiser", unrefused_minimiser(10.0)),
    ("margin_minimiser", log_odds),
    ("margin_minimiser", altered(exact.margin_minimiser, torch.neg)),
    (
        "margin_minimiser",
        lambda wins, losses, m: (
            log_odds(wins, losses, m) + log_odds(wins, losses, m).sign() * m.mean()
        ),
    ),
    (
        "margin_minimiser",
        lambda wins, losses, m: exact.margin_minimiser(wins + 1e-9, losses + 1e-9, m),
    ),
    ("centring_loss", centring_by(lambda c, r: (c - r).square())),
    ("centring_loss", centring_by(lambda c, r: (c + r).abs())),
    ("centring_loss", centring_by(lambda c, r: c.square() + r.square())),
    ("centring_loss", centring_by(lambda c, r: ((c + r) / 2).square())),
    ("centring_loss", centring_by(lambda c, r: (c.detach() + r).square())),
    ("centring_loss", squared_mean),
    (
        "centring_loss",
        lambda c, r, reduction="mean": reduced((c + r) ** 2, reduction),
    ),
    ("chosen_lm_loss", speaking(distinct_chosen, shift=0)),
    ("chosen_lm_loss", speaking(distinct_chosen, shift=2)),
    ("chosen_lm_loss", speaking(distinct_chosen, start=1)),
    ("chosen_lm_loss", speaking(distinct_rejected)),
    ("chosen_lm_loss", speaking(all_chosen)),
    ("chosen_lm_loss", speaking(distinct_chosen, mean=row_means)),
    (
        "chosen_lm_loss",
        speaking(lambda pairs: distinct_chosen(pairs) + distinct_rejected(pairs)),
    ),
    ("chosen_lm_loss", without_gradient),
    ("chosen_chance", chosen_by(lambda x: torch.sigmoid(-x).mean(1))),
    ("chosen_chance", chosen_by(lambda x: torch.sigmoid(x.mean(1)))),
    ("chosen_chance", chosen_by(lambda x: (x > 0).float().mean(1))),
    ("chosen_chance", chosen_by(lambda x: torch.sigmoid(x).mean(0))),
    ("chosen_chance", chosen_by(chance=lambda p, n: 1 - p**n)),
    ("chosen_chance", chosen_by(chance=lambda p, n: (1 - p) ** (n - 1))),
    ("chosen_chance", chosen_by(chance=lambda p, n: (n - 1) * (1 - p))),
    (
        "chosen_chance",
        lambda u, others, n, temperature=1.0: best_of_n.chosen_chance(u, others, n),
    ),
    ("score_normalisation", normalising(std=lambda x: x.std(correction=0))),
    ("score_normalisation", normalising(std=torch.var)),
    ("score_normalisation", normalising(mean=torch.median)),
    ("score_normalisation", normalising(mean=lambda x: x.mean().abs())),
    ("score_normalisation", normalising(checked=False)),
    (
        "score_normalisation",
        lambda scores, centre_only=False: reward_model.score_normalisation(scores),
    ),
    (
        "score_normalisation",
        lambda scores, centre_only=False: tuple(
            torch.tensor(x)
            for x in reward_model.score_normalisation(scores, centre_only)
        ),
    ),
    (
        "score_normalisation",
        altered(
            reward_model.score_normalisation,
            lambda x: (x[0], 0.0 if x[1] == 1.0 else x[1]),
        ),
    ),
    ("length_only_accuracy", lambda by, exact: audit.agreement(by, exact)),
    (
        "length_only_accuracy",
        lambda by, exact: exact[by > 0].mean().item() if (by > 0).any() else 0.0,
    ),
    (
        "length_only_accuracy",
        lambda by, exact: audit.length_only_accuracy(by + 0.1, exact),
    ),
    ("brier_score", lambda q, p: (q - p).square().mean().item()),
    ("brier_score", lambda q, p: (1 - q).square().mean().item()),
    ("brier_score", lambda q, p: (q - (p > 0.5).float()).square().mean().item()),
    ("brier_floor", lambda p: torch.minimum(p * p, (1 - p) ** 2).mean().item()),
    ("brier_floor", lambda p: torch.minimum(p, 1 - p).mean().item()),
    ("brier_floor", lambda p: (p * (1 - p)).sum().item()),
    ("length_balanced", unbalanced(lambda by: True)),
    ("length_balanced", unbalanced(lambda by: abs(by) < 2)),
    ("length_balanced", unbalanced(lambda by: by == 0)),
    (
        "length_balanced",
        lambda groups, length, rng: [
            audit.length_balanced([group], length, rng)[0]
            if audit.length_balanced([group], length, rng)
            else []
            for group in groups
        ],
    ),
    (
        "safety_label_loss",
        lambda s, y, reduction="mean": preference_loss.safety_label_loss(
            -s, y, reduction
        ),
    ),
    (
        "safety_label_loss",
        lambda s, y, reduction="mean": preference_loss.safety_label_loss(s, y, "none"),
    ),
    (
        "safety_label_loss",
        lambda s, y, reduction="mean": preference_loss.safety_label_loss(
            torch.sigmoid(s), y, reduction
        ),
    ),
    (
        "select_reward",
        lambda s, h, flag, threshold=0.15: reward_selection.select_reward(
            h, s, flag, threshold
        ),
    ),
    (
        "select_reward",
        lambda s, h, flag, threshold=0.15: torch.where(s < threshold, s, h),
    ),
    (
        "select_reward",
        lambda s, h, flag, threshold=0.15: torch.where(flag | (s <= threshold), s, h),
    ),
    ("select_reward", lambda s, h, flag, threshold=0.15: torch.where(flag, s, h)),
    ("wilson_interval", wald),
    ("wilson_interval", plus_four),
    ("wilson_interval", lambda p, n, z=1.96: evidence.wilson_interval(p, n)),
    ("wilson_interval", lambda p, n, z=1.96: evidence.wilson_interval(p, n, z / 2)),
    ("wilson_interval", lambda p, n, z=1.96: evidence.wilson_interval(p, int(n), z)),
    (
        "wilson_interval",
        altered(evidence.wilson_interval, lambda x: (x[0], x[1] - x[0])),
    ),
    (
        "wilson_interval",
        lambda p, n, z=1.96: evidence.wilson_interval(p, max(n - 1, 0.5), z),
    ),
    ("bootstrap_interval", resampling(size=lambda units: 2 * units)),
    ("bootstrap_interval", resampling(size=lambda units: 1)),
    (
        "bootstrap_interval",
        resampling(tails=lambda level: (1 - level, level)),
    ),
    ("bootstrap_interval", resampling(tails=lambda level: (0.025, 0.975))),
    ("bootstrap_interval", resampling(grouped=False)),
    ("bootstrap_interval", resampling(seeded=False)),
    ("bootstrap_interval", resampling(checked=False)),
    (
        "bootstrap_interval",
        resampling(mean=lambda sums, sizes, drawn: (sums / sizes)[drawn].mean(1)),
    ),
    (
        "bootstrap_interval",
        resampling(mean=lambda sums, sizes, drawn: sums[drawn].mean(1)),
    ),
    (
        "bootstrap_interval",
        lambda v, g, groups=None, draws=1000, level=0.95: evidence.bootstrap_interval(
            v, g, groups, 1000, level
        ),
    ),
    ("intraclass_correlation", correlating(between=lambda x: x.mean(1).var())),
    (
        "intraclass_correlation",
        correlating(between=lambda x: x.shape[1] * x.mean(1).var(correction=0)),
    ),
    (
        "intraclass_correlation",
        correlating(within=lambda x: x.var(1, correction=0).mean()),
    ),
    ("intraclass_correlation", correlating(within=torch.var)),
    ("intraclass_correlation", correlating(formula=lambda b, w, K: b / (b + w))),
    (
        "intraclass_correlation",
        correlating(formula=lambda b, w, K: (b - w) / (b + K * w)),
    ),
    (
        "intraclass_correlation",
        altered(evidence.intraclass_correlation, lambda x: max(x, 0.0)),
    ),
    ("intraclass_correlation", correlating(checked=False)),
    ("roc_curve", curve_by_thresholds(flag=lambda scores, t: scores > t)),
    ("roc_curve", curve_by_thresholds(flag=lambda scores, t: scores <= t)),
    ("roc_curve", curve_by_thresholds(per=4)),
    ("roc_curve", curve_by_thresholds(start=False)),
    ("roc_curve", curve_by_thresholds(ties=True)),
    ("roc_curve", altered(audit.roc_curve, lambda x: (x[1], x[0]))),
    ("roc_curve", lambda scores, labels: audit.roc_curve(scores, ~labels)),
    ("auc", by_pairs(tie=0.0)),
    ("auc", by_pairs(tie=1.0)),
    ("auc", by_pairs(value=lambda x: 1 - x)),
    ("auc", by_pairs(value=lambda x: max(x, 1 - x))),
    ("auc", by_pairs(count=4)),
    ("auc", lambda scores, labels: by_pairs()(scores.sign(), labels)),
    (
        "auc",
        lambda scores, labels: (
            0.5 + (scores[labels].mean() - scores[~labels].mean()).item() / 2
        ),
    ),
]

# What a check misses that looks at two rows of friendly numbers: arguments and random
# numbers that are not the function's own, slopes, dtypes, modes, magnitudes, defaults.
WRONG += [
    ("sigmoid", altered(world.sigmoid, lambda x: round(x, 6))),
    ("sigmoid", altered(world.sigmoid, lambda x: 1.0 if x > 1 - 1e-9 else x)),
    ("annotator", annotator_class(finds_safe=lambda self, prompt, text: 0.5)),
    ("bayes_ceiling", altered(world.bayes_ceiling, torch.tensor)),
    ("bayes_ceiling", lambda judge, x: world.bayes_ceiling(judge, list(set(x)))),
    ("expected_accuracy", lambda _, *x: world.expected_accuracy(world.Annotator(), *x)),
    ("fit_strengths", in_float32(arena.fit_strengths)),
    ("fit_strengths", rounded(arena.fit_strengths, 3)),
    ("fit_strengths", limited(arena.fit_strengths, -2.0, 2.0)),
    ("strength_errors", in_float32(arena.strength_errors)),
    ("last_token", overwriting(reward_model.last_token)),
    ("last_token", of_the_first_row(reward_model.last_token)),
    ("pool_mean", detached(reward_model.pool_mean)),
    ("pool_mean", overwriting(reward_model.pool_mean)),
    ("pool_mean", altered(reward_model.pool_mean, lambda x: x.nan_to_num(0.0))),
    ("bradley_terry_loss", seeding(preference_loss.bradley_terry_loss)),
    ("bradley_terry_loss", by_default(preference_loss.bradley_terry_loss, "", 3)),
    ("bradley_terry_loss", in_float32(preference_loss.bradley_terry_loss)),
    ("pair_scores", switching(preference_loss.pair_scores)),
    (
        "outcome_chances",
        altered(exact.outcome_chances, lambda x: [y + 0.01 for y in x]),
    ),
    ("margin_slope", in_float32(exact.margin_slope)),
    ("margin_slope", of_the_first_row(exact.margin_slope, 3)),
    ("margin_minimiser", limited(exact.margin_minimiser, -30, 30)),
    ("margin_minimiser", rounded(exact.margin_minimiser, 5)),
    ("centring_loss", limited(preference_loss.centring_loss, 0, 100)),
    ("chosen_lm_loss", switching(preference_loss.chosen_lm_loss)),
    ("chosen_lm_loss", detached(preference_loss.chosen_lm_loss)),
    ("chosen_chance", in_float32(best_of_n.chosen_chance)),
    ("brier_score", altered(audit.brier_score, torch.tensor)),
    ("brier_floor", altered(audit.brier_floor, torch.tensor)),
    ("length_only_accuracy", altered(audit.length_only_accuracy, torch.tensor)),
    ("length_balanced", seeding(audit.length_balanced)),
    (
        "safety_label_loss",
        by_default(preference_loss.safety_label_loss, "reduction", 2),
    ),
    ("safety_label_loss", limited(preference_loss.safety_label_loss, 0, 100)),
    ("select_reward", overwriting(reward_selection.select_reward, 1)),
    ("select_reward", by_default(reward_selection.select_reward, "threshold", 3)),
    ("bootstrap_interval", seeding(evidence.bootstrap_interval)),
    ("bootstrap_interval", by_default(evidence.bootstrap_interval, "level", 4)),
    ("roc_curve", lambda scores, labels: audit.roc_curve(scores.round(), labels)),
    ("auc", lambda scores, labels: audit.auc(scores.abs(), labels)),
]


test_the_package_passes, test_mistakes_are_caught = both_tests(RIGHT, WRONG)

EVIDENCE_STYLES = [
    (
        "wilson_interval",  # the roots of (share - p)^2 = z^2 p (1 - p) / n
        lambda share, n, z=1.96: tuple(
            (
                2 * share
                + z * z / n
                + sign
                * math.sqrt(
                    max(
                        (2 * share + z * z / n) ** 2 - 4 * (1 + z * z / n) * share**2,
                        0.0,
                    )
                )
            )
            / (2 + 2 * z * z / n)
            for sign in (-1, 1)
        ),
    ),
    (
        "wilson_interval",
        lambda share, count, z=1.96: evidence.wilson_interval(share, count, z),
    ),
    ("bootstrap_interval", resampling()),
    (
        "bootstrap_interval",  # draw by draw
        lambda v, g, groups=None, draws=1000, level=0.95: resampling(
            mean=lambda sums, sizes, drawn: torch.stack(
                [sums[row].sum() / sizes[row].sum() for row in drawn]
            )
        )(v, g, groups, draws, level),
    ),
    ("intraclass_correlation", correlating()),
    (
        "intraclass_correlation",  # Fisher's two mean squares, as sums
        correlating(
            between=lambda x: (
                x.shape[1] * (x.mean(1) - x.mean()).square().sum() / (len(x) - 1)
            ),
            within=lambda x: (
                (x - x.mean(1, keepdim=True)).square().sum()
                / (len(x) * (x.shape[1] - 1))
            ),
        ),
    ),
    ("roc_curve", curve_by_thresholds()),
    ("roc_curve", curve_by_sorting),
    ("auc", by_pairs()),
    (
        "auc",  # the mean rank of the bad ones, ties at their middle
        lambda s, labels: (
            ((s[:, None] > s).double() + (s[:, None] == s).double() / 2)
            .sum(1)[labels]
            .sub(labels.sum() / 2)
            .mean()
            .div((~labels).sum())
            .item()
            if not (labels.all() or (~labels).all())
            else audit.auc(s, labels)
        ),
    ),
]


@pytest.mark.parametrize("name, right", EVIDENCE_STYLES)
def test_other_styles_of_lesson_25_pass(name, right):
    getattr(checks, name)(right)
