"""The whole of RLHF in one run, and a report on how well it worked, by the gold judges.

Everything is measured on fresh prompts, which no stage was trained on. `before` is the
SFT policy, `after` the policy that PPO made of it, both sampled at temperature 1 and
greedy; the demonstrators' own answers and the SFT policy at its best temperature stand
beside them. Left out: several rounds of annotation, other optimisers than PPO.
"""

import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_model

from minillama import world, writers
from minillama.contracts import expects
from minillama.data import pair_example
from minillama.fast import response_logprobs
from minillama.generate import generate
from minillama.kl import kl_estimate
from minillama.optim import TrainingDiverged
from minillama.ppo import Judges
from minillama.reward_model import score_texts
from minillama.stages import (
    Stages,
    draw_dialogues,
    draw_preferences,
    gold_summary,
    mean,
    response_texts,
    torch_rng,
    world_rng,
)
from minillama.tokenizer import encode_prompt

BATCH = 128
ANSWERS_PER_PROMPT = 3
# Where the SFT policy is looked at beside 0 (greedy) and 1, to find where it is best.
TEMPERATURES = (0.25, 0.5, 0.75)


# ------------------------------------------------------------------------------ numbers


@expects(
    "policy: Llama",
    "tokenizer: Tokenizer",
    "prompts: list of Prompt (N,)",
    "settings: Settings",
    "purpose: text",
    "temperature: number in [0, inf)",
    "-> list of text",
    "-> list of Rollout",
)
def sample_answers(policy, tokenizer, prompts, settings, purpose, temperature=1.0):
    """Sample an answer to each prompt, greedily at temperature 0: (texts, rollouts).

    The `Rollout`s are batches of 128. The seed and `purpose` determine every draw.
    """
    generator = torch_rng(settings, purpose)
    prompt_ids = [encode_prompt(tokenizer, prompt.text) for prompt in prompts]
    rollouts = [
        generate(
            policy,
            prompt_ids[i : i + BATCH],
            settings.ppo.max_new_tokens,
            temperature,
            generator=generator,
        )
        for i in range(0, len(prompts), BATCH)
    ]
    texts = [x for rollout in rollouts for x in response_texts(tokenizer, rollout)]
    return texts, rollouts


@expects(
    "prompts: list of Prompt (N,)",
    "texts, baseline_texts: list of text (N,)",
    "-> number in [0, 1]",
)
def wins(prompts, texts, baseline_texts):
    """Return the share of prompts where gold prefers `texts`; a tie counts one half.

    Gold safety decides on unsafe prompts, gold helpfulness on ordinary ones.
    """
    shares = []
    for prompt, text, baseline in zip(prompts, texts, baseline_texts, strict=True):
        judge = world.safety if prompt.is_safety else world.helpfulness
        difference = judge(prompt, text) - judge(prompt, baseline)
        shares.append(0.5 if difference == 0 else float(difference > 0))
    return mean(shares)


@expects(
    "policy, ref_policy: Llama",
    "rollouts: list of Rollout (N,)",
    "-> finite number",
)
@torch.no_grad()
def kl_per_answer(policy, ref_policy, rollouts):
    """Estimate KL(policy || ref_policy) in nats per answer.

    The mean over `rollouts`, which `policy` sampled, of the log-ratios' sums over an
    answer's tokens: k1 of `kl.kl_estimate`.
    """
    totals = []
    for rollout in rollouts:
        mask = rollout.response_mask
        ref_logprobs = response_logprobs(ref_policy, rollout.ids, rollout.mask, mask)
        k1 = kl_estimate(rollout.logprobs, ref_logprobs)  # (B, T)
        totals += k1.masked_fill(~mask, 0.0).sum(1).tolist()
    return mean(totals)


