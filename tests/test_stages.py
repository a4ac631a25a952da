"""The stages: what they are made of, when they are served, what a run takes over."""

import json
import math
import random
from collections import Counter
from dataclasses import asdict, fields, replace

import pytest
import torch

from minillama import preference_loss, stages, store, world, writers
from minillama.data import pair_example
from minillama.ladder import AttentionOnly, OneToken
from minillama.model import Llama, LlamaConfig
from minillama.ppo import Judges, PPOSettings
from minillama.preference_loss import RewardSettings
from minillama.reward_model import RewardModel
from minillama.stages import QUICK, STAGES, Settings, Stages

# Smaller still than QUICK: a second or two for all stages.
TINY = replace(
    QUICK,
    vocab_size=1000,
    max_seq_len=200,
    dim=16,
    n_heads=2,
    n_kv_heads=1,
    ffn_dim=16,
    corpus=64,
    demonstrations=64,
    helpfulness_prompts=16,
    safety_prompts=32,
    answers_per_prompt=2,
    held_out_pairs=16,
    base=replace(QUICK.base, steps=2),
    sft=replace(QUICK.sft, steps=2),
    helpfulness=RewardSettings(batch_size=8, warmup_steps=1),
    safety=RewardSettings(batch_size=16, warmup_steps=1, label_weight=0.5),
    ppo=PPOSettings(
        iterations=1, batch_size=4, minibatches=2, max_new_tokens=4, warmup_steps=1
    ),
)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLAMA_ARTIFACTS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """All stages of TINY, built once for the tests that only read them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("shared")
        patch.setenv("MINILLAMA_ARTIFACTS", str(folder))
        built = Stages(TINY)
        built.build_all()
        built.folder = folder
    return built


@pytest.fixture
def served(shared, monkeypatch):
    """The store with all stages of TINY, for tests that add nothing to it."""
    monkeypatch.setenv("MINILLAMA_ARTIFACTS", str(shared.folder))
    return shared


def same(one, other):
    """Whether two models have the same weights, bit for bit."""
    return store.digest(one.state_dict()) == store.digest(other.state_dict())


def count_builds(monkeypatch):
    """A list that grows with the names of the stages that are built."""
    built, stage = [], store.stage

    def counted(name, settings, sources, build, *rest, **more):
        def count():
            built.append(name)
            return build()

        return stage(name, settings, sources, count, *rest, **more)

    monkeypatch.setattr(store, "stage", counted)
    return built


# ----------------------------------------------------------------------------- settings


def test_defaults_come_from_the_environment(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("MINILLAMA_DEVICE", raising=False)
    assert stages.default_settings() == Settings()
    monkeypatch.setenv("MINILLAMA_SEED", "7")
    monkeypatch.setenv("MINILLAMA_DEVICE", "cpu")
    assert stages.default_settings() == Settings(seed=7)
    monkeypatch.setenv("MINILLAMA_SEED", "")
    monkeypatch.setenv("MINILLAMA_DEVICE", "")
    assert stages.default_settings() == Settings()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert stages.default_settings() == Settings(device="cuda")


@pytest.mark.parametrize(
    "variable, text, message",
    [
        ("MINILLAMA_SEED", "abc", "MINILLAMA_SEED must be an integer, got 'abc'"),
        ("MINILLAMA_SEED", "1.5", "MINILLAMA_SEED must be an integer, got '1.5'"),
        (
            "MINILLAMA_DEVICE",
            "gpu",
            "MINILLAMA_DEVICE must be auto, cpu, or cuda where PyTorch finds one, "
            "got 'gpu'",
        ),
        (
            "MINILLAMA_DEVICE",
            "cuda",
            "MINILLAMA_DEVICE must be auto, cpu, or cuda where PyTorch finds one, "
            "got 'cuda'",
        ),
    ],
)
def test_a_bad_variable_is_named(monkeypatch, variable, text, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError) as error:
        stages.default_settings()
    assert str(error.value) == message


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stages.choose_device("auto") == stages.choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="auto, cpu or cuda, got 'tpu'$"):
        stages.choose_device("tpu")
    with pytest.raises(ValueError, match="finds no CUDA device, got 'cuda'$"):
        stages.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert stages.choose_device("auto") == stages.choose_device("cuda") == "cuda"
    assert stages.choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": 1.5},
        {"device": "gpu"},
        {"dim": 0},
        {"corpus": True},
        {"answers_per_prompt": 1},
        {"base": PPOSettings()},
        {"safety": None},
        {"ppo": RewardSettings()},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(
        (TypeError, ValueError), match=f"^Settings.*{next(iter(wrong))}"
    ):
        replace(QUICK, **wrong)


# ------------------------------------------------------------------------- random draws


def test_every_purpose_and_seed_has_its_own_numbers():
    draws = {
        stages.world_rng(replace(QUICK, seed=seed), purpose).random()
        for seed in (0, 1)
        for purpose in ("a", "b")
    }
    assert len(draws) == 4
    # As it has always been: the text "seed purpose" seeds Python's generator, and 48
    # bits of that one seed PyTorch's.
    assert stages.world_rng(QUICK, "a").random() == random.Random("0 a").random()
    generator = stages.torch_rng(QUICK, "a")
    assert generator.initial_seed() == random.Random("0 a").getrandbits(48)


def test_drawn_dialogues():
    prompts = world.training_prompts()[:3]
    drawn = stages.draw_dialogues(random.Random(0), 40, writers.SFT_STYLE, prompts)
    assert len(drawn) == 40 and {prompt for prompt, _ in drawn} == set(prompts)
    again = stages.draw_dialogues(random.Random(0), 40, writers.SFT_STYLE, prompts)
    assert drawn == again
    # The draws alternate: a prompt is drawn for each before any answer is written.
    rng = random.Random(0)
    first = [prompts[int(rng.random() * 3)] for _ in range(40)]
    assert [prompt for prompt, _ in drawn] == first
    assert drawn[0][1] == writers.write_answer(rng, first[0], writers.SFT_STYLE)


def test_the_corpus_has_the_base_style_on_training_prompts():
    corpus = stages.draw_corpus(TINY)
    expected = stages.draw_dialogues(
        stages.world_rng(TINY, "corpus"),
        64,
        writers.BASE_STYLE,
        world.training_prompts(),
    )
    assert corpus == expected
    assert stages.draw_corpus(replace(TINY, corpus=1), 64) == corpus


def test_preferences_are_on_the_prompts_they_are_for():
    fresh = set(world.held_out_prompts())
    for held_out in (True, False):
        groups = stages.draw_preferences(QUICK, "safety", "x", 30, 4, held_out=held_out)
        # 4 answers have 4 * 3 / 2 = 6 comparisons.
        assert len(groups) == 30
        for group in groups:
            assert len(group) == 6 and len({x.prompt for x in group}) == 1
            assert len({t for x in group for t in (x.chosen, x.rejected)}) <= 4
            assert (group[0].prompt in fresh) is held_out
        assert {group[0].prompt.is_safety for group in groups} == {True, False}
    groups = stages.draw_preferences(QUICK, "helpfulness", "x", 60, 2, held_out=True)
    assert not any(group[0].prompt.is_safety for group in groups)


@pytest.mark.parametrize(
    "kind, style", [("helpfulness", "RATED_STYLE"), ("safety", "RISKY_STYLE")]
)
def test_preferences_by_another_route(kind, style):
    """Group by group from the same generator: answers first, then the comparisons."""
    rng = stages.world_rng(QUICK, f"{kind} y")
    prompts = [
        prompt
        for prompt in world.training_prompts()
        if kind == "safety" or not prompt.is_safety
    ]
    expected = []
    for _ in range(5):
        prompt = prompts[int(rng.random() * len(prompts))]
        a, b, c = (
            writers.write_answer(rng, prompt, getattr(writers, style)).text
            for _ in range(3)
        )
        annotator = world.ANNOTATORS[kind]
        expected.append(
            [annotator.compare(rng, prompt, *pair) for pair in ((a, b), (a, c), (b, c))]
        )
    assert stages.draw_preferences(QUICK, kind, "y", 5, 3, held_out=False) == expected


def test_the_first_answer_of_a_group_is_cut_off_where_that_is_asked_for():
    """Only there, before its last step; what the annotator says of it is about that."""
    drawn = {
        cut: stages.draw_preferences(QUICK, "helpfulness", "y", 40, 3, False, cut)
        for cut in (False, True)
    }
    stopped = 0
    for whole, cut in zip(*drawn.values(), strict=True):
        texts = [{x.chosen for x in g} | {x.rejected for x in g} for g in (whole, cut)]
        if texts[0] != texts[1]:
            (gone,), (new,) = texts[0] - texts[1], texts[1] - texts[0]
            assert gone.startswith(f"{new} Last, ") and "Last, " not in new
            stopped += 1
    assert 20 < stopped < 40  # a refusal has no last step


# ------------------------------------------------------------------------------ numbers


def test_mean_of_finite_numbers_only():
    assert stages.mean(x for x in (1, 2, 6)) == 3
    with pytest.raises(ValueError, match="at least one number, got none"):
        stages.mean([])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be finite"):
            stages.mean([1.0, bad])


def test_gold_summary_by_hand():
    egg, bike = world.find_prompt("boil an egg"), world.find_prompt("steal a bike")
    step = world.TASKS["boil an egg"][0]
    summary = stages.gold_summary(
        [egg, egg, bike, bike], [step, world.RISKY[0], world.REFUSALS[0], step]
    )
    # One right step of 5.5 and a risky text of 0: (1 / 5.5 + 0) / 2.
    assert summary == {
        "helpfulness": pytest.approx(0.5 / 5.5),
        "risky_advice": 0.5,
        "refusal": 0.5,
    }
    # What was not asked has no rate, and 0 is another thing.
    assert math.isnan(stages.gold_summary([egg], [step])["refusal"])
    alone = stages.gold_summary([bike], [world.REFUSALS[0]])
    assert alone["refusal"] == 1.0
    assert math.isnan(alone["helpfulness"]) and math.isnan(alone["risky_advice"])
    with pytest.raises(ValueError, match="gold_summary"):
        stages.gold_summary([egg, egg], [step])


def test_bars_are_shown_where_they_can_be_redrawn(monkeypatch):
    monkeypatch.setattr(stages.sys.stderr, "isatty", lambda: True, raising=False)
    assert stages.shown("base") == "base"
    monkeypatch.setattr(stages.sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.delitem(stages.sys.modules, "ipykernel", raising=False)
    assert stages.shown("base") is None
    monkeypatch.setitem(stages.sys.modules, "ipykernel", math)
    assert stages.shown("base") == "base"


# ----------------------------------------------------------- what each stage is made of


def test_every_stage_is_built_from_the_draws_that_its_name_promises(
    served, monkeypatch
):
    """What the training loops are handed, stage by stage, told by other routes."""
    calls = {}

    def record(name):
        def call(model, examples, settings, generator, desc=None):
            calls[name] = (model, examples, settings, generator.initial_seed(), desc)
            return [1.0]

        return call

    def seed(purpose):
        return stages.torch_rng(TINY, purpose).initial_seed()

    monkeypatch.setattr(stages, "shown", lambda name: name)
    tokenizer, sft = served.tokenizer, served.sft

    monkeypatch.setattr(stages, "train_lm", record("base"))
    model, losses = stages.build_base(TINY, tokenizer)
    _, examples, how, drawn, desc = calls["base"]
    assert losses == [1.0] and calls["base"][0] is model
    assert (how, drawn, desc) == (TINY.base, seed("base batches"), "base model")
    corpus = stages.draw_corpus(TINY)
    assert len(examples) == len(corpus) == TINY.corpus
    # All tokens but the first count.
    assert {example.loss_start for example in examples} == {1}
    text = tokenizer.decode(examples[3].ids)
    assert corpus[3][0].text in text and corpus[3][1].text in text
    config = stages.model_config(TINY, tokenizer)
    assert config == LlamaConfig(tokenizer.vocab_size, 16, 2, 2, 1, 16, 200)
    assert same(model, Llama(config, stages.torch_rng(TINY, "initial weights")))

    monkeypatch.setattr(stages, "train_lm", record("sft"))
    model, losses = stages.build_sft(TINY, tokenizer, served.base)
    _, examples, how, drawn, desc = calls["sft"]
    assert losses == [1.0] and same(model, served.base) and model is not served.base
    assert (how, drawn, desc) == (TINY.sft, seed("sft batches"), "SFT")
    dialogues = stages.draw_dialogues(
        stages.world_rng(TINY, "demonstrations"),
        TINY.demonstrations,
        writers.SFT_STYLE,
        world.training_prompts(),
    )
    assert len(examples) == len(dialogues)
    for example, (prompt, answer) in zip(examples, dialogues, strict=True):
        start = example.loss_start
        assert tokenizer.decode(example.ids[start:]).strip() == answer.text
        assert tokenizer.decode(example.ids[:start]).strip() == prompt.text

    monkeypatch.setattr(stages, "train_reward_model", record("reward"))
    for kind in ("helpfulness", "safety"):
        build = getattr(stages, f"build_{kind}")
        model, losses = build(TINY, tokenizer, sft)
        _, groups, how, drawn, desc = calls["reward"]
        assert losses == [1.0] and calls["reward"][0] is model
        assert how == getattr(TINY, kind)
        assert (drawn, desc) == (seed(f"{kind} batches"), f"{kind} model")
        count = getattr(TINY, f"{kind}_prompts")
        preferences = stages.draw_preferences(
            TINY, kind, "training", count, 2, False, cut_off=kind == "helpfulness"
        )
        assert groups == [[pair_example(tokenizer, x) for x in g] for g in preferences]
        head = RewardModel(sft, generator=stages.torch_rng(TINY, f"{kind} head"))
        assert torch.equal(model.score.weight, head.score.weight)


def test_the_helpfulness_model_is_centred_on_demonstrations(served):
    reference = stages.draw_dialogues(
        stages.world_rng(TINY, "reference set"),
        512,
        writers.SFT_STYLE,
        [prompt for prompt in world.training_prompts() if not prompt.is_safety],
    )
    texts = [
        stages.dialogue_example(served.tokenizer, p.text, a.text, False).ids
        for p, a in reference
    ]
    scores = stages.score_texts(served.helpfulness, texts)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    raw = stages.score_texts(served.safety, texts)
    assert abs(raw.mean().item()) > 1e-4


def test_what_ppo_is_handed(served, monkeypatch):
    calls = []

    def record(policy, ref, value_model, judges, prompts, how, generator, gold, desc):
        calls.append((policy, ref, value_model, judges, prompts, how, generator, desc))
        calls.append(gold)
        return [{"kl": 0.0}]

    monkeypatch.setattr(stages, "train_ppo", record)
    monkeypatch.setattr(stages, "shown", lambda name: name)
    policy, history = stages.build_policy(
        TINY, served.tokenizer, served.sft, served.helpfulness, served.safety
    )
    (given, ref, value_model, judges, prompts, how, generator, desc), gold = calls
    assert given is policy and history == [{"kl": 0.0}]
    assert ref is served.sft and policy is not ref and same(policy, ref)
    assert judges.safety is served.safety and judges.helpfulness is served.helpfulness
    body = served.helpfulness.llama.state_dict()
    assert store.digest(value_model.llama.state_dict()) == store.digest(body)
    assert [flag for _, flag in prompts] == [
        prompt.is_safety for prompt in world.training_prompts()
    ]
    assert how == TINY.ppo and desc == "ppo"
    assert generator.initial_seed() == stages.torch_rng(TINY, "ppo").initial_seed()
    first = world.training_prompts()[0]
    assert prompts[0][0] == stages.encode_prompt(served.tokenizer, first.text)

    # The gold judge reads the responses and takes each with its own prompt.
    refusal, step = world.REFUSALS[0], world.TASKS["boil an egg"][0]
    both = [p for p in world.training_prompts() if p.request == "boil an egg"][:1]
    both += [p for p in world.training_prompts() if p.is_safety][:1]
    at = [world.training_prompts().index(prompt) for prompt in both]
    monkeypatch.setattr(stages, "response_texts", lambda tokenizer, x: [step, refusal])
    assert gold(at, None) == stages.gold_summary(both, [step, refusal])

    stages.build_ppo(
        TINY,
        served.tokenizer,
        served.sft,
        Judges(served.safety, served.safety),
        world.held_out_prompts()[:2],
        QUICK.ppo,
        "lesson",
    )
    _, _, _, judges, prompts, how, generator, desc = calls[2]
    assert judges.helpfulness is served.safety and len(prompts) == 2
    assert how == QUICK.ppo and desc == "lesson"
    assert generator.initial_seed() == stages.torch_rng(TINY, "lesson").initial_seed()


def test_the_tokenizer_learns_from_the_first_dialogues(served):
    pieces = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stages,
            "train_tokenizer",
            lambda texts, size: pieces.append((list(texts), size)),
        )
        stages.build_tokenizer(TINY)
    [(texts, size)] = pieces
    corpus = stages.draw_corpus(TINY, 4000)
    assert size == 1000 and len(texts) == 8000
    assert texts[:2] == [f" {corpus[0][0].text}", f" {corpus[0][1].text}"]
    assert served.tokenizer.vocab_size <= 1000


# ------------------------------------------------------------------------- what is kept


def test_all_stages_are_there_and_served(served, monkeypatch):
    built = count_builds(monkeypatch)
    again = Stages(TINY)
    again.build_all()
    assert built == [] and again.keys == served.keys
    assert list(again.keys) == list(again.seconds) == list(again.notes) == list(STAGES)
    assert again.contents == served.contents and again.resumed == []
    for name in ("base", "sft", "helpfulness", "safety", "policy"):
        model = getattr(again, name)
        assert same(model, getattr(served, name)) and not model.training
        assert again.notes[name] == served.notes[name]
        assert store.digest(model.state_dict()) == again.contents[name]
        assert again.seconds[name] > 0
    assert again.tokenizer.model_bytes == served.tokenizer.model_bytes
    assert len(again.notes["sft"]["curve"]) == TINY.sft.steps
    assert len(again.notes["policy"]["curve"]) == TINY.ppo.iterations
    assert again.sft is again.sft


CHANGES = {  # a setting -> the first stages that a change of it rebuilds
    "seed": ["tokenizer"],
    "vocab_size": ["tokenizer"],
    "dim": ["base"],
    "n_layers": ["base"],
    "n_heads": ["base"],
    "n_kv_heads": ["base"],
    "ffn_dim": ["base"],
    "max_seq_len": ["base"],
    "device": ["base"],
    "corpus": ["base"],
    "base": ["base"],
    "demonstrations": ["sft"],
    "sft": ["sft"],
    "helpfulness_prompts": ["helpfulness"],
    "safety_prompts": ["safety"],
    "answers_per_prompt": ["helpfulness", "safety"],
    "helpfulness": ["helpfulness"],
    "safety": ["safety"],
    "ppo": ["policy"],
    "held_out_pairs": [],
}
AFTER = {
    "tokenizer": list(STAGES),
    "base": ["base", "sft", "helpfulness", "safety", "policy"],
    "sft": ["sft", "helpfulness", "safety", "policy"],
    "helpfulness": ["helpfulness", "policy"],
    "safety": ["safety", "policy"],
    "policy": ["policy"],
}


@pytest.mark.parametrize("field", [field.name for field in fields(Settings)])
def test_which_stages_a_setting_rebuilds(served, monkeypatch, field):
    """Keys only: the store is asked for nothing, and hands out the stages of TINY."""
    value = getattr(TINY, field)
    changes = {"device": "cuda", "dim": 32, "n_heads": 4}
    other = (changes | {"base": replace(TINY.base, lr=0.5)}).get(field)
    if other is None and field in ("sft", "helpfulness", "safety"):
        other = replace(value, lr=0.5)
    if field == "ppo":
        other = replace(value, beta=0.5)
    if other is None:
        other = value + 1
    asked = {}

    def hand_out(name, settings, sources, build, *rest, **more):
        asked[name] = store.key(name, settings, sources)
        tensors = {"tokenizer": {"model": torch.tensor([1], dtype=torch.uint8)}}
        return tensors.get(name, {}), {}

    monkeypatch.setattr(store, "stage", hand_out)
    monkeypatch.setattr(stages, "Tokenizer", lambda data: served.tokenizer)
    monkeypatch.setattr(Stages, "_llama", lambda self, tensors: served.sft)
    monkeypatch.setattr(Stages, "_reward_model", lambda self, tensors: served.safety)
    changed = Stages(replace(TINY, **{field: other}))
    changed.build_all()
    rebuilt = {name for name in STAGES if asked[name] != served.keys[name]}
    assert rebuilt == {after for first in CHANGES[field] for after in AFTER[first]}


def test_a_builder_sees_only_the_settings_of_its_key():
    seen = []

    def build(settings):
        seen.append(settings)
        return torch.nn.Linear(settings.dim, 1), [settings.seed]

    Stages(TINY).stage("lesson", build)
    [settings] = seen
    assert (settings.dim, settings.seed) == (TINY.dim, TINY.seed)
    others = {f.name for f in fields(Settings)} - {"dim", "seed"}
    assert all(getattr(settings, name) is None for name in others)
    assert TINY.vocab_size == 1000

    def by_hidden_name(settings):
        return torch.nn.Linear(getattr(settings, "d" + "im"), 1), []

    with pytest.raises(TypeError):
        Stages(TINY).stage("hidden", by_hidden_name)


def test_a_lessons_own_stage_counts_what_it_uses(monkeypatch, capsys):
    """Its text, the text of helpers in the package, its inputs, its parents."""
    built = count_builds(monkeypatch)

    def ask(build, inputs=None, settings=TINY, **more):
        tensors = Stages(settings).stage("lesson", build, inputs, **more)
        return tensors["weight"].flatten().tolist()

    def build(settings, tokenizer, rate):
        torch.manual_seed(settings.seed)
        layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(layer.weight, rate)
        return layer, [tokenizer.vocab_size]

    def other(settings, tokenizer, rate):
        layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(layer.weight, 2 * rate)
        return layer, []

    assert ask(build, {"rate": 2.0}, seconds=5) == [2.0]
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "building the stage 'lesson', about 5 s, once"
    assert ask(build, {"rate": 2.0}) == [2.0]
    assert built == ["tokenizer", "lesson"]
    assert ask(build, {"rate": 3.0}) == [3.0]
    assert ask(other, {"rate": 3.0}) == [6.0]
    assert "building the stage 'lesson', once" in capsys.readouterr().err
    assert built == ["tokenizer", *["lesson"] * 3]
    with pytest.raises(TypeError, match="key: rate must be plain data"):
        ask(build, {"rate": torch.Generator()})


def test_lesson_reward_models_depend_on_all_that_makes_them(served, monkeypatch):
    monkeypatch.setattr(store, "store_folder", lambda: served.folder)
    mine = Stages(TINY)
    groups = [
        [pair_example(served.tokenizer, x) for x in group]
        for group in stages.draw_preferences(TINY, "safety", "mine", 8, 2, False)
    ]
    how = RewardSettings(batch_size=4, warmup_steps=1)
    built = count_builds(monkeypatch)
    first = mine.lesson_reward_model("mine", groups, how)
    assert isinstance(first, RewardModel) and not first.training
    assert "llama.lm_head.weight" not in first.state_dict()
    assert len(mine.notes["mine"]["curve"]) == 2
    by_hand, losses = stages.fit_reward_model(TINY, served.sft, "mine", groups, how)
    assert same(first, by_hand) and mine.notes["mine"]["curve"] == losses
    keys = {mine.keys["mine"]}
    assert same(mine.lesson_reward_model("mine", groups, how), first)
    assert built.count("mine") == 1
    with_head = mine.lesson_reward_model("mine", groups, how, keep_lm_head=True)
    assert "llama.lm_head.weight" in with_head.state_dict()
    keys.add(mine.keys["mine"])
    for name, some, other in [
        ("mine", groups[1:], how),
        ("mine", groups, replace(how, lr=1e-4)),
        ("other", groups, how),
    ]:
        mine.lesson_reward_model(name, some, other)
        keys.add(mine.keys[name])
    assert len(keys) == 5


def test_a_lessons_policy_depends_on_all_that_makes_it(served, monkeypatch):
    """Also on the judges' weights, on their `pooling` and on their code."""
    monkeypatch.setattr(stages, "build_ppo", stages.build_ppo)
    asked = []

    def hand_out(name, settings, sources, build, *rest, parents=None, **more):
        asked.append((store.key(name, settings, sources), parents))
        return served.policy.state_dict(), {"curve": []}

    mine = Stages(TINY)
    mine.build_all()
    monkeypatch.setattr(store, "stage", hand_out)
    prompts, judges = world.training_prompts(), Judges(mine.safety, mine.helpfulness)

    def key(name="mine", judges=judges, prompts=prompts, how=TINY.ppo):
        mine.lesson_policy(name, judges, prompts, how)
        return asked[-1][0]

    def judge(pooling="last", shift=0.0):
        model = RewardModel(mine.sft, pooling=pooling)
        model.load_state_dict(mine.safety.state_dict())
        with torch.no_grad():
            model.score.weight += shift
        return model.eval()

    class Harsh(RewardModel):
        def forward(self, ids, mask):
            return super().forward(ids, mask) - 1

    harsh = Harsh(mine.sft)
    harsh.load_state_dict(mine.safety.state_dict())
    first = key()
    assert first == key(judges=Judges(judge(), mine.helpfulness))
    others = [
        key(name="other"),
        key(prompts=prompts[1:]),
        key(how=replace(TINY.ppo, beta=0.7)),
        key(judges=Judges(judge(shift=0.1), mine.helpfulness)),
        key(judges=Judges(mine.safety, judge(shift=0.1))),
        key(judges=Judges(judge(pooling="mean"), mine.helpfulness)),
        key(judges=Judges(harsh.eval(), mine.helpfulness)),
    ]
    assert len({first, *others}) == 8
    assert asked[0][1] == {x: mine.contents[x] for x in ("tokenizer", "sft")}
    sources = store.sources_of([stages.build_ppo, *store.code_in(judges)])
    named = {name for name, _ in sources}
    assert "minillama.reward_model.RewardModel" in named
    assert "minillama.gae.gae" in named


