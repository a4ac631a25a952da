"""One look for every figure of the course, and the figures that recur.

The colours are Okabe and Ito's, which most colour-blind readers can tell apart; a line
style tells series apart a second time. Left out: figures that only one lesson draws
(they stand in that lesson).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#000000",
)
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)  # yellow is too pale for lines on white
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))

STYLE = {
    "figure.figsize": (6.4, 4.0),  # inches
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 100,
    "axes.prop_cycle": plt.cycler(color=COLOURS, linestyle=LINES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def use_style():
    """Apply the course's style to every figure drawn from now on.

    A notebook calls it once, near the top.
    """
    plt.rcParams.update(STYLE)


def learning_curves(ax, x, series, xlabel, ylabel, title):
    """Draw one line per series over a shared x; return the axes.

    x: (N,) steps or iterations. series: dict from label to (N,) values. xlabel and
    ylabel name quantity and unit; title states the finding.
    """
    for label, values in series.items():
        if len(values) != len(x):
            raise ValueError(
                f"learning_curves: series {label!r} must have {len(x)} values as x, "
                f"got {len(values)}"
            )
        ax.plot(x, values, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if len(series) > 1:
        ax.legend()
    return ax


def ladder(ax, rungs, floor, live=None):
    """Draw the ladder of Part I: how far each rung is above the floor; return the axes.

    rungs: dict from name to a list of held-out losses in nats a token, one for each
    copy, from the lowest rung up. floor: the world's entropy in the same unit. live: a
    name and a loss, the rung that a reader has just trained herself.
    """
    if live and live[0] not in rungs:
        raise ValueError(
            f"ladder: live must name one of {list(rungs)}, got {live[0]!r}"
        )
    for height, (name, losses) in enumerate(rungs.items()):
        excess = [loss - floor for loss in losses]
        just_now = [live[1] - floor] if live and live[0] == name else []
        ax.plot([min(excess), max(excess)], [height] * 2, color=BLUE, linestyle="-")
        ax.plot(excess, [height] * len(excess), "o", color=BLUE, markersize=5)
        middle = sorted(excess)[len(excess) // 2]
        ax.annotate(
            f"{middle:.3f}",
            (max(excess + just_now), height),
            (8, -3.5),
            textcoords="offset points",
            fontsize=8,
        )
    if live:
        name, loss = live
        height = list(rungs).index(name)
        hollow = {"color": ORANGE, "markerfacecolor": "none", "markersize": 8}
        ax.plot([loss - floor], [height], "D", label="trained just now", **hollow)
        ax.legend(loc="lower left")
    ax.set_yticks(range(len(rungs)), list(rungs))
    ax.set(xscale="log", xlabel="nats per token above the entropy of the world")
    return ax


def calibration_curve(ax, predicted, observed, label, bins=10):
    """Draw how often what is predicted with probability p happens; return the axes.

    predicted: (N,) probabilities in [0, 1]. observed: (N,) outcomes 0 or 1, or exact
    probabilities where they are known. Each point is the mean of both over one of
    `bins` groups of equal size, ordered by prediction; the diagonal is perfect
    calibration.
    """
    predicted, observed = (torch.as_tensor(x).float() for x in (predicted, observed))
    if predicted.ndim != 1 or predicted.shape != observed.shape:
        raise ValueError(
            "calibration_curve: predicted and observed must both be (N,), got "
            f"{tuple(predicted.shape)} and {tuple(observed.shape)}"
        )
    wrong = predicted[~((predicted >= 0) & (predicted <= 1))]  # NaN included
    if len(wrong):
        raise ValueError(
            "calibration_curve: predicted must be probabilities in [0, 1], got "
            f"{wrong[0].item()}"
        )
    groups = [
        group for group in predicted.argsort(stable=True).chunk(bins) if len(group)
    ]
    if not any(line.get_label() == "perfect" for line in ax.get_lines()):
        ax.plot(
            [0, 1], [0, 1], color=BLACK, linestyle=":", linewidth=1, label="perfect"
        )
    ax.plot(
        [predicted[group].mean().item() for group in groups],
        [observed[group].mean().item() for group in groups],
        marker="o",
        label=label,
    )
    ax.set(
        xlabel="predicted probability",
        ylabel="observed frequency",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.legend()
    return ax


def audit_figure(axes, report):
    """Draw an `audit.Audit` on two axes; return them.

    The left one has score against length differences, the right one how often the
    correct answer beats a flawed one; it stays empty without adversarial pairs.
    """
    left, right = axes
    left.scatter(report.longer_by, report.differences, s=6, alpha=0.5)
    left.axhline(0, color=BLACK, linewidth=1, linestyle=":")
    left.set(
        xlabel="chosen answer longer by",
        ylabel="score of chosen - score of rejected",
        title=f"Score and length: correlation {report.correlation:+.2f}",
    )
    right.plot(list(report.flaws.values()), list(report.flaws), "o", markersize=8)
    right.axvline(0.5, color=BLACK, linestyle=":")
    right.set(
        xlabel="prefers the correct answer",
        xlim=(-0.03, 1.03),
        title="Correct but dull against warm but flawed",
    )
    return axes


def save(figure, path):
    """Write a figure as PNG, equal bytes for equal drawings; return the path.

    The file holds no date and no version. Missing folders are made.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"save: path must end in .png, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path
