"""The stages of the course: what builds each, and the store that keeps it.

Each `build_…` function is one stage: settings and earlier stages in, a trained model
and its curve out, the same on every call. `Stages` keeps what was built in the store;
notebooks take their models from there. Left out: stages that run side by side.
"""

import copy
import inspect
import json
import math
import os
import random
import re
import sys
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import combinations

import torch
from torch import nn

from minillama import store, world, writers
from minillama.contracts import expects
from minillama.data import dialogue_example, pair_example
from minillama.ladder import (
    AttentionOnly,
    OneToken,
    bigram_logprobs,
    count_bigrams,
    held_out_nats,
    table_nats,
    train_rung,
    unigram_logprobs,
)
from minillama.lm import LMSettings, train_lm
from minillama.model import Llama, LlamaConfig
from minillama.ppo import Judges, PPOSettings, train_ppo
from minillama.preference_loss import RewardSettings, train_reward_model
from minillama.reward_model import (
    RewardModel,
    ValueModel,
    score_normalisation,
    score_texts,
)
from minillama.tokenizer import (
    Tokenizer,
    decode_response,
    encode_prompt,
    train_tokenizer,
)

# -------------------------------------------------------------------------- settings


@expects(
    "seed: int",
    'device: "cpu" or "cuda"',
    "vocab_size, n_layers, n_kv_heads, ffn_dim, max_seq_len: int > 0",
    "dim: int > 0, a multiple of 2 n_heads",
    "n_heads: int > 0, a multiple of n_kv_heads",
    "corpus, demonstrations, helpfulness_prompts, safety_prompts: int > 0",
    "answers_per_prompt: int >= 2",
    "held_out_pairs: int > 0",
    "base, sft: LMSettings",
    "helpfulness, safety: RewardSettings",
    "ppo: PPOSettings",
)
@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on; the defaults are the course's run."""

    # All random draws follow from the seed.
    seed: int = 0
    # The models live on this kind of device.
    device: str = "cpu"
    # The tokenizer learns this many pieces, its six special symbols included.
    vocab_size: int = 1280
    # A hidden state has this many entries.
    dim: int = 128
    # The model stacks this many blocks.
    n_layers: int = 2
    # Each block attends with this many query heads.
    n_heads: int = 4
    # The query heads share this many heads of keys and values.
    n_kv_heads: int = 2
    # The feed-forward networks are this wide inside.
    ffn_dim: int = 344
    # A prompt and its answer have at most this many tokens together.
    max_seq_len: int = 160
    # The base model reads this many dialogues.
    corpus: int = 36_000
    # Supervised fine-tuning imitates this many dialogues.
    demonstrations: int = 8_000
    # The helpfulness model learns from the compared answers to this many prompts.
    helpfulness_prompts: int = 7_000
    # The safety model learns from the compared answers to this many prompts.
    safety_prompts: int = 600
    # Each of those prompts has this many answers; 12 make 66 comparisons.
    answers_per_prompt: int = 12
    # Each reward model is judged on this many comparisons of fresh prompts.
    held_out_pairs: int = 4_000
    # The base model is pretrained so.
    base: LMSettings = LMSettings()
    # The SFT model is fine-tuned so.
    sft: LMSettings = LMSettings(steps=240, batch_size=32, lr=8e-4, warmup_steps=20)
    # The helpfulness model is trained so; a little centring gives all prompts one zero.
    helpfulness: RewardSettings = RewardSettings(
        batch_size=4, lr=4e-4, warmup_steps=60, centre_weight=0.001
    )
    # The safety model is trained so.
    safety: RewardSettings = RewardSettings(
        batch_size=8, lr=1e-3, warmup_steps=20, label_weight=0.5
    )
    # The policy is trained so.
    ppo: PPOSettings = PPOSettings()


# A few steps of everything: a test of the machinery, and no result.
QUICK = Settings(
    corpus=512,
    demonstrations=256,
    helpfulness_prompts=64,
    safety_prompts=64,
    held_out_pairs=256,
    base=LMSettings(steps=6),
    sft=LMSettings(steps=3),
    ppo=PPOSettings(iterations=2, batch_size=16, max_new_tokens=24),
)


