"""What a reward model has learned, asked of comparisons whose truth nobody knows.

audit.py has gold scores to ask; a file of real comparisons has people's choices alone.
Left are accuracy against these choices, calibration, and habits: of two answers, do
people prefer the longer one, the one with more questions, the one that apologises, and
does the model do so more than they? A model that has understood nothing else shows it
there.

Conventions. Differences are chosen minus rejected scores; a tie is half right.
Intervals are 95 %. People's choices are taken as they are: where people disagree with
each other, the best model is right less often than always.

Left out: whatever needs a second judgement of the same pair, such as the ceiling;
words in other letters than a to z, and phrases in other languages than English.
"""

import re

import torch

from minillama.audit import (
    agreement,
    brier_score,
    correlation,
    length_buckets,
    length_only_accuracy,
    preferred_words,
)
from minillama.contracts import expects
from minillama.evidence import effective_count, wilson_interval
from minillama.preference_loss import bradley_terry_loss

SIDES = ("chosen", "rejected")
CONFIDENCES = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]  # edges of the bins of calibration


def _count(pattern):
    """A function from a text to how often a pattern occurs in it."""
    compiled = re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    return lambda text: len(compiled.findall(text))


# What an answer may have more of than another one -> how much of it a text has.
HABITS = {
    "words": lambda text: len(text.split()),
    "lines": lambda text: len(text.splitlines()),
    "items of lists": _count(r"^\s*([-*•]|\d+[.)])\s"),
    "exclamation marks": _count("!"),
    "question marks": _count(r"\?"),
    "commas": _count(","),
    "digits": _count(r"\d"),
    "bold, code, headings": _count(r"\*\*|`|^#+ "),
    "please and thanks": _count(r"\b(please|thanks?|welcome|pleasure)\b"),
    "apologies": _count(r"\b(sorry|apologi[sz]e|apologies)\b"),
    "refusals": _count(r"\b(can't|cannot|can not|won't|unable to|refuse to)\b"),
    "hedges": _count(r"\b(maybe|perhaps|might|probably|i think|not sure)\b"),
}


# --------------------------------------------------------------------------------------
# Accuracy


@expects("differences: finite float (N,)", "prompts: list (N,)")
def accuracy_of(differences, prompts):
    """Return the share of pairs in which the chosen answer scores more: a dict.

    `accuracy`, its `interval` (low, high), `ties`, and `independent`, the effective
    count that the interval is for.
    """
    right = (0.5 + 0.5 * torch.sign(differences)).double()  # a tie is one half
    accuracy, count = right.mean().item(), effective_count(right, prompts)
    return {
        "accuracy": accuracy,
        "interval": list(wilson_interval(accuracy, count)),
        "independent": count,
        "ties": int((differences == 0).sum()),
    }


# --------------------------------------------------------------------------------------
# Calibration


@expects("differences: finite float (N,)")
def calibration(differences):
    """Return how often a model is right where it is how sure, and the mean gap: a dict.

    A model is sure by p = sigmoid(|difference|) that the answer with the higher score
    is preferred, and right if it is the chosen one. `bins` are dicts (low, high, pairs,
    confidence, accuracy) with low <= p < high, empty ones left out; `error` is the
    expected calibration error, the mean |confidence - accuracy| of the bins, each as
    often as it has pairs (Guo et al. 2017, arXiv 1706.04599, equation 3).
    """
    confidence = torch.sigmoid(differences.double().abs())  # (N,)
    edges = [*CONFIDENCES[:-1], 1.1]  # the last bin holds 1
    exact = torch.ones_like(confidence)
    bins, error = [], 0.0
    for low, high, pairs, accuracy in length_buckets(
        confidence, differences, exact, edges
    ):
        if pairs:
            inside = (confidence >= low) & (confidence < high)
            mean = confidence[inside].mean().item()
            bins.append(
                {
                    "low": low,
                    "high": min(high, 1.0),
                    "pairs": pairs,
                    "confidence": mean,
                    "accuracy": accuracy,
                }
            )
            error += abs(mean - accuracy) * pairs / len(differences)
    return {"bins": bins, "error": error}


# --------------------------------------------------------------------------------------
# Habits


@expects("chosen, rejected: list of text (N,)", "differences: finite float (N,)")
def habits(chosen, rejected, differences):
    """Return what people and the model prefer the answers with more of: dicts.

    One dict for each of `HABITS` that occurs: `habit`; `pairs`, in which one answer has
    more of it; `people`, the share of those where that answer is the chosen one;
    `model`, the share where it scores more.
    """
    found = []
    for habit, count in HABITS.items():
        more = [count(a) - count(b) for a, b in zip(chosen, rejected, strict=True)]
        more = torch.tensor(more, dtype=torch.float64)  # (N,)
        differ = more != 0
        if differ.any():
            # (n,): the difference from the side of the answer with more of it
            seen = differences[differ] * torch.sign(more[differ])
            sure = torch.ones_like(seen)
            found.append(
                {
                    "habit": habit,
                    "pairs": len(seen),
                    "people": agreement(more[differ], sure),
                    "model": agreement(seen, sure),
                }
            )
    return found