@expects(
    "settings: Settings",
    "tokenizer: Tokenizer",
    "model: RewardModel",
    '''kind: "helpfulness" or "safety"''',
)
def reward_model_accuracy(settings, tokenizer, model, kind):
    """Measure a reward model on held-out comparisons of fresh prompts.

    Returns its expected accuracy, a tie counting one half, and the Bayes ceiling of
    the same pairs: what a model that knew the annotators' utilities would reach.
    """
    groups = draw_preferences(
        settings, kind, "held out", settings.held_out_pairs, 2, held_out=True
    )
    preferences = [group[0] for group in groups]
    pairs = [pair_example(tokenizer, preference) for preference in preferences]
    chosen = score_texts(model, [pair.chosen for pair in pairs])
    rejected = score_texts(model, [pair.rejected for pair in pairs])
    if not (chosen - rejected).isfinite().all():  # sign(NaN) is 0, which is no tie
        raise ValueError(
            "reward_model_accuracy: model must give finite scores, got inf or NaN"
        )
    prefers_chosen = (0.5 + 0.5 * torch.sign(chosen - rejected)).tolist()
    annotator = world.ANNOTATORS[kind]
    return {
        "accuracy": world.expected_accuracy(annotator, preferences, prefers_chosen),
        "ceiling": world.bayes_ceiling(annotator, preferences)[0],
    }


def before_ppo(settings, prompts, at):
    """Return, of each gold number, what the demonstrators and the SFT policy reach.

    `at`: the SFT policy's `gold_summary` by temperature, 0 and 1 among them. Best is
    the temperature that is best for this one number.
    """
    written = draw_dialogues(
        world_rng(settings, "demonstrators"),
        ANSWERS_PER_PROMPT * len(prompts),
        writers.SFT_STYLE,
        prompts,
    )
    demonstrators = gold_summary(*zip(*((p, x.text) for p, x in written), strict=True))
    report = {}
    for name in at[1.0]:
        good = min if name == "risky_advice" else max
        best = good(sorted(at), key=lambda temperature: at[temperature][name])
        report[name] = {
            "demonstrators": demonstrators[name],
            "before": at[1.0][name],
            "before_greedy": at[0.0][name],
            "before_best": at[best][name],
            "before_best_temperature": best,
        }
    return report


@expects("stages: Stages", "prompts: list of Prompt (N,)")
def evaluate(stages, prompts):
    """Judge both policies and both reward models: (report, texts before, texts after).

    `prompts` hold ordinary and unsafe ones, since each rate is over one of the kinds.
    At temperature 1 each is asked as often as it stands there, at others once.
    """
    if len({prompt.is_safety for prompt in prompts}) < 2:
        raise ValueError("evaluate: prompts must be ordinary and unsafe, got one kind")
    settings, once = stages.settings, list(dict.fromkeys(prompts))

    def answers(policy, asked, purpose, temperature=1.0):
        return sample_answers(
            policy, stages.tokenizer, asked, settings, purpose, temperature
        )

    before, _ = answers(stages.sft, prompts, "answers before")
    after, rollouts = answers(stages.policy, prompts, "answers after")
    cooler = {
        temperature: answers(stages.sft, once, "answers before", temperature)[0]
        for temperature in (0.0, *TEMPERATURES)
    }
    at = {
        temperature: gold_summary(once, texts) for temperature, texts in cooler.items()
    }
    report = before_ppo(settings, once, at | {1.0: gold_summary(prompts, before)})
    greedy, _ = answers(stages.policy, once, "answers after", 0.0)
    sampled, greedy = gold_summary(prompts, after), gold_summary(once, greedy)
    for name, row in report.items():
        row |= {"after": sampled[name], "after_greedy": greedy[name]}
    before_greedy = dict(zip(once, cooler[0.0], strict=True))
    report["win_rate"] = wins(prompts, after, before)
    report["win_rate_over_greedy"] = wins(
        prompts, after, [before_greedy[prompt] for prompt in prompts]
    )
    report["kl"] = kl_per_answer(stages.policy, stages.sft, rollouts)
    report["least_kl"] = writers.least_kl(writers.SFT_STYLE)
    report["reward_model"] = {
        kind: reward_model_accuracy(
            settings, stages.tokenizer, getattr(stages, kind), kind
        )
        for kind in ("helpfulness", "safety")
    }
    return report, before, after


# -------------------------------------------------------------------------------- words


def _row(label, *cells):
    """Write a line of the table: a label, then numbers or words, right-aligned."""
    words = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells]
    return f"{label:38}" + "".join(f"{word:>14}" for word in words)


ROWS = {  # a line of the table, and its key in the report
    "the demonstrators": "demonstrators",
    "SFT policy, sampled": "before",
    "SFT policy, greedy": "before_greedy",
    "SFT policy at its best (temperature)": "before_best",
    "after PPO, sampled": "after",
    "after PPO, greedy": "after_greedy",
}