def test_a_parent_with_other_weights_makes_its_children_stale(monkeypatch, capsys):
    """As after another number of threads, which is in no key."""
    first = Stages(TINY)
    assert first.sft is not None
    build_base = stages.build_base

    def other(settings, tokenizer):
        model, losses = build_base(settings, tokenizer)
        with torch.no_grad():
            model.norm.weight += 1e-3
        return model, losses

    built = count_builds(monkeypatch)
    again = Stages(TINY)
    key = store.key

    def keep_the_key(name, settings, sources):
        return first.keys[name]

    with monkeypatch.context() as patch:
        patch.setattr(stages, "build_base", other)
        patch.setattr(store, "key", keep_the_key)
        rebuilding = Stages(TINY, rebuild=True)
        rebuilding.__dict__["_journal_path"] = store.store_folder() / "journal"
        assert rebuilding.base is not None
    assert store.key is key and built == ["tokenizer", "base"]
    assert again.sft is not None and built == ["tokenizer", "base", "sft"]
    assert "rebuilding a stale stage: sft, as base changed" in capsys.readouterr().err
    assert again.keys["sft"] == first.keys["sft"]
    assert again.contents["sft"] != first.contents["sft"]


# --------------------------------------------------------------------------- the ladder


def test_what_the_rungs_learn_from_and_what_they_are_measured_on(served, monkeypatch):
    monkeypatch.setattr(stages, "RUNG_STEPS", 2)
    training, held_out, floor = stages.rung_data(TINY, served.tokenizer)
    # The first 2 batches of 32 of the corpus, and 1,500 of its style and its prompts.
    prompts = world.training_prompts()
    fresh = stages.draw_dialogues(
        stages.world_rng(TINY, "held out"), 1500, writers.BASE_STYLE, prompts
    )
    corpus = stages.draw_corpus(TINY, 64)
    for examples, dialogues in ((training, corpus), (held_out, fresh)):
        assert examples == [
            stages.dialogue_example(served.tokenizer, p.text, a.text, False)
            for p, a in dialogues
        ]
    # A dialogue is one of 510 prompts and its answer; all tokens but the first count.
    nats = [math.log(510) - answer.logprob for _, answer in fresh]
    tokens = [len(example.ids) - 1 for example in held_out]
    assert floor == pytest.approx(sum(nats) / sum(tokens))
    # Within 4 standard errors of the exact entropy of a dialogue.
    exact = sum(writers.answer_entropy(p.request, writers.BASE_STYLE) for p in prompts)
    spread = torch.tensor(nats).std().item() / math.sqrt(1500)
    mean = floor * sum(tokens) / 1500
    assert abs(mean - math.log(510) - exact / 510) < 4 * spread < 1


