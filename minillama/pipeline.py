"""The whole of RLHF in order: tokenizer, base model, SFT, two reward models, PPO, and an honest report.

Each ``build_…`` function is one stage: settings and earlier stages in, a trained model and its curve out, the
same on every call. `Stages` keeps what was built in the store of trained stages; notebooks take their models
from there. `run` builds everything anew with the clock running and asks the gold judges how well it worked.
Left out: several rounds of annotation (lesson 19), other optimisers than PPO (lessons 20 and 21).
"""

import math
import random
from copy import deepcopy
from dataclasses import dataclass, replace

import torch

from minillama import world
from minillama.data import dialogue_example, pair_example
from minillama.gae import ValueModel
from minillama.generate import generate
from minillama.lm import LMSettings, train_lm
from minillama.model import Llama, LlamaConfig
from minillama.kl import kl_estimate
from minillama.ppo import Judges, PPOSettings, response_logprobs, train_ppo
from minillama.preference_loss import RewardSettings, train_reward_model
from minillama.reward_model import RewardModel, score_normalisation, score_texts
from minillama.tokenizer import decode_response, encode_prompt, train_tokenizer


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on; the defaults are the course's run."""

    seed: int = 0
    device: str = "cpu"
    vocab_size: int = 1408
    dim: int = 128
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    ffn_dim: int = 344
    max_seq_len: int = 160
    corpus: int = 24_000  # dialogues that the base model reads
    demonstrations: int = 8_000  # dialogues of supervised fine-tuning
    pairs: int = 16_000  # comparisons for each reward model
    base: LMSettings = LMSettings()
    sft: LMSettings = LMSettings(steps=120, lr=1e-3, warmup_steps=10)
    helpfulness: RewardSettings = RewardSettings()
    safety: RewardSettings = RewardSettings(label_weight=0.5)
    ppo: PPOSettings = PPOSettings()


def world_rng(settings, purpose):
    """A ``random.Random`` of its own for each purpose, the same for the same seed on every machine."""
    return random.Random(f"{settings.seed} {purpose}")


def torch_rng(settings, purpose):
    """A CPU ``torch.Generator`` of its own for each purpose."""
    return torch.Generator().manual_seed(world_rng(settings, purpose).getrandbits(48))


def draw_dialogues(rng, count, style, prompts):
    """``count`` pairs (prompt, `world.Answer`): prompts drawn with replacement, answers in the given style."""
    drawn = [prompts[int(rng.random() * len(prompts))] for _ in range(count)]
    return [(prompt, world.write_answer(rng, prompt, style)) for prompt in drawn]


def corpus(settings):
    """What the base model reads: dialogues of mixed quality on the training prompts."""
    return draw_dialogues(world_rng(settings, "corpus"), settings.corpus, world.BASE_STYLE, world.all_prompts(False))


def build_tokenizer(settings):
    """BPE pieces learned from the first 4,000 dialogues of the corpus."""
    return train_tokenizer((f" {text}" for prompt, answer in corpus(replace(settings, corpus=4000))
                            for text in (prompt.text, answer.text)), settings.vocab_size)


def model_config(settings, tokenizer):
    """The sizes of every model of the run."""
    return LlamaConfig(tokenizer.vocab_size, settings.dim, settings.n_layers, settings.n_heads,
                       settings.n_kv_heads, settings.ffn_dim, settings.max_seq_len)


def build_base(settings, tokenizer):
    """A `Llama` with random weights, pretrained on every token of the corpus: (model, losses)."""
    model = Llama(model_config(settings, tokenizer), torch_rng(settings, "initial weights")).to(settings.device)
    examples = [dialogue_example(tokenizer, prompt.text, answer.text, False) for prompt, answer in corpus(settings)]
    losses = train_lm(model, examples, settings.base, torch_rng(settings, "base batches"), "base model")
    return model, losses


def build_sft(settings, tokenizer, base):
    """The base model, fine-tuned to answer as the demonstrations do; the prompt carries no loss: (model, losses)."""
    model = deepcopy(base)
    dialogues = draw_dialogues(world_rng(settings, "demonstrations"), settings.demonstrations, world.SFT_STYLE,
                               world.all_prompts(False))
    examples = [dialogue_example(tokenizer, prompt.text, answer.text, True) for prompt, answer in dialogues]
    losses = train_lm(model, examples, settings.sft, torch_rng(settings, "sft batches"), "SFT")
    return model, losses


def draw_preferences(settings, kind, purpose, count, fresh):
    """Annotated comparisons of written answers for the "helpfulness" or the "safety" model.

    Helpfulness is compared on ordinary prompts; safety on all, where half the answers do something unsafe.
    """
    rng = world_rng(settings, f"{kind} {purpose}")
    prompts = [prompt for prompt in world.all_prompts(fresh) if kind == "safety" or not prompt.is_safety]
    style = {"helpfulness": world.RATED_STYLE, "safety": world.RISKY_STYLE}[kind]
    drawn = draw_dialogues(rng, count, style, prompts)
    pairs = [(first.text, world.write_answer(rng, prompt, style).text) for prompt, first in drawn]
    return world.collect_preferences(rng, world.ANNOTATORS[kind], [prompt for prompt, _ in drawn], pairs)


