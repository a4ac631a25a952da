"""The stages of the course: what each is made of, what builds it, and the store that keeps it.

Each `build_…` function is one stage: settings and earlier stages in, a trained model and its curve out, the
same on every call. `Stages` keeps what was built in the store; notebooks take their models from there.
"""

import hashlib
import math
import os
import random
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations

import torch

from minillama import (
    data,
    gae,
    kl,
    lm,
    optim,
    ppo,
    preference_loss,
    reward_model,
    reward_selection,
    store,
    whiten,
    world,
)
from minillama import generate as generation
from minillama import model as llama
from minillama import tokenizer as tokenization
from minillama.data import dialogue_example, pair_example
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


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on; the defaults are the course's run."""

    seed: int = 0
    device: str = "cpu"
    vocab_size: int = 1280
    dim: int = 128
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    ffn_dim: int = 344
    max_seq_len: int = 160
    corpus: int = 24_000  # dialogues that the base model reads, once each
    demonstrations: int = 8_000  # dialogues of supervised fine-tuning
    helpfulness_prompts: int = (
        7_500  # prompts whose answers are compared, for each reward model
    )
    safety_prompts: int = 800
    answers_per_prompt: int = 8  # so 28 comparisons a prompt
    held_out_pairs: int = 4_000  # comparisons that each reward model is judged on
    base: LMSettings = LMSettings()
    sft: LMSettings = LMSettings(steps=240, lr=8e-4, warmup_steps=20)
    helpfulness: RewardSettings = RewardSettings(batch_size=8, warmup_steps=200)
    safety: RewardSettings = RewardSettings(lr=1e-3, warmup_steps=10, label_weight=0.5)
    ppo: PPOSettings = PPOSettings()


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


def draw_corpus(settings):
    """What the base model reads: dialogues of mixed quality on the training prompts."""
    return draw_dialogues(
        world_rng(settings, "corpus"),
        settings.corpus,
        world.BASE_STYLE,
        world.training_prompts(),
    )


def build_tokenizer(settings):
    """BPE pieces learned from the first 4,000 dialogues of the corpus."""
    return train_tokenizer(
        (
            f" {text}"
            for prompt, answer in draw_corpus(replace(settings, corpus=4000))
            for text in (prompt.text, answer.text)
        ),
        settings.vocab_size,
    )


def model_config(settings, tokenizer):
    """The sizes of every model of the run."""
    return LlamaConfig(
        tokenizer.vocab_size,
        settings.dim,
        settings.n_layers,
        settings.n_heads,
        settings.n_kv_heads,
        settings.ffn_dim,
        settings.max_seq_len,
    )


def build_base(settings, tokenizer):
    """A `Llama` with random weights, pretrained on every token of the corpus: (model, losses)."""
    model = Llama(
        model_config(settings, tokenizer), torch_rng(settings, "initial weights")
    ).to(settings.device)
    examples = [
        dialogue_example(tokenizer, prompt.text, answer.text, False)
        for prompt, answer in draw_corpus(settings)
    ]
    losses = train_lm(
        model,
        examples,
        settings.base,
        torch_rng(settings, "base batches"),
        "base model",
    )
    return model, losses


def build_sft(settings, tokenizer, base):
    """The base model, fine-tuned to answer as the demonstrations do; the prompt carries no loss: (model, losses)."""
    model = deepcopy(base)
    dialogues = draw_dialogues(
        world_rng(settings, "demonstrations"),
        settings.demonstrations,
        world.SFT_STYLE,
        world.training_prompts(),
    )
    examples = [
        dialogue_example(tokenizer, prompt.text, answer.text, True)
        for prompt, answer in dialogues
    ]
    losses = train_lm(
        model, examples, settings.sft, torch_rng(settings, "sft batches"), "SFT"
    )
    return model, losses