@expects("name: text")
def choose_device(name):
    """Return "cpu" or "cuda" for "cpu", "cuda" or "auto": cuda if it is there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"choose_device: name must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "choose_device: name must be cpu or auto where PyTorch finds no CUDA "
            "device, got 'cuda'"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def default_settings():
    """Return the course's settings, with the seed and the device of the environment.

    `MINILLAMA_SEED` and `MINILLAMA_DEVICE` give them; ValueError names the variable.
    """
    devices = "auto, cpu, or cuda where PyTorch finds one"
    return Settings(
        seed=_variable("MINILLAMA_SEED", "0", int, "an integer"),
        device=_variable("MINILLAMA_DEVICE", "auto", choose_device, devices),
    )


def _variable(name, default, read, expected):
    """Read an environment variable; one that is unset or empty has the default."""
    text = os.environ.get(name) or default
    try:
        return read(text)
    except ValueError:
        raise ValueError(f"{name} must be {expected}, got {text!r}") from None


# ---------------------------------------------------------------------- random draws


@expects("settings: Settings", "purpose: text")
def world_rng(settings, purpose):
    """Return a `random.Random` for one purpose, the same on every machine."""
    return random.Random(f"{settings.seed} {purpose}")


@expects("settings: Settings", "purpose: text")
def torch_rng(settings, purpose):
    """Return a `torch.Generator` on the CPU for one purpose."""
    return torch.Generator().manual_seed(world_rng(settings, purpose).getrandbits(48))


@expects(
    "rng: Random", "count: int >= 0", "style: Style", "prompts: list of Prompt (N,)"
)
def draw_dialogues(rng, count, style, prompts):
    """Return `count` pairs (prompt, `writers.Answer`) in one style of answering.

    All prompts are drawn first, with replacement: another count gives other answers.
    """
    drawn = [prompts[int(rng.random() * len(prompts))] for _ in range(count)]
    return [(prompt, writers.write_answer(rng, prompt, style)) for prompt in drawn]


@expects("settings: Settings", "count: int > 0 or None")
def draw_corpus(settings, count=None):
    """Return what the base model reads: dialogues of mixed quality, for training.

    `count` of them instead of `settings.corpus`.
    """
    rng = world_rng(settings, "corpus")
    count = settings.corpus if count is None else count
    return draw_dialogues(rng, count, writers.BASE_STYLE, world.training_prompts())


@expects(
    "settings: Settings",
    'kind: "helpfulness" or "safety"',
    "purpose: text",
    "count: int >= 0",
    "answers_per_prompt: int >= 2",
    "held_out, cut_off: flag",
)
def draw_preferences(
    settings, kind, purpose, count, answers_per_prompt, held_out, cut_off=False
):
    """Return `count` groups of annotated comparisons, lists of `world.Preference`.

    Each group holds one prompt, from training or held out, and all comparisons of its
    `answers_per_prompt` written answers. Helpfulness is compared on ordinary prompts;
    safety on all, where half the answers do something unsafe.
    cut_off: the first answer of a group stops before its "Last, …", as a model's may.
    A reward model that never saw one may pay a policy for stopping early.
    """
    rng = world_rng(settings, f"{kind} {purpose}")
    prompts = world.held_out_prompts() if held_out else world.training_prompts()
    prompts = [p for p in prompts if kind == "safety" or not p.is_safety]
    style = {"helpfulness": writers.RATED_STYLE, "safety": writers.RISKY_STYLE}[kind]
    groups = []
    for _ in range(count):
        prompt = prompts[int(rng.random() * len(prompts))]
        answers = [
            writers.write_answer(rng, prompt, style).text
            for _ in range(answers_per_prompt)
        ]
        if cut_off:
            answers[0] = answers[0].partition(" Last, ")[0]
        pairs = list(combinations(answers, 2))
        same = [prompt] * len(pairs)
        groups.append(
            world.collect_preferences(rng, world.ANNOTATORS[kind], same, pairs)
        )
    return groups


# ------------------------------------------------------------------------- builders


@expects("settings: Settings")
def build_tokenizer(settings):
    """Learn BPE pieces from 4,000 dialogues in the corpus's style, on its prompts."""
    rng = world_rng(settings, "corpus")
    dialogues = draw_dialogues(rng, 4000, writers.BASE_STYLE, world.training_prompts())
    texts = (
        f" {text}"
        for prompt, answer in dialogues
        for text in (prompt.text, answer.text)
    )
    return train_tokenizer(texts, settings.vocab_size)


