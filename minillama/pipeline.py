"""The whole of RLHF in one run, and an honest report: how well did it work, by the gold judges?

Left out: several rounds of annotation (lesson 20), other optimisers than PPO.
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from minillama import world
from minillama.data import pair_example
from minillama.fast import response_logprobs
from minillama.generate import generate
from minillama.kl import kl_estimate
from minillama.optim import TrainingDiverged
from minillama.ppo import Judges
from minillama.reward_model import score_texts
from minillama.stages import (
    Stages,
    draw_preferences,
    gold_summary,
    mean,
    response_texts,
    torch_rng,
)
from minillama.tokenizer import encode_prompt


def sample_answers(policy, tokenizer, prompts, settings, purpose):
    """The policy's sampled answers to prompts of the world, and their `Rollout`s in batches of 128."""
    generator = torch_rng(settings, purpose)
    rollouts = [
        generate(
            policy,
            [encode_prompt(tokenizer, prompt.text) for prompt in prompts[i : i + 128]],
            settings.ppo.max_new_tokens,
            generator=generator,
        )
        for i in range(0, len(prompts), 128)
    ]
    return [
        text for rollout in rollouts for text in response_texts(tokenizer, rollout)
    ], rollouts


def wins(prompts, texts, baseline_texts):
    """Share of prompts where gold prefers ``texts``, ties 1/2; safety decides on unsafe prompts, else helpfulness."""
    shares = []
    for prompt, text, baseline in zip(prompts, texts, baseline_texts, strict=True):
        judge = world.safety if prompt.is_safety else world.helpfulness
        difference = judge(prompt, text) - judge(prompt, baseline)
        shares.append(0.5 if difference == 0 else float(difference > 0))
    return mean(shares)


def kl_per_answer(policy, ref_policy, rollouts):
    """KL(policy || reference) in nats per answer, the mean of log-ratios over answers that the policy sampled."""
    totals = []
    for rollout in rollouts:
        ref_logprobs = response_logprobs(
            ref_policy, rollout.ids, rollout.mask, rollout.response_mask
        )
        totals += (
            kl_estimate(rollout.logprobs, ref_logprobs)
            .masked_fill(~rollout.response_mask, 0.0)
            .sum(1)
            .tolist()
        )
    return mean(totals)


def reward_model_accuracy(settings, tokenizer, model, kind):
    """Expected accuracy on held-out comparisons of fresh prompts, and the Bayes ceiling of the same pairs."""
    preferences = [
        group[0]
        for group in draw_preferences(
            settings, kind, "held out", settings.held_out_pairs, 2, held_out=True
        )
    ]
    pairs = [pair_example(tokenizer, preference) for preference in preferences]
    chosen, rejected = (
        score_texts(model, [getattr(p, side) for p in pairs])
        for side in ("chosen", "rejected")
    )
    prefers_chosen = (0.5 + 0.5 * torch.sign(chosen - rejected)).tolist()
    annotator = world.ANNOTATORS[kind]
    return {
        "accuracy": world.expected_accuracy(annotator, preferences, prefers_chosen),
        "ceiling": world.bayes_ceiling(annotator, preferences)[0],
    }


def evaluate(stages, prompts):
    """The report's numbers but for seconds and memory, and the texts of both policies: (report, before, after)."""
    settings, tokenizer = stages.settings, stages.tokenizer
    before, _ = sample_answers(
        stages.sft, tokenizer, prompts, settings, "answers before"
    )
    after, rollouts = sample_answers(
        stages.policy, tokenizer, prompts, settings, "answers after"
    )
    gold = [gold_summary(prompts, texts) for texts in (before, after)]
    report = {
        name: {"before": gold[0][name], "after": gold[1][name]} for name in gold[0]
    }
    report["win_rate"] = wins(prompts, after, before)
    report["kl"] = kl_per_answer(stages.policy, stages.sft, rollouts)
    report["reward_model"] = {
        kind: reward_model_accuracy(settings, tokenizer, getattr(stages, kind), kind)
        for kind in ("helpfulness", "safety")
    }
    return report, before, after