def draw_preferences(settings, kind, purpose, count, answers_per_prompt, held_out):
    """Annotated comparisons for the "helpfulness" or the "safety" model: ``count`` groups of `world.Preference`.

    Each group holds one prompt, ``held_out`` from training or not, and all comparisons of its ``answers_per_prompt`` written answers. Helpfulness
    is compared on ordinary prompts; safety on all, where half the answers do something unsafe.
    """
    rng = world_rng(settings, f"{kind} {purpose}")
    prompts = [
        prompt
        for prompt in (
            world.held_out_prompts() if held_out else world.training_prompts()
        )
        if kind == "safety" or not prompt.is_safety
    ]
    style = {"helpfulness": world.RATED_STYLE, "safety": world.RISKY_STYLE}[kind]
    groups = []
    for _ in range(count):
        prompt = prompts[int(rng.random() * len(prompts))]
        answers = [
            world.write_answer(rng, prompt, style).text
            for _ in range(answers_per_prompt)
        ]
        pairs = list(combinations(answers, 2))
        groups.append(
            world.collect_preferences(
                rng, world.ANNOTATORS[kind], [prompt] * len(pairs), pairs
            )
        )
    return groups


def build_reward_model(settings, tokenizer, sft, kind):
    """A reward model on the SFT model's body, one epoch of noisy comparisons: (model, losses).

    Safety also learns the annotators' safe/unsafe labels, which fix its zero; helpfulness is centred on the
    answers of the demonstrations instead.
    """
    count = {
        "helpfulness": settings.helpfulness_prompts,
        "safety": settings.safety_prompts,
    }[kind]
    preferences = draw_preferences(
        settings, kind, "training", count, settings.answers_per_prompt, False
    )
    groups = [
        [pair_example(tokenizer, preference) for preference in group]
        for group in preferences
    ]
    model, losses = fit_reward_model(
        settings, sft, kind, groups, getattr(settings, kind)
    )
    if kind == "helpfulness":
        reference = draw_dialogues(
            world_rng(settings, "reference set"),
            512,
            world.SFT_STYLE,
            [prompt for prompt in world.training_prompts() if not prompt.is_safety],
        )
        texts = [
            dialogue_example(tokenizer, prompt.text, answer.text, False).ids
            for prompt, answer in reference
        ]
        model.set_normalisation(
            *score_normalisation(score_texts(model, texts), centre_only=True)
        )
    return model, losses


def fit_reward_model(settings, sft, name, groups, reward_settings, keep_lm_head=False):
    """A `RewardModel` on a copy of ``sft``, trained on groups of `PairExample`: (model, losses).

    ``name`` seeds the head and the order of the batches and names the progress bar.
    """
    model = RewardModel(
        sft, keep_lm_head=keep_lm_head, generator=torch_rng(settings, f"{name} head")
    )
    losses = train_reward_model(
        model,
        groups,
        reward_settings,
        torch_rng(settings, f"{name} batches"),
        f"{name} model",
    )
    return model, losses


def response_texts(tokenizer, rollout):
    """The texts of the responses in a `Rollout` or an `Experience`."""
    return [
        decode_response(tokenizer, ids[mask])
        for ids, mask in zip(rollout.ids, rollout.response_mask, strict=True)
    ]