@expects("report: dict")
def table(report):
    """Write the report as text, a line for each number."""
    gold = [report[name] for name in ("helpfulness", "refusal", "risky_advice")]
    kinds = report["reward_model"].items()
    seconds = report["seconds"].items()
    resumed = ", ".join(report["resumed"]) or "none"

    def cell(judged, key):
        at = f" ({judged['before_best_temperature']:g})" * (key == "before_best")
        return f"{judged[key]:.3f}{at}"

    return "\n".join(
        [
            "{answers} answers to {prompts} fresh prompts, sampled at temperature "
            "{temperature:g},\nand greedy ones, scored by the gold judges".format(
                **report["sampled"]
            ),
            "",
            _row("", "helpfulness", "refusals", "risky advice"),
            *[
                _row(label, *(cell(x, key) for x in gold))
                for label, key in ROWS.items()
            ],
            "",
            _row("win rate over the SFT policy, sampled", report["win_rate"]),
            _row("win rate over it, greedy", report["win_rate_over_greedy"]),
            _row("KL from it, nats per answer", report["kl"]),
            _row("least KL of a perfect policy", report["least_kl"]),
            "",
            _row("reward models on fresh pairs", "accuracy", "ceiling", "share"),
            *[
                _row(kind, x["accuracy"], x["ceiling"], x["accuracy"] / x["ceiling"])
                for kind, x in kinds
            ],
            "",
            "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds),
            f"stages taken over from an interrupted run: {resumed}",
            "peak memory: {peak_rss_mb} MB; device: {device}; seed: {seed}".format(
                **report
            ),
        ]
    )


@expects("prompt: Prompt", "text: text")
def gold_scores(prompt, text):
    """Say the gold score that counts for the prompt."""
    if prompt.is_safety:
        return f"[gold safety {world.safety(prompt, text):.1f} of 1]"
    score = world.helpfulness(prompt, text)
    return f"[gold helpfulness {score:.1f} of {world.MAX_HELPFULNESS}]"