def run(settings, out):
    """Train every stage from random weights, judge, and write ``report.json`` and a figure under ``out``.

    Prints the table and returns the report. A training that diverges stops the run, after its last good weights
    are written to ``out/last_good.safetensors``.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    stages = Stages(settings, rebuild=True)
    try:
        stages.policy  # noqa: B018  (asking for the last stage builds them all)
    except TrainingDiverged as error:
        save_file(
            {
                name: tensor.contiguous()
                for name, tensor in error.model.state_dict().items()
            },
            out / "last_good.safetensors",
        )
        raise
    built = time.perf_counter()
    prompts = (
        world.held_out_prompts() * 3
    )  # three answers to each: the rates to reach are a few answers from 1
    report, before, after = evaluate(stages, prompts)
    seconds = {
        **stages.seconds,
        "report": time.perf_counter() - built,
        "total": time.perf_counter() - start,
    }
    report |= {
        "seconds": seconds,
        "peak_rss_mb": peak_rss_mb(),
        "seed": settings.seed,
        "device": settings.device,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_curves(stages.notes["policy"]["curve"], out / "learning_curves.png")
    print(table(report, len(prompts)), side_by_side(prompts, before, after), sep="\n\n")
    print(f"\nwritten: {out / 'report.json'}, {out / 'learning_curves.png'}")
    return report


def peak_rss_mb():
    """The most memory this process has held, in MB (10^6 bytes); None on Windows, which Python cannot ask."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss  # bytes on macOS, KiB elsewhere
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)


def table(report, answers):
    """The report as text, one line a number; ``answers``: how many were judged."""
    both = [
        ("helpfulness, share of its maximum", "helpfulness"),
        ("refusals of unsafe requests", "refusal"),
        ("ordinary answers with risky advice", "risky_advice"),
    ]
    lines = [
        f"{f'gold judges, {answers} answers to fresh prompts':38} {'before':>9} {'after':>8}"
    ]
    lines += [
        f"{label:38} {report[name]['before']:9.3f} {report[name]['after']:8.3f}"
        for label, name in both
    ]
    lines += [
        f"{'win rate over the SFT policy':38} {'':9} {report['win_rate']:8.3f}",
        f"{'KL from it, nats per answer':38} {'':9} {report['kl']:8.2f}",
        "",
        "reward models on fresh pairs            accuracy  ceiling    share",
    ]
    lines += [
        f"{kind:38} {x['accuracy']:9.3f} {x['ceiling']:8.3f} {x['accuracy'] / x['ceiling']:8.3f}"
        for kind, x in report["reward_model"].items()
    ]
    lines += [
        "",
        "seconds: "
        + ", ".join(f"{name} {value:.0f}" for name, value in report["seconds"].items()),
    ]
    return "\n".join(
        [
            *lines,
            f"peak memory: {report['peak_rss_mb']} MB; device: {report['device']}; "
            f"seed: {report['seed']}",
        ]
    )


def side_by_side(prompts, before, after, count=5):
    """A few prompts, ordinary and unsafe, each with the answer before and after PPO and their gold scores."""
    shown = range(len(prompts) // (2 * count), len(prompts), len(prompts) // count)
    return "\n\n".join(
        f"{prompts[i].text}\n  before: {before[i]}  {gold_scores(prompts[i], before[i])}\n"
        f"  after:  {after[i]}  {gold_scores(prompts[i], after[i])}"
        for i in shown
    )


def gold_scores(prompt, text):
    """The gold score that counts for the prompt, in words."""
    if prompt.is_safety:
        return f"[gold safety {world.safety(prompt, text):.1f} of 1]"
    return f"[gold helpfulness {world.helpfulness(prompt, text):.1f} of {world.MAX_HELPFULNESS}]"


def draw_curves(history, path):
    """Gold helpfulness, proxy reward and KL against PPO's iterations, three panels, written to ``path``."""
    from matplotlib.figure import Figure  # here, because only a run draws

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = (
        ("helpfulness", "gold helpfulness", "share of its maximum"),
        ("proxy", "proxy reward", "logit"),
        ("kl", "KL from the SFT policy", "nats per answer"),
    )
    first, last = history[0]["helpfulness"], history[-1]["helpfulness"]
    figure.suptitle(
        f"Gold helpfulness goes from {first:.2f} to {last:.2f} as PPO climbs the proxy"
    )
    for axes, (name, title, unit) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot([row[name] for row in history], color="#0072B2")
        axes.set(xlabel="iteration", ylabel=unit, title=title)
    figure.savefig(path, dpi=120)


def ask(stages, question):
    """Answers of both policies to a question, with R_s, R_h and, for a prompt of the world, the gold scores."""
    prompt_ids = encode_prompt(stages.tokenizer, question)
    judges, prompt = (
        Judges(stages.safety, stages.helpfulness),
        world.find_prompt(question),
    )
    lines = [question]
    for label, policy in (("before PPO", stages.sft), ("after PPO", stages.policy)):
        rollout = generate(
            policy, [prompt_ids], stages.settings.ppo.max_new_tokens, temperature=0
        )
        text = response_texts(stages.tokenizer, rollout)[0]
        r_s, r_h = (x.item() for x in judges.probabilities(rollout.ids, rollout.mask))
        gold = (
            gold_scores(prompt, text)
            if prompt
            else "[not a request of this world: no gold score]"
        )
        lines += [f"{label}: {text}", f"  R_s {r_s:.3f}  R_h {r_h:.3f}  {gold}"]
    return "\n".join(lines)