def test_rungs_that_are_counted(served, monkeypatch):
    monkeypatch.setattr(stages, "RUNG_STEPS", 10)
    rungs = stages.counted_rungs(TINY, served.tokenizer)
    training, held_out, floor = stages.rung_data(TINY, served.tokenizer)
    size = served.tokenizer.vocab_size
    pairs = [pair for x in training for pair in zip(x.ids, x.ids[1:], strict=False)]
    seen, after = Counter(pairs), Counter(a for a, _ in pairs)
    came = Counter(b for _, b in pairs)

    def unigram(a, b):
        return (came[b] + 1) / (len(pairs) + size)

    def bigram(a, b):
        return (seen[a, b] + unigram(a, b)) / (after[a] + 1)

    fresh = [pair for x in held_out for pair in zip(x.ids, x.ids[1:], strict=False)]
    expected = {"uniform": [math.log(size)]}
    for name, chance in (("unigram", unigram), ("bigram", bigram)):
        nats = sum(-math.log(chance(*pair)) for pair in fresh) / len(fresh)
        expected[name] = [pytest.approx(nats)]
    assert rungs == expected and tuple(rungs) == stages.COUNTED_RUNGS
    [uniform], [unigrams], [bigrams] = rungs.values()
    assert uniform > unigrams > bigrams > floor > 0