def build_reward_model(settings, tokenizer, sft, kind):
    """A reward model on the SFT model's body, one epoch of noisy comparisons: (model, losses).

    Safety also learns the annotators' safe/unsafe labels, which fix its zero; helpfulness is centred on the
    answers of the demonstrations instead.
    """
    model = RewardModel(sft, generator=torch_rng(settings, f"{kind} head"))
    preferences = draw_preferences(settings, kind, "training", settings.pairs, False)
    pairs = [pair_example(tokenizer, preference) for preference in preferences]
    rng = torch_rng(settings, f"{kind} batches")
    losses = train_reward_model(model, pairs, getattr(settings, kind), rng, f"{kind} model")
    if kind == "helpfulness":
        reference = draw_dialogues(world_rng(settings, "reference set"), 512, world.SFT_STYLE,
                                   [prompt for prompt in world.all_prompts(False) if not prompt.is_safety])
        texts = [dialogue_example(tokenizer, prompt.text, answer.text, False).ids for prompt, answer in reference]
        model.set_normalisation(*score_normalisation(score_texts(model, texts), centre_only=True))
    return model, losses


def build_ppo(settings, tokenizer, sft, helpfulness_model, safety_model):
    """The SFT model, climbed with PPO: (policy, history), gold scores in the history but not in the training."""
    policy, value_model = deepcopy(sft), ValueModel(helpfulness_model)
    prompts = world.all_prompts(False)

    def judge_gold(indices, experience):
        texts = response_texts(tokenizer, experience)
        return gold_summary([prompts[i] for i in indices], texts)

    history = train_ppo(policy, sft, value_model, Judges(safety_model, helpfulness_model),
                        [(encode_prompt(tokenizer, prompt.text), prompt.is_safety) for prompt in prompts],
                        settings.ppo, torch_rng(settings, "ppo"), judge_gold, "PPO")
    return policy, history


# ---------------------------------------------------------------------------------------------------------
# How well did it work?


def response_texts(tokenizer, rollout):
    """The texts of the responses in a `Rollout` or an `Experience`."""
    return [decode_response(tokenizer, ids[mask]) for ids, mask in zip(rollout.ids, rollout.response_mask, strict=True)]


def gold_summary(prompts, texts):
    """Means of the gold judges: helpfulness as a share of its maximum and risky advice on ordinary prompts,
    refusals on unsafe ones."""
    scored = list(zip(prompts, texts, strict=True))
    return {
        "helpfulness": mean(world.helpfulness(p, x) / world.MAX_HELPFULNESS for p, x in scored if not p.is_safety),
        "risky_advice": mean(world.gives_risky_advice(x) for p, x in scored if not p.is_safety),
        "refusal": mean(world.refuses(x) for p, x in scored if p.is_safety),
    }


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def answer(policy, tokenizer, prompts, settings, purpose):
    """The policy's sampled answers to prompts of the world, and their `Rollout`s in batches of 128."""
    generator = torch_rng(settings, purpose)
    rollouts = [generate(policy, [encode_prompt(tokenizer, prompt.text) for prompt in prompts[i : i + 128]],
                         settings.ppo.max_new_tokens, generator=generator) for i in range(0, len(prompts), 128)]
    return [text for rollout in rollouts for text in response_texts(tokenizer, rollout)], rollouts


def wins(prompts, texts, baseline_texts):
    """Share of prompts where gold prefers ``texts``: safety decides on unsafe prompts, helpfulness elsewhere; ties 1/2."""
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
        ref_logprobs = response_logprobs(ref_policy, rollout.ids, rollout.mask, rollout.response_mask)
        totals += kl_estimate(rollout.logprobs, ref_logprobs).masked_fill(~rollout.response_mask, 0.0).sum(1).tolist()
    return mean(totals)


def reward_model_accuracy(settings, tokenizer, model, kind, count=4000):
    """Expected accuracy on held-out comparisons of fresh prompts, and the Bayes ceiling of the same pairs."""
    preferences = draw_preferences(settings, kind, "held out", count, True)
    pairs = [pair_example(tokenizer, preference) for preference in preferences]
    chosen, rejected = (score_texts(model, [getattr(p, side) for p in pairs]) for side in ("chosen", "rejected"))
    prefers_chosen = (0.5 + 0.5 * torch.sign(chosen - rejected)).tolist()
    annotator = world.ANNOTATORS[kind]
    return {"accuracy": world.expected_accuracy(annotator, preferences, prefers_chosen),
            "ceiling": world.bayes_ceiling(annotator, preferences)[0]}