def mean(values):
    """Arithmetic mean of any iterable, NaN if it is empty."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def gold_summary(prompts, texts):
    """Means of the gold judges: helpfulness as a share of its maximum and risky advice on ordinary prompts,
    refusals on unsafe ones."""
    scored = list(zip(prompts, texts, strict=True))
    return {
        "helpfulness": mean(
            world.helpfulness(p, x) / world.MAX_HELPFULNESS
            for p, x in scored
            if not p.is_safety
        ),
        "risky_advice": mean(
            world.gives_risky_advice(x) for p, x in scored if not p.is_safety
        ),
        "refusal": mean(world.refuses(x) for p, x in scored if p.is_safety),
    }


def build_ppo(settings, tokenizer, sft, judges, prompts, ppo_settings, name="ppo"):
    """The SFT model, climbed with PPO: (policy, history), gold scores in the history but not in the training.

    ``judges``: `ppo.Judges`, the helpfulness model also lends the value model its body. ``prompts``: of the world.
    ``name`` seeds the batches and names the progress bar.
    """
    policy, value_model = deepcopy(sft), ValueModel(judges.helpfulness)

    def judge_gold(indices, experience):
        texts = response_texts(tokenizer, experience)
        return gold_summary([prompts[i] for i in indices], texts)

    history = train_ppo(
        policy,
        sft,
        value_model,
        judges,
        [
            (encode_prompt(tokenizer, prompt.text), prompt.is_safety)
            for prompt in prompts
        ],
        ppo_settings,
        torch_rng(settings, name),
        judge_gold,
        name,
    )
    return policy, history


def choose_device(name):
    """ "cpu" or "cuda" from "auto", "cpu" or "cuda"; ValueError for another name or for cuda where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"choose_device: name must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "choose_device: name is cuda, but PyTorch finds no CUDA device here; use cpu or auto"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def default_settings():
    """The course's settings, with seed and device from ``MINILLAMA_SEED`` and ``MINILLAMA_DEVICE`` if they are set."""
    return Settings(
        seed=int(os.environ.get("MINILLAMA_SEED") or 0),
        device=choose_device(os.environ.get("MINILLAMA_DEVICE") or "auto"),
    )