@expects(
    "prompts: list of Prompt (N,)",
    "before, after: list of text (N,)",
    "count: int >= 1 at most len(prompts)",
)
def side_by_side(prompts, before, after, count=5):
    """Show evenly spaced prompts with both answers and their gold scores."""
    shown = [(2 * k + 1) * len(prompts) // (2 * count) for k in range(count)]
    return "\n\n".join(
        f"{prompts[i].text}\n"
        f"  before: {before[i]}  {gold_scores(prompts[i], before[i])}\n"
        f"  after:  {after[i]}  {gold_scores(prompts[i], after[i])}"
        for i in shown
    )


@expects("history: list (N,)")
def draw_curves(history, path):
    """Draw gold rates, proxy reward and KL against PPO's iterations to a file.

    Thin lines are iterations, thick ones means over the eleven around each.
    """
    from matplotlib.figure import Figure  # here, because only a run draws

    panels = (  # title, unit, {column: (label, colour)}
        (
            "Gold: what nobody optimised",
            "share",
            {
                "helpfulness": ("helpfulness, of its maximum", "#0072B2"),
                "refusal": ("unsafe requests refused", "#009E73"),
                "risky_advice": ("answers with risky advice", "#D55E00"),
            },
        ),
        ("Proxy: what PPO climbs", "logit", {"proxy": (None, "#0072B2")}),
        ("Distance from the SFT policy", "KL, nats", {"kl": (None, "#0072B2")}),
    )
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (title, unit, lines) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, (label, colour) in lines.items():
            values = [numbers[name] for numbers in history]
            axes.plot(values, color=colour, linewidth=0.6, alpha=0.35)
            axes.plot(_around(values), color=colour, linewidth=2, label=label)
        axes.set(xlabel="PPO's iterations", ylabel=unit, title=title)
        if len(lines) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _around(values, reach=5):
    """Means over up to `reach` neighbours on either side; NaN counts nowhere."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [
        statistics.fmean([x for x in window if not math.isnan(x)] or [math.nan])
        for window in windows
    ]


# ----------------------------------------------------------------------------- commands


def _train(settings, out):
    """Build every stage anew, but for what an interrupted run has finished."""
    stages = Stages(settings, rebuild=True)
    try:
        stages.build_all()
    except TrainingDiverged as error:
        path = out / "last_good.safetensors"
        save_model(error.model, str(path))
        print(f"last good weights: {path}", file=sys.stderr)
        raise
    return stages


def _peak_rss_mb():
    """Return the most memory this process has held, in MB; None on Windows."""
    if sys.platform == "win32":  # where Python cannot ask
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)


def _write(report, curve, out):
    """Write `report.json` and `learning_curves.png` under the folder `out`."""
    text = json.dumps(report, indent=2, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    draw_curves(curve, out / "learning_curves.png")
    print(f"\nwritten: {out / 'report.json'}, {out / 'learning_curves.png'}")


@expects("settings: Settings", "out: text or Path")
def run(settings, out):
    """Train every stage from random weights, judge, print the table, return the report.

    `report.json` and `learning_curves.png` are written under the folder `out`. After an
    interruption the same run goes on after its last finished stage. A training that
    diverges ends it, with the last good weights in `out/last_good.safetensors`.
    """
    out, start = Path(out), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    stages = _train(settings, out)
    built = time.perf_counter()
    fresh = world.held_out_prompts()
    prompts = fresh * ANSWERS_PER_PROMPT
    report, before, after = evaluate(stages, prompts)
    done = time.perf_counter()
    report |= {
        "sampled": {"answers": len(prompts), "prompts": len(fresh), "temperature": 1.0},
        "seconds": {**stages.seconds, "report": done - built, "total": done - start},
        "resumed": list(stages.resumed),
        "peak_rss_mb": _peak_rss_mb(),
        "seed": settings.seed,
        "device": settings.device,
    }
    # Printed before it is written: a full disk does not take the numbers away.
    print(table(report), side_by_side(prompts, before, after), sep="\n\n", flush=True)
    _write(report, stages.notes["policy"]["curve"], out)
    stages.finish()
    return report


def _what_this_world_knows():
    """Say in one line, to a question from elsewhere, what can be asked here."""
    task, unsafe = next(iter(world.TASKS)), world.UNSAFE[-1]
    return (
        f"[not a request of this world, which knows {len(world.TASKS)} tasks, such as "
        f"{task}, and {len(world.UNSAFE)} unsafe requests, such as {unsafe}]"
    )


def _judged(tokenizer, judges, prompt, rollout):
    """Write each answer with its probabilities and, for a prompt, its gold score."""
    texts = response_texts(tokenizer, rollout)
    probabilities = judges.probabilities(rollout.ids, rollout.mask)  # (B,) and (B,)
    for text, r_s, r_h in zip(texts, *probabilities, strict=True):
        gold = gold_scores(prompt, text) if prompt else "[no gold score]"
        yield f"  {text}\n    R_s {r_s:.3f}  R_h {r_h:.3f}  {gold}"


@expects("stages: Stages", "question: text")
def question_ids(stages, question):
    """Encode a question, if it has words and leaves room for an answer."""
    if not question.strip():
        raise ValueError(f"ask: question must have words, got {question!r}")
    ids = encode_prompt(stages.tokenizer, question)
    room = stages.settings.max_seq_len - stages.settings.ppo.max_new_tokens
    if len(ids) > room:
        raise ValueError(f"ask: question must be at most {room} tokens, got {len(ids)}")
    return ids


@expects("stages: Stages", "question: text", "temperature: number in [0, inf)")
def ask(stages, question, temperature=1.0):
    """Answer a question with both policies and judge the answers: a text to print.

    Three answers a policy, sampled from the settings' seed; at temperature 0 one, the
    most probable token each time. R_s and R_h are the reward models' probabilities;
    gold scores exist for requests of the world only.
    """
    prompt_ids = question_ids(stages, question)
    settings, tokenizer = stages.settings, stages.tokenizer
    prompt = world.find_prompt(question)
    judges = Judges(stages.safety, stages.helpfulness)
    lines = [question] if prompt else [question, _what_this_world_knows()]
    for label, policy in (("before PPO", stages.sft), ("after PPO", stages.policy)):
        rollout = generate(
            policy,
            [prompt_ids] * (ANSWERS_PER_PROMPT if temperature else 1),
            settings.ppo.max_new_tokens,
            temperature,
            generator=torch_rng(settings, "ask"),
        )
        manner = f"sampled at temperature {temperature:g}" if temperature else "greedy"
        lines += [f"\n{label}, {manner}:"]
        lines += _judged(tokenizer, judges, prompt, rollout)
    return "\n".join(lines)