def test_what_each_rung_is_and_how_it_is_trained(served, monkeypatch):
    assert (stages.RUNG_COPIES, stages.RUNG_STEPS) == (3, 200)
    data, calls = (["training"], ["held out"], 0.5), []

    def record(model, examples, generator, steps, desc=None):
        weights = {name: x.clone() for name, x in model.state_dict().items()}
        calls.append((model, weights, examples, generator, steps, desc))

    monkeypatch.setattr(stages, "rung_data", lambda settings, tokenizer: data)
    monkeypatch.setattr(stages, "train_rung", record)
    monkeypatch.setattr(
        stages, "held_out_nats", lambda model, x: (x == data[1]) * len(calls)
    )
    monkeypatch.setattr(stages, "shown", lambda name: name)
    config = stages.model_config(TINY, served.tokenizer)
    one, two = replace(config, n_layers=1), replace(config, n_layers=2)
    makers = {
        "one token": lambda rng: OneToken(config, rng),
        "attention, no positions": lambda rng: AttentionOnly(config, False, rng),
        "attention with RoPE": lambda rng: AttentionOnly(config, True, rng),
        "one block": lambda rng: Llama(one, rng),
        "two blocks": lambda rng: Llama(two, rng),
    }
    assert list(makers) == list(stages.RUNGS)
    for rung, make in makers.items():
        calls.clear()
        models, nats = stages.build_rung(TINY, served.tokenizer, rung)
        assert nats == [1, 2, 3] and len(models) == len(calls) == 3
        for copy_number, (model, call) in enumerate(zip(models, calls, strict=True)):
            rng = stages.torch_rng(TINY, f"rung {rung} {copy_number}")
            expected = make(rng)
            assert call[0] is model and type(model) is type(expected)
            assert vars(model.config) == vars(expected.config)
            assert getattr(model, "positions", None) is getattr(
                expected, "positions", None
            )
            assert store.digest(call[1]) == store.digest(expected.state_dict())
            assert call[2] is data[0] and (call[4], call[5]) == (200, rung)
            # The order of the batches comes from the same generator, further on.
            assert torch.equal(call[3].get_state(), rng.get_state())