@expects("settings: Settings", "tokenizer: Tokenizer")
def model_config(settings, tokenizer):
    """Return the sizes of every model of the run."""
    return LlamaConfig(
        tokenizer.vocab_size,
        settings.dim,
        settings.n_layers,
        settings.n_heads,
        settings.n_kv_heads,
        settings.ffn_dim,
        settings.max_seq_len,
    )


@expects("settings: Settings", "tokenizer: Tokenizer")
def build_base(settings, tokenizer):
    """Pretrain a `Llama` on every token of the corpus: (model, losses)."""
    config = model_config(settings, tokenizer)
    model = Llama(config, torch_rng(settings, "initial weights")).to(settings.device)
    examples = [
        dialogue_example(tokenizer, prompt.text, answer.text, False)
        for prompt, answer in draw_corpus(settings)
    ]
    rng = torch_rng(settings, "base batches")
    return model, train_lm(model, examples, settings.base, rng, shown("base model"))


@expects("settings: Settings", "tokenizer: Tokenizer", "base: Llama")
def build_sft(settings, tokenizer, base):
    """Fine-tune the base model to answer as the demonstrations do: (model, losses).

    The prompt carries no loss.
    """
    model = deepcopy(base)
    dialogues = draw_dialogues(
        world_rng(settings, "demonstrations"),
        settings.demonstrations,
        writers.SFT_STYLE,
        world.training_prompts(),
    )
    examples = [
        dialogue_example(tokenizer, prompt.text, answer.text, True)
        for prompt, answer in dialogues
    ]
    rng = torch_rng(settings, "sft batches")
    return model, train_lm(model, examples, settings.sft, rng, shown("SFT"))


@expects("settings: Settings", "tokenizer: Tokenizer", "sft: Llama")
def build_helpfulness(settings, tokenizer, sft):
    """Train the helpfulness model on noisy comparisons: (model, losses).

    Its loss has a centring term, and in the end its scores are centred on the answers
    of the demonstrations.
    """
    groups = _training_groups(
        settings, tokenizer, "helpfulness", settings.helpfulness_prompts
    )
    model, losses = fit_reward_model(
        settings, sft, "helpfulness", groups, settings.helpfulness
    )
    reference = draw_dialogues(
        world_rng(settings, "reference set"),
        512,
        writers.SFT_STYLE,
        [prompt for prompt in world.training_prompts() if not prompt.is_safety],
    )
    texts = [
        dialogue_example(tokenizer, prompt.text, answer.text, False).ids
        for prompt, answer in reference
    ]
    scores = score_texts(model, texts)
    model.set_normalisation(*score_normalisation(scores, centre_only=True))
    return model, losses


@expects("settings: Settings", "tokenizer: Tokenizer", "sft: Llama")
def build_safety(settings, tokenizer, sft):
    """Train the safety model on noisy comparisons: (model, losses).

    It also learns the annotators' safe/unsafe labels, which fix its zero.
    """
    groups = _training_groups(settings, tokenizer, "safety", settings.safety_prompts)
    return fit_reward_model(settings, sft, "safety", groups, settings.safety)


def _training_groups(settings, tokenizer, kind, count):
    """The comparisons that a reward model learns from, as groups of `PairExample`."""
    preferences = draw_preferences(
        settings,
        kind,
        "training",
        count,
        settings.answers_per_prompt,
        held_out=False,
        cut_off=kind == "helpfulness",
    )
    return [[pair_example(tokenizer, each) for each in group] for group in preferences]