@expects(
    "chosen, rejected: list of text (N,)",
    "differences: finite float (N,)",
    "most: int >= 1",
)
def words(chosen, rejected, differences, most=8):
    """Return the words that the model likes or dislikes most beyond people: dicts.

    As for `preferred_words`: `word`, and of the pairs in which one answer holds it the
    share in which `people` chose that one, and in which the `model` scores it higher.
    """
    people = dict(preferred_words(chosen, rejected, torch.ones_like(differences)))
    model = dict(preferred_words(chosen, rejected, differences))
    ordered = sorted(people, key=lambda word: (-abs(model[word] - people[word]), word))
    return [
        {"word": word, "people": people[word], "model": model[word]}
        for word in ordered[:most]
    ]


@expects(
    "chosen, rejected: list of text (N,)",
    "differences: finite float (N,)",
    "buckets: int >= 1",
)
def length_report(chosen, rejected, differences, buckets=6):
    """Return what the number of words says of the choices and of the scores: a dict.

    `length_only`: the accuracy of the better of "longer wins" and "shorter wins";
    `correlation` of score and length differences, None where either never varies;
    `buckets`: dicts (low, high, pairs, accuracy) by how many words more the chosen
    answer has, low <= words < high; empty ones are left out.
    """
    longer_by = torch.tensor(
        [len(a.split()) - len(b.split()) for a, b in zip(chosen, rejected, strict=True)]
    ).double()  # (N,)
    sure = torch.ones_like(longer_by)
    shares = torch.linspace(0, 1, buckets + 1).double()
    edges = longer_by.quantile(shares).floor().unique()  # whole words
    edges = [*edges.tolist()[: max(1, len(edges) - 1)], longer_by.max().item() + 1]
    vary = all((x != x[0]).any() for x in (longer_by, differences))
    return {
        "length_only": length_only_accuracy(longer_by, sure),
        "correlation": correlation(longer_by, differences) if vary else None,
        "buckets": [
            dict(zip(("low", "high", "pairs", "accuracy"), bucket, strict=True))
            for bucket in length_buckets(longer_by, differences, sure, edges)
            if bucket[2]
        ],
    }


# --------------------------------------------------------------------------------------
# The whole


@expects(
    "comparisons: list of Comparison (N,)",
    "chosen_scores, rejected_scores: finite float (N,)",
)
def audit_comparisons(comparisons, chosen_scores, rejected_scores):
    """Return everything above about one model's scores, as a dict of JSON values."""
    chosen, rejected = ([getattr(x, side) for x in comparisons] for side in SIDES)
    differences = (chosen_scores - rejected_scores).double()  # (N,)
    prompts = [x.prompt for x in comparisons]
    return {
        "pairs": len(comparisons),
        "prompts": len(set(prompts)),
        **accuracy_of(differences, prompts),
        "loss": bradley_terry_loss(chosen_scores, rejected_scores).item(),
        "brier": brier_score(torch.sigmoid(differences), torch.ones_like(differences)),
        "calibration": calibration(differences),
        "length": length_report(chosen, rejected, differences),
        "habits": habits(chosen, rejected, differences),
        "words": words(chosen, rejected, differences),
    }


@expects("audited: dict")
def table(audited):
    """Return what an audit found as text, a line for each number.

    audited: as from `audit_comparisons`, with or without `other_prompt`, or the
    {"pairs": 0} of no comparisons.
    """
    if not audited["pairs"]:
        return "0 pairs: nothing can be said about accuracy"
    low, high = audited["interval"]
    length, calibrated = audited["length"], audited["calibration"]
    correlated = length["correlation"]
    lines = [
        f"{audited['pairs']:,} pairs of {audited['prompts']:,} prompts",
        f"accuracy {audited['accuracy']:.3f} ({low:.3f} to {high:.3f}), ties "
        f"{audited['ties']}; length alone {length['length_only']:.3f}",
        f"loss {audited['loss']:.3f} nats (a coin 0.693), Brier {audited['brier']:.3f} "
        f"(a coin 0.250), calibration error {calibrated['error']:.3f}",
        "how sure           pairs  confidence  accuracy",
    ]
    lines += [
        f"{x['low']:5.1f} to {x['high']:3.1f}  {x['pairs']:10,}  "
        f"{x['confidence']:10.3f}  {x['accuracy']:8.3f}"
        for x in calibrated["bins"]
    ]
    told = "none" if correlated is None else f"{correlated:+.2f}"
    lines += [
        f"correlation of score and length differences: {told}",
        "chosen longer by     pairs  accuracy",
    ]
    lines += [
        f"{x['low']:6.0f} to {x['high'] - 1:5.0f}  {x['pairs']:9,}  "
        f"{x['accuracy']:8.3f}"
        for x in length["buckets"]
    ]
    moved = audited.get("other_prompt", {"pairs": 0})
    if moved["pairs"]:
        low, high = moved["interval"]
        lines += [
            f"accuracy with the prompt of another pair: {moved['accuracy']:.3f} "
            f"({low:.3f} to {high:.3f})"
        ]
    lines += ["of two answers, the one with more …    pairs  people  model"]
    lines += [
        f"  {x['habit']:34}  {x['pairs']:6,}  {x['people']:6.2f}  {x['model']:5.2f}"
        for x in audited["habits"]
    ]
    lines += ["the one with the word …                        people  model"]
    lines += [
        f"  {x['word']:42}  {x['people']:6.2f}  {x['model']:5.2f}"
        for x in audited["words"]
    ]
    return "\n".join(lines)