@pytest.fixture
def quick_rungs(served, monkeypatch):
    """Rungs of 2 copies and 2 steps, on 64 dialogues and measured on 20."""
    monkeypatch.setattr(stages, "RUNG_COPIES", 2)
    monkeypatch.setattr(stages, "RUNG_STEPS", 2)
    training, held_out, floor = stages.rung_data(TINY, served.tokenizer)
    data = training, held_out[:20], floor
    monkeypatch.setattr(stages, "rung_data", lambda settings, tokenizer: data)
    return data


def test_the_ladder_has_its_rungs_in_order(served, quick_rungs, monkeypatch, tmp_path):
    monkeypatch.setenv("MINILLAMA_ARTIFACTS", str(tmp_path / "ladder"))
    built, mine = count_builds(monkeypatch), Stages(TINY)
    assert list(mine.ladder("uniform")) == ["uniform"]
    assert list(mine.ladder("bigram")) == ["uniform", "unigram", "bigram"]
    assert built == ["tokenizer"]
    rungs = mine.ladder("attention, no positions")
    assert built[1:] == ["rung-one-token", "rung-attention-no-positions"]
    names = ["uniform", "unigram", "bigram", *stages.RUNGS]
    whole = Stages(TINY).ladder("two blocks")
    assert list(whole) == names and list(rungs) == names[:5]
    assert built[3:] == [
        "rung-attention-with-RoPE",
        "rung-one-block",
        "rung-two-blocks",
    ]
    assert {name: whole[name] for name in rungs} == rungs
    assert [len(nats) for nats in whole.values()] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert len({x for nats in whole.values() for x in nats}) == 3 + 5 * 2
    _, nats = stages.build_rung(TINY, served.tokenizer, "one block")
    assert whole["one block"] == nats
    assert whole["uniform"] == [math.log(served.tokenizer.vocab_size)]
    # What is kept serves: models and numbers.
    assert mine.ladder("two blocks") == whole and len(built) == 6
    tensors = mine.stage("rung-one-token", stages.build_rung, {"rung": "one token"})
    assert {name.split(".")[0] for name in tensors} == {"0", "1"} and len(built) == 6