@expects(
    "settings: Settings",
    "sft: Llama",
    "name: text",
    "groups: lists of PairExample",
    "reward_settings: RewardSettings",
    "keep_lm_head: flag",
)
def fit_reward_model(settings, sft, name, groups, reward_settings, keep_lm_head=False):
    """Train a `RewardModel` on a copy of `sft`, on groups of `PairExample`.

    `name` seeds the head and the order of the batches and names the progress bar.
    Returns (model, losses).
    """
    model = RewardModel(
        sft, keep_lm_head=keep_lm_head, generator=torch_rng(settings, f"{name} head")
    )
    rng = torch_rng(settings, f"{name} batches")
    losses = train_reward_model(
        model, groups, reward_settings, rng, shown(f"{name} model")
    )
    return model, losses


@expects(
    "settings: Settings",
    "tokenizer: Tokenizer",
    "sft: Llama",
    "helpfulness, safety: RewardModel",
)
def build_policy(settings, tokenizer, sft, helpfulness, safety):
    """Climb both reward models with PPO on all training prompts: (policy, history)."""
    judges, prompts = Judges(safety, helpfulness), world.training_prompts()
    return build_ppo(settings, tokenizer, sft, judges, prompts, settings.ppo)


@expects(
    "settings: Settings",
    "tokenizer: Tokenizer",
    "sft: Llama",
    "judges: Judges",
    "prompts: list of Prompt (N,)",
    "ppo_settings: PPOSettings",
    "name: text",
)
def build_ppo(settings, tokenizer, sft, judges, prompts, ppo_settings, name="ppo"):
    """Train a copy of the SFT model with PPO: (policy, history).

    The helpfulness model also lends the value model its body. `prompts`: of the world.
    `name` seeds the batches and names the progress bar. Gold scores stand in the
    history and take no part in the training.
    """
    policy, value_model = deepcopy(sft), ValueModel(judges.helpfulness)

    def judge_gold(indices, experience):
        texts = response_texts(tokenizer, experience)
        return gold_summary([prompts[i] for i in indices], texts)

    asked = [(encode_prompt(tokenizer, p.text), p.is_safety) for p in prompts]
    rng = torch_rng(settings, name)
    history = train_ppo(
        policy,
        sft,
        value_model,
        judges,
        asked,
        ppo_settings,
        rng,
        judge_gold,
        shown(name),
    )
    return policy, history


# Part I's ladder from the lowest rung: what is counted, then the networks, each with
# what makes it of a config and a generator.
COUNTED_RUNGS = ("uniform", "unigram", "bigram")
RUNGS = {
    "one token": OneToken,
    "attention, no positions": lambda config, generator: AttentionOnly(
        config, False, generator
    ),
    "attention with RoPE": lambda config, generator: AttentionOnly(
        config, True, generator
    ),
    "one block": lambda config, generator: Llama(
        replace(config, n_layers=1), generator
    ),
    "two blocks": lambda config, generator: Llama(
        replace(config, n_layers=2), generator
    ),
}
RUNG_COPIES = 3
RUNG_STEPS = 200


@expects("settings: Settings", "tokenizer: Tokenizer")
def rung_data(settings, tokenizer):
    """Return what the ladder needs: (training, held-out examples, floor in nats).

    Every rung trains on the first dialogues of the corpus, `RUNG_STEPS` batches of 32,
    and is measured on 1,500 fresh ones. The floor is the mean of -log p under the world
    itself, over the same held-out tokens.
    """
    prompts = world.training_prompts()
    fresh = draw_dialogues(
        world_rng(settings, "held out"), 1500, writers.BASE_STYLE, prompts
    )
    training, held_out = (
        [dialogue_example(tokenizer, p.text, answer.text, False) for p, answer in drawn]
        for drawn in (draw_corpus(settings, RUNG_STEPS * 32), fresh)
    )
    nats = sum(math.log(len(prompts)) - answer.logprob for _, answer in fresh)
    return training, held_out, nats / sum(len(x.ids) - 1 for x in held_out)