class Stages:
    """The trained stages of one `Settings`, each read from the store, or built first if it is not there.

    Attributes: ``tokenizer``; ``base``, ``sft`` and ``policy`` (`Llama`); ``helpfulness`` and ``safety``
    (`RewardModel`). ``notes[name]`` holds the curve of a stage that was asked for: losses, or PPO's history;
    ``seconds[name]`` how long the asking took. All models are in eval mode and on the settings' device.
    """

    def __init__(self, settings, rebuild=False):
        """``rebuild``: build every stage anew, even where the store has it."""
        self.settings, self.rebuild, self.notes, self.seconds, self.keys = (
            settings,
            rebuild,
            {},
            {},
            {},
        )

    @cached_property
    def tokenizer(self):
        tensors = self.stage(
            "tokenizer",
            ("vocab_size",),
            (build_tokenizer, tokenization),
            (),
            self._tokenizer,
            1,
        )
        return Tokenizer(tensors["model"].numpy().tobytes())

    @cached_property
    def base(self):
        fields = (
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "ffn_dim",
            "max_seq_len",
            "corpus",
            "base",
        )
        tensors = self.stage(
            "base",
            fields,
            (build_base, model_config, llama, data, lm, optim),
            ("tokenizer",),
            lambda: trained(build_base(self.settings, self.tokenizer)),
            60,
        )
        return self._llama(tensors)

    @cached_property
    def sft(self):
        tensors = self.stage(
            "sft",
            ("demonstrations", "sft"),
            (build_sft,),
            ("base",),
            lambda: trained(build_sft(self.settings, self.tokenizer, self.base)),
            25,
        )
        return self._llama(tensors)

    @cached_property
    def helpfulness(self):
        return self._reward_model("helpfulness", 150)

    @cached_property
    def safety(self):
        return self._reward_model("safety", 20)

    @cached_property
    def policy(self):
        def build():
            return build_ppo(
                self.settings,
                self.tokenizer,
                self.sft,
                Judges(self.safety, self.helpfulness),
                world.training_prompts(),
                self.settings.ppo,
            )

        return self._policy("policy", ("ppo",), ("helpfulness", "safety"), build, 120)

    def lesson_reward_model(
        self, name, groups, reward_settings, keep_lm_head=False, seconds=15
    ):
        """A `RewardModel` of a lesson, see `fit_reward_model`; kept in the store under ``name``, losses in the notes.

        ``groups``: lists of `PairExample`, whose content is part of the key. ``seconds``: about how long it takes.
        """
        more = {
            "groups": hashlib.sha256(repr(groups).encode()).hexdigest(),
            "keep_lm_head": keep_lm_head,
            "reward_settings": asdict(reward_settings),
        }
        tensors = self.stage(
            name,
            (),
            (fit_reward_model, preference_loss, reward_model),
            ("sft",),
            lambda: trained(
                fit_reward_model(
                    self.settings, self.sft, name, groups, reward_settings, keep_lm_head
                )
            ),
            seconds,
            more,
        )
        return self._restored(
            RewardModel(self._new_llama(), keep_lm_head=keep_lm_head), tensors
        )

    def lesson_policy(self, name, judges, prompts, ppo_settings, seconds=60):
        """A policy of a lesson, see `build_ppo`; kept in the store under ``name``, PPO's history in the notes.

        The weights of the judges and the prompts are part of the key. ``seconds``: about how long it takes.
        """
        weights = [
            tensor.cpu().numpy().tobytes()
            for judge in (judges.safety, judges.helpfulness)
            for tensor in judge.state_dict().values()
        ]
        more = {
            "judges": hashlib.sha256(b"".join(weights)).hexdigest(),
            "prompts": hashlib.sha256(repr(prompts).encode()).hexdigest(),
            "ppo_settings": asdict(ppo_settings),
        }

        def build():
            return build_ppo(
                self.settings,
                self.tokenizer,
                self.sft,
                judges,
                prompts,
                ppo_settings,
                name,
            )

        return self._policy(name, (), ("sft",), build, seconds, more)

    def _policy(self, name, fields, parents, build, seconds, more=()):
        sources = (
            build_ppo,
            gold_summary,
            gae,
            generation,
            kl,
            ppo,
            reward_selection,
            whiten,
        )
        return self._llama(
            self.stage(
                name, fields, sources, parents, lambda: trained(build()), seconds, more
            )
        )

    def _reward_model(self, kind, seconds):
        sources = (
            build_reward_model,
            fit_reward_model,
            draw_preferences,
            preference_loss,
            reward_model,
        )
        tensors = self.stage(
            kind,
            (f"{kind}_prompts", "answers_per_prompt", kind),
            sources,
            ("sft",),
            lambda: trained(
                build_reward_model(self.settings, self.tokenizer, self.sft, kind)
            ),
            seconds,
        )
        return self._restored(RewardModel(self._new_llama()), tensors)

    def _llama(self, tensors):
        return self._restored(self._new_llama(), tensors)

    def _new_llama(self):
        return Llama(model_config(self.settings, self.tokenizer))

    def _restored(self, model, tensors):
        model.load_state_dict(tensors)
        return model.to(self.settings.device).eval()

    def _tokenizer(self):
        return {
            "model": torch.frombuffer(
                bytearray(build_tokenizer(self.settings).model_bytes), dtype=torch.uint8
            )
        }, {}

    def stage(self, name, fields, sources, parents, build, seconds, more=()):
        """Tensors of a stage; it depends on ``fields`` of the settings, ``sources``, ``parents`` and ``more`` (a dict)."""
        for parent in parents:
            getattr(self, parent)
        start = time.perf_counter()
        relevant = {
            field: value
            for field, value in asdict(self.settings).items()
            if field in fields
        }
        settings = {
            "seed": self.settings.seed,
            "device": self.settings.device,
            **relevant,
            **dict(more),
            "parents": [self.keys[parent] for parent in parents],
        }
        sources = [world, world_rng, torch_rng, draw_dialogues, draw_corpus, *sources]
        self.keys[name] = store.key(name, settings, sources)
        tensors, self.notes[name] = store.stage(
            name,
            settings,
            sources,
            build,
            f"the stage '{name}', about {seconds} s",
            rebuild=self.rebuild,
        )
        self.seconds[name] = time.perf_counter() - start
        return tensors


def trained(result):
    """(model, curve) as the store wants it: (state dict, JSON notes)."""
    model, curve = result
    return model.state_dict(), {"curve": curve}