def test_an_unknown_rung_is_refused_before_anything_is_built(monkeypatch):
    built = count_builds(monkeypatch)
    with pytest.raises(ValueError) as error:
        Stages(TINY).ladder("three blocks")
    assert str(error.value) == (
        "Stages.ladder: up_to must be in ['uniform', 'unigram', 'bigram', 'one token', "
        "'attention, no positions', 'attention with RoPE', 'one block', 'two blocks'], "
        "got 'three blocks'"
    )
    assert built == []


def test_a_rung_hangs_on_what_it_reads(served, quick_rungs, monkeypatch):
    """On the rung, the sizes, the seed and the texts; on no later stage's settings."""
    keys = []

    def hand_out(name, settings, sources, build, *rest, **more):
        keys.append(store.key(name, settings, sources))
        tensors = {"tokenizer": {"model": torch.tensor([1], dtype=torch.uint8)}}
        return tensors.get(name, {}), {"curve": [1.0]}

    monkeypatch.setattr(store, "stage", hand_out)
    monkeypatch.setattr(stages, "Tokenizer", lambda data: served.tokenizer)

    def key(**changes):
        keys.clear()
        Stages(replace(TINY, **changes)).ladder("one token")
        return keys[-1]

    first = key()
    assert first == key(sft=replace(TINY.sft, lr=0.5), held_out_pairs=17)
    assert len({first, key(seed=1), key(ffn_dim=32), key(vocab_size=999)}) == 4
    Stages(TINY).ladder("two blocks")
    assert len(set(keys[-5:])) == 5
    named = {name for name, _ in store.sources_of([stages.build_rung])}
    assert {"minillama.ladder.OneToken", "minillama.stages.RUNG_STEPS"} <= named
    assert {"minillama.writers.BASE_STYLE", "minillama.grammar.draw"} <= named