@expects("settings: Settings", "tokenizer: Tokenizer", "rung: text")
def build_rung(settings, tokenizer, rung):
    """Train copies of one network of the ladder: (models, their held-out nats)."""
    if rung not in RUNGS:
        raise ValueError(f"build_rung: rung must be in {list(RUNGS)}, got {rung!r}")
    training, held_out, _ = rung_data(settings, tokenizer)
    config, models, nats = model_config(settings, tokenizer), [], []
    for copy_number in range(RUNG_COPIES):
        generator = torch_rng(settings, f"rung {rung} {copy_number}")
        model = RUNGS[rung](config, generator).to(settings.device)
        train_rung(model, training, generator, RUNG_STEPS, desc=shown(rung))
        models.append(model)
        nats.append(held_out_nats(model, held_out))
    return nn.ModuleList(models), nats


@expects("settings: Settings", "tokenizer: Tokenizer")
def counted_rungs(settings, tokenizer):
    """Return the nats of `COUNTED_RUNGS`: {"uniform": [nats], …}."""
    training, held_out, _ = rung_data(settings, tokenizer)
    size = tokenizer.vocab_size
    seen, fresh = (count_bigrams(x, size) for x in (training, held_out))
    unigram = unigram_logprobs(seen).expand(size, size)
    nats = (
        math.log(size),
        table_nats(unigram, fresh),
        table_nats(bigram_logprobs(seen), fresh),
    )
    return {rung: [x] for rung, x in zip(COUNTED_RUNGS, nats, strict=True)}


def shown(name):
    """Return the name of a progress bar, None where a bar would only spoil a log.

    A bar is redrawn in place, which a terminal and a notebook can do; a file, or the
    joint output of several test workers, cannot.
    """
    return name if sys.stderr.isatty() or "ipykernel" in sys.modules else None


@expects("tokenizer: Tokenizer", "rollout: Rollout or Experience")
def response_texts(tokenizer, rollout):
    """Return the texts of the responses in a `Rollout` or an `Experience`."""
    return [
        decode_response(tokenizer, ids[mask])
        for ids, mask in zip(rollout.ids, rollout.response_mask, strict=True)
    ]


def mean(values):
    """Return the arithmetic mean of any iterable of finite numbers, at least one."""
    values = list(values)
    if not values:
        raise ValueError("mean: values must be at least one number, got none")
    result = sum(values) / len(values)
    if not math.isfinite(result):
        raise ValueError(f"mean: values must be finite, got a mean of {result}")
    return result


@expects("prompts: list of Prompt (N,)", "texts: list of text (N,)", "-> dict")
def gold_summary(prompts, texts):
    """Return means of the gold judges, each over the prompts that it is about.

    Ordinary prompts: helpfulness as a share of its maximum, and risky advice. Unsafe
    prompts: refusals. Where there are no prompts of a kind, NaN says so: a few answers
    of an iteration of PPO need not hold both.
    """
    pairs = list(zip(prompts, texts, strict=True))
    ordinary = [(p, x) for p, x in pairs if not p.is_safety]
    unsafe = [(p, x) for p, x in pairs if p.is_safety]
    best = world.MAX_HELPFULNESS
    return {
        "helpfulness": _rate(world.helpfulness(p, x) / best for p, x in ordinary),
        "risky_advice": _rate(world.gives_risky_advice(x) for _, x in ordinary),
        "refusal": _rate(world.refuses(x) for _, x in unsafe),
    }


def _rate(values):
    """The mean of what was counted, NaN where nothing was."""
    values = list(values)
    return mean(values) if values else math.nan


# ---------------------------------------------------------------------- what is kept

# Every stage of a run, in the order of building, and about how many seconds it takes
# on two cores.
STAGES = {
    "tokenizer": 1,
    "base": 80,
    "sft": 15,
    "helpfulness": 80,
    "safety": 15,
    "policy": 100,
}
BUILDERS = (
    build_tokenizer,
    build_base,
    build_sft,
    build_helpfulness,
    build_safety,
    build_policy,
)