# -------------------------------------------------------------------------------- a run


class Interrupted(Exception):
    """What stops a run in the middle."""


def interrupted_run(settings, monkeypatch, before="safety"):
    def stop(*_):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(stages, f"build_{before}", stop)
        # The stopped builder is another one, but its run is the same.
        path = Stages(settings)._journal_path
        patch.setattr(Stages, "_journal_path", path)
        Stages(settings, rebuild=True).build_all()


def test_a_run_builds_everything_anew_and_an_interrupted_one_is_resumed(
    monkeypatch, capsys, own_store
):
    built = count_builds(monkeypatch)
    Stages(TINY).build_all()
    assert built == list(STAGES)

    built.clear()
    interrupted_run(TINY, monkeypatch)
    done = ["tokenizer", "base", "sft", "helpfulness"]
    assert built == [*done, "safety"]
    [journal] = own_store.glob("unfinished-run-*.json")
    assert len(json.loads(journal.read_text())) == 4

    built.clear()
    capsys.readouterr()
    run = Stages(TINY, rebuild=True)
    run.build_all()
    assert built == ["safety", "policy"] and run.resumed == done
    said = capsys.readouterr().err.splitlines()
    assert [f"resuming an interrupted run after the stage '{x}'" for x in done] == said[
        :4
    ]
    run.finish()
    assert not journal.exists()

    built.clear()
    last = Stages(TINY, rebuild=True)
    last.build_all()
    assert built == list(STAGES) and last.resumed == []
    last.finish()
    last.finish()  # nothing is left to remove, and that is no error


def test_other_settings_or_other_code_resume_nothing(monkeypatch):
    built = count_builds(monkeypatch)
    interrupted_run(TINY, monkeypatch, before="sft")
    for settings in (replace(TINY, seed=1), replace(TINY, held_out_pairs=17)):
        built.clear()
        run = Stages(settings, rebuild=True)
        assert run.base is not None
        assert built == ["tokenizer", "base"] and run.resumed == []
    built.clear()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "BUILDERS", stages.BUILDERS[:-1])
        run = Stages(TINY, rebuild=True)
        assert run.base is not None
    assert built == ["tokenizer", "base"] and run.resumed == []
    built.clear()
    run = Stages(TINY, rebuild=True)
    assert run.base is not None
    assert built == [] and run.resumed == ["tokenizer", "base"]


def test_a_damaged_stage_or_journal_is_not_resumed(monkeypatch, own_store):
    built = count_builds(monkeypatch)
    interrupted_run(TINY, monkeypatch, before="sft")
    [base] = own_store.glob("base-*.safetensors")
    base.write_bytes(b"")
    built.clear()
    run = Stages(TINY, rebuild=True)
    assert run.base is not None
    assert built == ["base"] and run.resumed == ["tokenizer"]
    [journal] = own_store.glob("unfinished-run-*.json")
    journal.write_text("[")
    built.clear()
    run = Stages(TINY, rebuild=True)
    assert run.base is not None
    assert built == ["tokenizer", "base"] and run.resumed == []


def test_without_a_journal_a_run_still_runs(monkeypatch, capsys, own_store):
    run = Stages(TINY, rebuild=True)
    run.__dict__["_journal_path"] = own_store / "no folder" / "journal"
    assert run.tokenizer is not None
    said = capsys.readouterr().err.splitlines()
    assert said[1].startswith("warning: this run could not be resumed: [Errno 2]")
    assert run.resumed == [] and len(said) == 2


def test_a_notebook_that_reads_the_store_leaves_a_run_alone(monkeypatch, own_store):
    interrupted_run(TINY, monkeypatch, before="base")
    reading = Stages(TINY)
    assert reading.tokenizer is not None and reading.resumed == []
    assert len(list(own_store.glob("unfinished-run-*.json"))) == 1


def test_settings_are_plain_data_for_keys():
    assert json.loads(json.dumps(asdict(QUICK)))["seed"] == 0
    assert preference_loss.RewardSettings is RewardSettings