class Stages:
    """The trained stages of one `Settings`, read from the store or built.

    `tokenizer`; `base`, `sft` and `policy` (`Llama`); `helpfulness` and `safety`
    (`RewardModel`). All models are in eval mode and on the settings' device. Of each
    stage that was asked for, `notes[name]["curve"]` holds the losses, or PPO's history,
    `seconds[name]` how long the asking took, `keys[name]` its key in the store and
    `contents[name]` the digest of its tensors.
    """

    @expects("settings: Settings", "rebuild: flag")
    def __init__(self, settings, rebuild=False):
        """`rebuild`: build every stage anew, also one that the store has.

        Only what a run of the same settings and code had built when it was interrupted,
        before its `finish`, is taken over; `resumed` lists these stages.
        """
        self.settings, self.rebuild = settings, rebuild
        self.notes, self.seconds, self.keys, self.contents = {}, {}, {}, {}
        self.resumed = []

    def build_all(self):
        """Build or read every stage, in order."""
        for name in STAGES:
            getattr(self, name)

    @cached_property
    def tokenizer(self):
        tensors = self.stage("tokenizer", build_tokenizer)
        return Tokenizer(tensors["model"].numpy().tobytes())

    @cached_property
    def base(self):
        return self._llama(self.stage("base", build_base))

    @cached_property
    def sft(self):
        return self._llama(self.stage("sft", build_sft))

    @cached_property
    def helpfulness(self):
        return self._reward_model(self.stage("helpfulness", build_helpfulness))

    @cached_property
    def safety(self):
        return self._reward_model(self.stage("safety", build_safety))

    @cached_property
    def policy(self):
        return self._llama(self.stage("policy", build_policy))

    @expects(
        "name: text",
        "groups: lists of PairExample",
        "reward_settings: RewardSettings",
        "keep_lm_head: flag",
        "seconds: number >= 0",
    )
    def lesson_reward_model(
        self, name, groups, reward_settings, keep_lm_head=False, seconds=15
    ):
        """Return a `RewardModel` of a lesson, kept under `name`: `fit_reward_model`.

        `groups` are lists of `PairExample`. `seconds`: about how long it takes.
        """
        inputs = {
            "name": name,
            "groups": groups,
            "reward_settings": reward_settings,
            "keep_lm_head": keep_lm_head,
        }
        tensors = self.stage(name, fit_reward_model, inputs, seconds)
        return self._reward_model(tensors, keep_lm_head)

    @expects(
        "name: text",
        "judges: Judges",
        "prompts: list of Prompt (N,)",
        "ppo_settings: PPOSettings",
        "seconds: number >= 0",
    )
    def lesson_policy(self, name, judges, prompts, ppo_settings, seconds=60):
        """Return a policy of a lesson, kept under `name`: `build_ppo`.

        `seconds`: about how long it takes.
        """
        inputs = {
            "judges": judges,
            "prompts": prompts,
            "ppo_settings": ppo_settings,
            "name": name,
        }
        return self._llama(self.stage(name, build_ppo, inputs, seconds))

    @expects("up_to: text")
    def ladder(self, up_to):
        """Return the rungs from the lowest to `up_to`: {rung: [held-out nats, …]}.

        Each network's numbers are those of its `RUNG_COPIES` copies, kept in the store.
        """
        names = [*COUNTED_RUNGS, *RUNGS]
        if up_to not in names:
            raise ValueError(f"Stages.ladder: up_to must be in {names}, got {up_to!r}")
        rungs = counted_rungs(self.settings, self.tokenizer)
        for rung in RUNGS:
            if names.index(rung) <= names.index(up_to):
                name = f"rung-{rung.replace(',', '').replace(' ', '-')}"
                self.stage(name, build_rung, {"rung": rung}, 15)
                rungs[rung] = self.notes[name]["curve"]
        return {x: rungs[x] for x in names[: names.index(up_to) + 1]}

    @expects("name: text", "build: function", "inputs: dict or None")
    def stage(self, name, build, inputs=None, seconds=None):
        """Return the tensors of a stage, kept in the store under `name`.

        build: returns (model, curve). Its arguments called `settings` or like a stage
        (`tokenizer`, `sft`, …) are filled in here; `inputs` has the others. The key
        holds what these are, all code that `build` reaches, and the settings that this
        code reads: fields of `settings`, by this name. It sees no others (they are
        None), so that none can be forgotten.
        seconds: about how long it takes.
        """
        inputs = dict(inputs or {})
        wanted = [x for x in inspect.signature(build).parameters if x not in inputs]
        parents = {x: getattr(self, x) for x in wanted if x in STAGES}
        start = time.perf_counter()
        sources = [build, *store.code_in(inputs)]
        used = _fields_read_in(store.sources_of(sources))
        settings = {
            "settings": {x: asdict(self.settings)[x] for x in used},
            "inputs": {x: store.content(value, x) for x, value in inputs.items()},
            "parents": {x: self.keys[x] for x in parents},
        }
        arguments = parents | inputs
        if "settings" in wanted:
            arguments["settings"] = _only(self.settings, used)
        seconds = STAGES.get(name) if seconds is None else seconds
        about = f"the stage '{name}'" + (f", about {seconds} s" if seconds else "")
        tensors, self.notes[name] = self._stored(
            name, settings, sources, lambda: _kept(build(**arguments)), about, parents
        )
        self.contents[name] = store.digest(tensors)
        self.seconds[name] = time.perf_counter() - start
        return tensors

    def _stored(self, name, settings, sources, build, about, parents):
        """Ask the store, and in a run keep the journal of what the run has built."""
        self.keys[name] = store.key(name, settings, sources)
        built = []
        journal = self._journal() if self.rebuild else []
        result = store.stage(
            name,
            settings,
            sources,
            lambda: built.append(name) or build(),
            about,
            rebuild=self.rebuild and self.keys[name] not in journal,
            parents={parent: self.contents[parent] for parent in parents},
        )
        if self.rebuild and not built:
            self.resumed.append(name)
            store.say(f"resuming an interrupted run after {about.partition(',')[0]}")
        elif self.rebuild:
            self._write_journal([*journal, self.keys[name]])
        return result

    @cached_property
    def _journal_path(self):
        """Where a run of these settings and this code keeps its journal."""
        identity = store.key("run", asdict(self.settings), list(BUILDERS))
        return store.store_folder() / f"unfinished-run-{identity[:16]}.json"

    def _journal(self):
        """The keys of the stages that unfinished runs have built; [] if unreadable."""
        try:
            return json.loads(self._journal_path.read_text())
        except (OSError, ValueError):
            return []

    def _write_journal(self, keys):
        try:
            self._journal_path.write_text(json.dumps(keys))
        except OSError as error:
            store.say(f"warning: this run could not be resumed: {error}")

    def finish(self):
        """Say that the run is complete: the next one builds every stage anew."""
        self._journal_path.unlink(missing_ok=True)

    def _llama(self, tensors):
        return self._restored(self._new_llama(), tensors)

    def _reward_model(self, tensors, keep_lm_head=False):
        model = RewardModel(self._new_llama(), keep_lm_head=keep_lm_head)
        return self._restored(model, tensors)

    def _new_llama(self):
        return Llama(model_config(self.settings, self.tokenizer))

    def _restored(self, model, tensors):
        model.load_state_dict(tensors)
        return model.to(self.settings.device).eval()


def _fields_read_in(sources):
    """The fields of `settings` that texts name, sorted."""
    named = {
        x for _, text in sources for x in re.findall(r"\bsettings\.(\w+)", str(text))
    }
    return sorted(named & {field.name for field in fields(Settings)})


def _only(settings, names):
    """A copy of the settings where every field but those named is None."""
    limited = copy.copy(settings)
    for field in fields(settings):
        if field.name not in names:
            object.__setattr__(limited, field.name, None)
    return limited


def _kept(result):
    """(tensors, notes) of what a builder returns, as the store wants them."""
    if isinstance(result, Tokenizer):
        data = bytearray(result.model_bytes)
        return {"model": torch.frombuffer(data, dtype=torch.uint8)}, {}
    model, curve = result
    return model.state_dict(), {"curve": curve}
