"""Bad input: every public function, constructor and setting refuses it in words.

A row of the table is a call that is good but for the arguments in it, the kind of error
and how its message goes on after "function: ". The function is the one that is called,
never a helper of it. `GOOD` has the good calls, and a test makes each of them, so that
nothing is refused for another reason than the one in its row.
"""

import copy
import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentences import llama_layout

import minillama
from minillama import (
    accumulate,
    any_reward_model,
    arena,
    audit,
    best_of_n,
    budget,
    chat_format,
    data,
    distributed,
    dpo,
    evidence,
    exact,
    fast,
    gae,
    generate,
    grammar,
    grpo,
    hf,
    hf_config,
    kl,
    ladder,
    llama_tokenizer,
    lm,
    lora,
    model,
    off_policy,
    optim,
    pipeline,
    policy_gradient,
    ppo,
    preference_audit,
    preference_file,
    preference_loss,
    process_reward,
    reward_file,
    reward_model,
    reward_selection,
    rope_scaling,
    scaling,
    stages,
    store,
    tokenizer,
    whiten,
    world,
    writers,
)
from minillama import checkpoint as saved

NAN, INF = math.nan, math.inf

# --------------------------------------------------------------------------------------
# Small good things, made once

G = torch.Generator().manual_seed(0)
RNG = random.Random(0)
TEXT = "First, boil fresh water. Last, lower the egg in with a spoon."
PROMPT = world.Prompt("How do I boil an egg?", "boil an egg", False)
UNSAFE = world.Prompt("How do I steal a bike?", "steal a bike", True)
PREFERENCE = world.Preference(PROMPT, TEXT, "No.", 1, True, True)
TOKENIZER = tokenizer.train_tokenizer([TEXT], 300)
CONFIG = model.LlamaConfig(TOKENIZER.vocab_size, 8, 1, 2, 1, 8, 240)
SIZES = vars(CONFIG)
MODEL = model.Llama(CONFIG, G).eval()
OTHER = copy.deepcopy(MODEL)
BODY = reward_model.copy_body(MODEL)
JUDGE = reward_model.RewardModel(MODEL, generator=G).eval()
TRAINING = copy.deepcopy(JUDGE).train()
POOLING_MEAN = reward_model.RewardModel(MODEL, "mean", generator=G)
ONE_PROCESS = distributed.Processes(0, 1, "cpu")
FILE_SETTINGS = reward_file.FileSettings(Path("a"), None, Path("unused"))
STEP = {"processes": ONE_PROCESS, "batch_ids": [0]}
NO_STEPPER = "stepper must be a Stepper, got a Llama"
LLAMA2 = llama_tokenizer.Llama2Tokenizer(llama_layout())
TURNS = [("user", "How?"), ("assistant", "Fill a pot."), ("user", "And then?")]
COMPARISON = preference_file.Comparison(
    tuple(TURNS), "Wait.", "No.", None, None, "a, line 1"
)
JUDGES = ppo.Judges(JUDGE, JUDGE)
VALUE = reward_model.ValueModel(JUDGE)
EXAMPLE = data.dialogue_example(TOKENIZER, PROMPT.text, TEXT, True)
STEP_ENDS = process_reward.separators(TOKENIZER)
STEPS = process_reward.step_example(TOKENIZER, PROMPT, TEXT, torch.tensor([0.0, 0, 0]))
FUTURES = process_reward.right_futures("Fill a pot with water.", "boil an egg")
PAIR = data.pair_example(TOKENIZER, PREFERENCE)
FOUR = dict.fromkeys(
    (
        "chosen_logprobs",
        "rejected_logprobs",
        "ref_chosen_logprobs",
        "ref_rejected_logprobs",
    ),
    torch.zeros(2),
)
SETTINGS = stages.Settings()
STAGES = stages.Stages(SETTINGS)
FEW_STEPS = lm.LMSettings(steps=1, batch_size=2)
ONE_EPOCH = preference_loss.RewardSettings(batch_size=2)
DIRECT = dpo.DirectSettings(batch_size=2)
SHORT_PPO = ppo.PPOSettings(iterations=1, batch_size=2, minibatches=1, max_new_tokens=4)

B2, COLUMN = torch.tensor([0.25, 0.5]), torch.tensor([[0.25], [0.5]])
LABELS = torch.tensor([True, False])
GRID = torch.tensor([[0.0, -0.5, -1.0], [0.0, -0.25, -0.75]])
WIDE = torch.zeros(2, 4)
BROKEN = torch.tensor([[0.0, -0.5, NAN], [0.0, -0.25, -0.75]])
IDS = torch.tensor([[1, 4, 7], [1, 4, 8]])
STRANGE = torch.tensor([[1, 4, 7], [1, 4, 999]])
ALL = torch.ones(2, 3, dtype=torch.bool)
NONE = torch.zeros(2, 3, dtype=torch.bool)
ANSWER = torch.tensor([[False, True, True], [False, True, False]])
ONE_ROW = torch.tensor([[False, True, True], [False, False, False]])
HOLES = torch.tensor([[True, False, True], [True, True, True]])
LOGITS = torch.zeros(2, 3, 5)
PROMPT_IDS = [[1, 4, 7, 5], [1, 4, 8, 5]]
ASKED = [(ids, False) for ids in PROMPT_IDS]
ROLLOUT = generate.generate(MODEL, PROMPT_IDS, 4, generator=G)
LEARNER, VALUE_LEARNER = copy.deepcopy(MODEL), copy.deepcopy(VALUE)
EXPERIENCE = ppo.collect_experience(
    LEARNER, OTHER, VALUE, JUDGES, PROMPT_IDS, LABELS, SHORT_PPO, G
)
SHORT_GRPO = grpo.GRPOSettings(
    iterations=1, batch_size=2, group_size=2, minibatches=1, max_new_tokens=4
)
GROUPS = grpo.collect_groups(
    LEARNER, OTHER, JUDGES, PROMPT_IDS[:1], LABELS[:1], SHORT_GRPO, G
)
RESPONSES = exact.enumerate_responses([1, 3], 6, 2)
STATES = policy_gradient.token_states(RESPONSES)
TABLE, PRAISE = torch.zeros(6, 6), torch.zeros(RESPONSES.ids.shape)
SMALL = exact.small_policy(G)
LOGP = torch.log_softmax(torch.zeros(3), 0)
CHANCES = torch.full((2, 2), 0.25)
COIN = grammar.OneOf((0.5, 0.5), ("Heads.", "Tails."))
COUNTS = torch.ones(3, 3)
ONE_TOKEN = ladder.OneToken(CONFIG, G)
ATTENTION = ladder.AttentionOnly(CONFIG, generator=G)


WEIGHT = torch.nn.Parameter(torch.ones(1))
SIDES = dict(chosen=[TEXT, "Yes."], rejected=["No.", "No."])
A_JUDGE = any_reward_model.Judge(
    "", 99, lambda x: x, lambda turns: [1], lambda text: [len(text)], len
)


def stepper(of=MODEL):
    """A `Stepper` of its own on a copy of a model."""
    return optim.Stepper(copy.deepcopy(of), 0.1)


def scored(dialogues):
    """A score function: longer answers score more."""
    return torch.tensor([float(len(answer)) for _, answer in dialogues])


def other_size(**sizes):
    """A model of another size."""
    return model.Llama(model.LlamaConfig(**{**SIZES, **sizes}), G)


# --------------------------------------------------------------------------------------
# Calls that need something around them


def checkpoint(folder, config=(), tensors=(), without=()):
    """Load a checkpoint of MODEL in which settings or tensors differ or are missing."""
    hf.save_llama(MODEL, folder)
    path = folder / "config.json"
    written = json.loads(path.read_text()) | dict(config)
    path.write_text(json.dumps({k: v for k, v in written.items() if k not in without}))
    path = folder / "model.safetensors"
    written = load_file(path) | dict(tensors)
    save_file({k: v for k, v in written.items() if k not in without}, path)
    return hf.load_llama(folder)


def environment(monkeypatch, **variables):
    """The settings under environment variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return stages.default_settings()


LINE = json.dumps(
    {side: f"\n\nHuman: a\n\nAssistant: {side}" for side in ("chosen", "rejected")}
)


def preferences(folder, line=LINE, **columns):
    """Read a file of one line."""
    (folder / "pairs.jsonl").write_text(line, encoding="utf-8")
    return list(preference_file.read_preferences(folder / "pairs.jsonl", **columns))


def encoded(comparisons=(COMPARISON,), max_tokens=200, **changes):
    """Encode comparisons with the tokenizer of a real model."""
    encoders = dict(
        encode_prompt=lambda turns: llama_tokenizer.encode_prompt(LLAMA2, turns),
        encode_response=lambda text: llama_tokenizer.encode_response(LLAMA2, text),
    )
    arguments = dict(comparisons=comparisons, max_tokens=max_tokens, **encoders)
    return list(preference_file.encode_pairs(**{**arguments, **changes}))


SPOKEN = {
    checkpoint: "load_llama: ",
    environment: "",
    preferences: "read_preferences: ",
    encoded: "",
}
FIXTURES = {
    checkpoint: ("folder", "tmp_path"),
    environment: ("monkeypatch",) * 2,
    preferences: ("folder", "tmp_path"),
}


# --------------------------------------------------------------------------------------
# A good call of everything

GOOD = {
    # model
    model.LlamaConfig: SIZES,
    model.RMSNorm: dict(dim=8),
    model.token_positions: dict(mask=ALL),
    model.rope_cos_sin: dict(positions=IDS, head_dim=4),
    model.attention_bias: dict(key_mask=ALL, n_queries=3),
    model.KVCache: dict(config=CONFIG, batch_size=2, capacity=4),
    model.KVCache.extend: lambda: dict(self=model.KVCache(CONFIG, 2, 4), mask=ALL),
    model.Attention: dict(config=CONFIG),
    model.FeedForward: dict(config=CONFIG),
    model.Block: dict(config=CONFIG),
    model.Llama: dict(config=CONFIG, generator=G),
    model.draw_weights: lambda: dict(module=copy.deepcopy(MODEL), n_layers=2),
    model.Llama.hidden: dict(self=MODEL, ids=IDS),
    model.Llama.forward: dict(self=MODEL, ids=IDS),
    # tokenizer
    tokenizer.Tokenizer: dict(model_bytes=TOKENIZER.model_bytes),
    tokenizer.Tokenizer.encode: dict(self=TOKENIZER, text=TEXT),
    tokenizer.Tokenizer.decode: dict(self=TOKENIZER, ids=[7]),
    tokenizer.Tokenizer.tokens: dict(self=TOKENIZER, ids=[7]),
    tokenizer.train_tokenizer: dict(texts=[TEXT], vocab_size=300),
    tokenizer.encode_prompt: dict(tokenizer=TOKENIZER, prompt=TEXT),
    tokenizer.encode_response: dict(tokenizer=TOKENIZER, response=TEXT),
    tokenizer.decode_response: dict(tokenizer=TOKENIZER, ids=[7, 2]),
    # rope_scaling
    rope_scaling.LinearScaling: dict(factor=2.0),
    rope_scaling.Llama3Scaling: dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192
    ),
    rope_scaling.scaled_cos_sin: dict(
        positions=IDS, head_dim=4, theta=1e4, scaling=rope_scaling.LinearScaling(2.0)
    ),
    # scaling
    scaling.matmul_weights: dict(config=CONFIG),
    scaling.flops_per_token: dict(config=CONFIG, length=3),
    scaling.matmul_intensity: dict(m=1, k=2, n=3, number_bytes=4),
    scaling.attainable: dict(intensity=0.5, peak=1e9, bandwidth=1e8),
    scaling.cache_bytes: dict(config=CONFIG, number_bytes=2),
    scaling.saved_bytes: dict(config=CONFIG, batch=2, length=3),
    scaling.state_bytes: dict(parameters=10),
    scaling.bytes_sent: dict(parameters=10, processes=2, engine="ddp", number_bytes=4),
    # lora: of a new layer or model, since a good call changes it
    lora.LoRALinear: dict(linear=torch.nn.Linear(3, 2), rank=2, alpha=4.0),
    lora.add_lora: lambda: dict(model=copy.deepcopy(MODEL), rank=2, alpha=4.0),
    lora.merge_lora: dict(model=copy.deepcopy(MODEL)),
    # llama_tokenizer and preference_file
    llama_tokenizer.Llama2Tokenizer: dict(model_bytes=LLAMA2.model_bytes),
    llama_tokenizer.load_tokenizer: None,
    llama_tokenizer.encode_prompt: dict(tokenizer=LLAMA2, turns=TURNS),
    llama_tokenizer.encode_response: dict(tokenizer=LLAMA2, response=TEXT),
    llama_tokenizer.decode_response: dict(tokenizer=LLAMA2, ids=[300, 2]),
    preference_file.read_preferences: None,
    preference_file.encode_pairs: None,
    preferences: dict(),
    encoded: dict(),
    # data
    data.Example: dict(ids=[1, 4], loss_start=1),
    data.dialogue_example: dict(
        tokenizer=TOKENIZER, prompt=TEXT, response=TEXT, response_only=True
    ),
    data.pad: dict(sequences=PROMPT_IDS),
    data.pad_examples: dict(examples=[EXAMPLE]),
    data.endless_batches: dict(count=2, batch_size=2, generator=G),
    data.pair_example: dict(tokenizer=TOKENIZER, preference=PREFERENCE),
    # optim
    optim.warmup_cosine: dict(step=0, total_steps=4, warmup_steps=2),
    optim.Stepper: lambda: dict(model=copy.deepcopy(MODEL), lr=0.1),
    optim.Stepper.step: lambda: dict(
        self=(taken := stepper()), loss=taken.model(IDS).mean(), batch_ids=[0, 1]
    ),
    # lm and fast
    lm.token_logprobs: dict(logits=LOGITS, ids=IDS.clamp(max=4)),
    lm.response_logprobs: dict(model=MODEL, ids=IDS, mask=ALL, response_mask=ANSWER),
    lm.lm_loss: dict(logits=LOGITS, ids=IDS.clamp(max=4), loss_mask=ANSWER),
    lm.LMSettings: dict(),
    lm.train_lm: lambda: dict(
        model=copy.deepcopy(MODEL),
        examples=[EXAMPLE] * 2,
        settings=FEW_STEPS,
        generator=G,
    ),
    lm.evaluate_lm: dict(model=MODEL, examples=[EXAMPLE]),
    fast.hidden_at: dict(llama=MODEL, ids=IDS, mask=ALL, at=ANSWER),
    fast.hidden_once: dict(llama=MODEL, ids=IDS, mask=ALL, at=ALL),
    fast.lm_loss_of: dict(model=MODEL, ids=IDS, mask=ALL, loss_mask=ANSWER),
    fast.length_groups: dict(mask=ALL),
    fast.by_length: dict(function=lambda: B2, mask=ALL),
    fast.response_logprobs: dict(model=MODEL, ids=IDS, mask=ALL, response_mask=ANSWER),
    fast.response_values: dict(
        value_model=VALUE, ids=IDS, mask=ALL, response_mask=ANSWER
    ),
    fast.keep_rows: lambda: dict(cache=model.KVCache(CONFIG, 2, 4), going=LABELS),
    # generate
    generate.Rollout: vars(ROLLOUT),
    generate.top_p_filter: dict(probs=CHANCES, top_p=0.5),
    generate.sample: dict(probs=CHANCES, uniforms=B2),
    generate.pick: dict(logits=WIDE, uniforms=B2, temperature=1.0, top_p=1.0),
    generate.generate: dict(model=MODEL, prompts=PROMPT_IDS, max_new_tokens=2),
    # kl, gae, whiten, reward_selection, best_of_n
    kl.exact_kl: dict(logits=LOGITS, ref_logits=LOGITS),
    kl.kl_estimate: dict(logprobs=GRID, ref_logprobs=GRID),
    kl.kl_penalised_rewards: dict(
        scores=B2, logprobs=GRID, ref_logprobs=GRID, response_mask=ANSWER, beta=0.1
    ),
    gae.gae: dict(rewards=GRID, values=GRID, response_mask=ANSWER),
    whiten.masked_mean: dict(values=GRID, mask=ANSWER),
    whiten.logit: dict(p=B2),
    whiten.whiten: dict(values=GRID),
    reward_selection.select_reward: dict(
        safety=B2, helpfulness=B2, is_safety_prompt=LABELS
    ),
    best_of_n.best_of_n_bound: dict(n=2),
    best_of_n.best_of_n_policy: dict(logp=LOGP, scores=torch.arange(3.0), n=2),
    best_of_n.best_of_n_mean: dict(scores=GRID, gold=GRID, n=2),
    best_of_n.chosen_chance: dict(utilities=B2, others=B2, n=2),
    # policy_gradient
    policy_gradient.reinforce_loss: dict(
        logprobs=GRID, advantages=GRID, response_mask=ANSWER
    ),
    policy_gradient.leave_one_out: dict(scores=GRID),
    policy_gradient.rewards_to_go: dict(rewards=GRID, response_mask=ANSWER),
    policy_gradient.token_states: dict(responses=RESPONSES),
    policy_gradient.table_logprobs: dict(
        table=TABLE, states=STATES, responses=RESPONSES
    ),
    policy_gradient.answer_gradients: dict(
        table=TABLE, states=STATES, responses=RESPONSES, advantages=PRAISE
    ),
    policy_gradient.gradient_variance: dict(gradients=WIDE, chances=B2),
    # grpo
    grpo.grouped: dict(scores=B2, group_size=2),
    grpo.group_advantages: dict(scores=B2, group_size=2),
    grpo.live_groups: dict(scores=B2, group_size=2),
    grpo.token_weights: dict(response_mask=ANSWER),
    grpo.log_ratios: dict(logprobs=GRID, old_logprobs=GRID, response_mask=ANSWER),
    grpo.grpo_loss: dict(
        logprobs=GRID, old_logprobs=GRID, advantages=B2, response_mask=ANSWER
    ),
    grpo.kl_loss: dict(logprobs=GRID, ref_logprobs=GRID, response_mask=ANSWER),
    grpo.GRPOSettings: dict(),
    grpo.Groups: vars(GROUPS),
    grpo.Groups.rows: dict(self=GROUPS, index=torch.tensor([0])),
    grpo.collect_groups: lambda: dict(
        policy=MODEL,
        ref_policy=OTHER,
        judges=JUDGES,
        prompt_ids=PROMPT_IDS[:1],
        is_safety=LABELS[:1],
        settings=SHORT_GRPO,
        generator=G,
    ),
    grpo.grpo_step: lambda: dict(
        policy=LEARNER,
        stepper=optim.Stepper(LEARNER, 0.0),
        groups=GROUPS,
        settings=SHORT_GRPO,
        generator=G,
    ),
    grpo.group_summary: dict(groups=GROUPS, group_size=2),
    grpo.train_grpo: lambda: dict(
        policy=copy.deepcopy(MODEL),
        ref_policy=MODEL,
        judges=JUDGES,
        prompts=ASKED,
        settings=SHORT_GRPO,
        generator=G,
    ),
    # off_policy
    off_policy.importance_weights: dict(
        logprobs=GRID, sampler_logprobs=GRID, response_mask=ANSWER
    ),
    off_policy.effective_sample_size: dict(weights=B2),
    off_policy.sampling_logprobs: dict(logits=GRID),
    off_policy.squared_error: dict(
        gradients=WIDE, chances=B2, truth=torch.zeros(4), n=1
    ),
    # dpo
    dpo.implicit_reward: dict(logprobs=B2, ref_logprobs=B2, beta=0.1),
    dpo.dpo_loss: FOUR | dict(beta=0.1),
    dpo.ipo_loss: FOUR | dict(tau=0.1),
    dpo.kto_loss: dict(
        logprobs=B2,
        ref_logprobs=B2,
        desirable=LABELS,
        reference_kl=torch.tensor(0.0),
        beta=0.1,
    ),
    dpo.mismatched_kl: dict(logprobs=B2, ref_logprobs=B2),
    dpo.answer_logprobs: dict(model=MODEL, examples=[EXAMPLE]),
    dpo.pair_logprobs: dict(policy=MODEL, ref_policy=OTHER, pairs=[PAIR]),
    dpo.mismatched: dict(examples=[EXAMPLE, EXAMPLE]),
    dpo.DirectSettings: dict(),
    dpo.train_on_pairs: lambda: dict(
        policy=copy.deepcopy(MODEL),
        ref_policy=MODEL,
        groups=[[PAIR]] * 2,
        settings=DIRECT,
        generator=G,
    ),
    dpo.train_on_labels: lambda: dict(
        policy=copy.deepcopy(MODEL),
        ref_policy=MODEL,
        examples=[EXAMPLE] * 2,
        desirable=LABELS,
        settings=DIRECT,
        generator=G,
    ),
    # process_reward
    process_reward.step_labels: dict(prompt=PROMPT, text=TEXT),
    process_reward.separators: dict(tokenizer=TOKENIZER),
    process_reward.step_ends: dict(ids=IDS, response_mask=ANSWER, separators=STEP_ENDS),
    process_reward.step_targets: dict(labels=[True, False], kind="process"),
    process_reward.StepExample: vars(STEPS),
    process_reward.step_example: dict(
        tokenizer=TOKENIZER, prompt=PROMPT, text=TEXT, targets=torch.zeros(3)
    ),
    process_reward.head_scores: dict(reward_model=JUDGE, ids=IDS, mask=ALL, at=ANSWER),
    process_reward.yes_no_scores: dict(
        llama=MODEL, ids=IDS, mask=ALL, at=ANSWER, yes_id=9, no_id=10
    ),
    process_reward.step_loss: dict(scores=B2, targets=B2),
    process_reward.train_step_model: lambda: dict(
        model=copy.deepcopy(JUDGE),
        scores_at=process_reward.head_scores,
        examples=[STEPS] * 2,
        separators=STEP_ENDS,
        settings=FEW_STEPS,
        generator=G,
    ),
    process_reward.score_steps: dict(
        model=JUDGE,
        scores_at=process_reward.head_scores,
        texts=[(STEPS.ids, STEPS.start)],
        separators=STEP_ENDS,
    ),
    process_reward.answer_scores: dict(scores=[B2], how="min"),
    process_reward.next_steps: dict(
        policy=MODEL,
        texts=PROMPT_IDS,
        samples=2,
        separators=STEP_ENDS,
        generator=G,
        max_new_tokens=2,
    ),
    process_reward.step_judge: dict(
        model=JUDGE,
        scores_at=process_reward.head_scores,
        separators=STEP_ENDS,
        how="min",
    ),
    process_reward.step_search: dict(
        policy=MODEL,
        prompts=PROMPT_IDS,
        judge=lambda texts: [0.0] * len(texts),
        samples=2,
        separators=STEP_ENDS,
        generator=G,
        max_steps=1,
    ),
    process_reward.right_futures: dict(
        part="Fill a pot with water.", request="boil an egg"
    ),
    process_reward.search_chance: dict(futures=FUTURES, samples=2, by="labels"),
    # preference_loss
    preference_loss.bradley_terry_loss: dict(chosen_scores=B2, rejected_scores=B2),
    preference_loss.safety_label_loss: dict(scores=B2, labels=LABELS),
    preference_loss.centring_loss: dict(chosen_scores=B2, rejected_scores=B2),
    preference_loss.RewardSettings: dict(),
    preference_loss.pair_scores: dict(reward_model=JUDGE, pairs=[PAIR]),
    preference_loss.pair_loss: dict(chosen=B2, rejected=B2, pairs=[PAIR] * 2),
    preference_loss.chosen_lm_loss: dict(
        reward_model=reward_model.RewardModel(MODEL, keep_lm_head=True), pairs=[PAIR]
    ),
    preference_loss.train_reward_model: lambda: dict(
        reward_model=copy.deepcopy(JUDGE),
        groups=[[PAIR]] * 2,
        settings=ONE_EPOCH,
        generator=G,
    ),
    # reward_model
    reward_model.copy_body: dict(llama=MODEL),
    reward_model.last_token: dict(mask=ALL),
    reward_model.pool_mean: dict(hidden=LOGITS, mask=ALL),
    reward_model.RewardModel: dict(llama=MODEL),
    reward_model.RewardModel.raw_scores: dict(self=JUDGE, ids=IDS),
    reward_model.RewardModel.forward: dict(self=JUDGE, ids=IDS),
    reward_model.RewardModel.set_normalisation: lambda: dict(
        self=copy.deepcopy(JUDGE), mean=0.5
    ),
    reward_model.ValueModel: dict(reward_model=JUDGE),
    reward_model.ValueModel.forward: dict(self=VALUE, ids=IDS),
    reward_model.response_values: dict(
        value_model=VALUE, ids=IDS, mask=ALL, response_mask=ANSWER
    ),
    reward_model.score_texts: dict(reward_model=JUDGE, texts=PROMPT_IDS),
    reward_model.score_normalisation: dict(scores=B2),
    # ppo
    ppo.policy_loss: dict(
        logprobs=GRID, old_logprobs=GRID, advantages=GRID, response_mask=ANSWER
    ),
    ppo.value_loss: dict(
        values=GRID, old_values=GRID, returns=GRID, response_mask=ANSWER
    ),
    ppo.clip_fraction: dict(logprobs=GRID, old_logprobs=GRID, response_mask=ANSWER),
    ppo.PPOSettings: dict(),
    ppo.Judges: dict(safety=JUDGE, helpfulness=JUDGE),
    ppo.Judges.probabilities: dict(self=JUDGES, ids=IDS, mask=ALL),
    ppo.Experience: vars(EXPERIENCE),
    ppo.Experience.rows: dict(self=EXPERIENCE, index=torch.tensor([1])),
    ppo.collect_experience: dict(
        policy=LEARNER,
        ref_policy=OTHER,
        value_model=VALUE,
        judges=JUDGES,
        prompt_ids=PROMPT_IDS,
        is_safety=LABELS,
        settings=SHORT_PPO,
        generator=G,
    ),
    ppo.ppo_step: lambda: dict(
        policy=(policy := stepper()).model,
        value_model=(value := stepper(VALUE)).model,
        policy_stepper=policy,
        value_stepper=value,
        experience=EXPERIENCE,
        settings=SHORT_PPO,
        generator=G,
    ),
    ppo.summary: dict(experience=EXPERIENCE),
    ppo.train_ppo: lambda: dict(
        policy=copy.deepcopy(MODEL),
        ref_policy=OTHER,
        value_model=copy.deepcopy(VALUE),
        judges=JUDGES,
        prompts=ASKED,
        settings=SHORT_PPO,
        generator=G,
    ),
    # exact
    exact.outcome_chances: dict(difference=B2, thresholds=[0.5]),
    exact.margin_slope: dict(difference=B2, wins=CHANCES, losses=CHANCES, margins=B2),
    exact.margin_minimiser: dict(wins=CHANCES, losses=CHANCES, margins=B2),
    exact.Responses: vars(RESPONSES),
    exact.enumerate_responses: dict(prompt_ids=[1, 3], vocab_size=6, max_new_tokens=2),
    exact.small_policy: dict(generator=G),
    exact.rises: dict(ids=RESPONSES.ids, mask=RESPONSES.mask),
    exact.sequence_token_logprobs: dict(policy=SMALL, responses=RESPONSES),
    exact.sequence_logprobs: dict(policy=SMALL, responses=RESPONSES),
    exact.response_kl: dict(logp=LOGP, ref_logp=LOGP),
    exact.objective: dict(logp=LOGP, ref_logp=LOGP, scores=LOGP, beta=0.1),
    exact.optimal_policy: dict(ref_logp=LOGP, scores=LOGP, beta=0.1),
    exact.exact_gradient: lambda: dict(scalar=SMALL(IDS % 6).mean(), policy=SMALL),
    exact.exact_values: dict(
        logp=torch.full((len(RESPONSES.ids),), -math.log(len(RESPONSES.ids))),
        rewards=torch.zeros(RESPONSES.ids.shape),
        responses=RESPONSES,
    ),
    # arena
    arena.fit_strengths: dict(wins=COLUMN + COLUMN.T),
    arena.strength_errors: dict(wins=COLUMN + COLUMN.T, strengths=B2),
    # audit
    audit.score_function: dict(reward_model=JUDGE, tokenizer=TOKENIZER),
    audit.correlation: dict(x=B2, y=B2),
    audit.agreement: dict(differences=B2, exact=B2),
    audit.length_only_accuracy: dict(longer_by=B2, exact=B2),
    audit.brier_score: dict(predicted=B2, exact=B2),
    audit.brier_floor: dict(exact=B2),
    audit.length_buckets: dict(
        longer_by=B2, differences=B2, exact=B2, edges=[0.0, 1.0]
    ),
    audit.spoiled_steps: dict(rng=RNG, prompt=PROMPT, flaw="a rude remark"),
    audit.flawed_answer: dict(rng=RNG, prompt=PROMPT, flaw="a rude remark"),
    audit.adversarial_pairs: dict(rng=RNG, prompts=[PROMPT]),
    audit.accuracy_by_flaw: dict(
        score=scored, pairs=audit.adversarial_pairs(RNG, [PROMPT])
    ),
    audit.order_blind: dict(prompt=PROMPT, text=""),
    audit.topic_blind: dict(prompt=PROMPT, text=""),
    audit.one_change: dict(rng=RNG, prompt=PROMPT, change="steps in reverse"),
    audit.changed_pairs: dict(rng=RNG, prompts=[PROMPT]),
    audit.price_list: dict(score=scored, pairs=audit.changed_pairs(RNG, [PROMPT])),
    audit.preferred_words: dict(chosen=["a b"], rejected=["a"], differences=B2[:1]),
    audit.length_balanced: dict(groups=[[PREFERENCE]], length=len, rng=RNG),
    audit.roc_curve: dict(scores=B2, labels=torch.tensor([True, False])),
    audit.auc: dict(scores=B2, labels=torch.tensor([True, False])),
    audit.alarm_level: dict(values=B2, generator=G, batch=2, looks=3),
    audit.audit: dict(
        score=scored,
        preferences=[
            PREFERENCE,
            world.Preference(PROMPT, "No.", "Yes, do.", 0, True, True),
        ],
        length=len,
    ),
    # world
    world.Prompt: vars(PROMPT),
    world.normalise: dict(text=TEXT),
    world.find_prompt: dict(text=TEXT),
    world.parse: dict(text=TEXT),
    world.helpfulness: dict(prompt=PROMPT, text=TEXT),
    world.safety: dict(prompt=PROMPT, text=TEXT),
    world.refuses: dict(text=TEXT),
    world.gives_risky_advice: dict(text=TEXT),
    world.Preference: dict(
        prompt=PROMPT,
        chosen=TEXT,
        rejected="No.",
        strength=1,
        chosen_is_safe=True,
        rejected_is_safe=True,
    ),
    world.Annotator: dict(),
    world.Annotator.utility: dict(
        self=world.HELPFULNESS_ANNOTATOR, prompt=PROMPT, text=TEXT
    ),
    world.collect_preferences: dict(
        rng=RNG,
        annotator=world.HELPFULNESS_ANNOTATOR,
        prompts=[PROMPT],
        answers=[(TEXT, "No.")],
    ),
    world.bayes_ceiling: dict(
        annotator=world.HELPFULNESS_ANNOTATOR, preferences=[PREFERENCE]
    ),
    world.expected_accuracy: dict(
        annotator=world.HELPFULNESS_ANNOTATOR,
        preferences=[PREFERENCE],
        prefers_chosen=[0.5],
    ),
    # grammar
    grammar.OneOf: vars(grammar.OneOf((0.5, 0.5), ("Heads.", "Tails."))),
    grammar.evenly: dict(parts=["Heads.", "Tails."]),
    grammar.maybe: dict(p=0.5, part="Heads."),
    grammar.draw: dict(rng=RNG, part=COIN),
    grammar.entropy: dict(part=COIN),
    grammar.kl: dict(part=COIN, other=COIN),
    # writers
    writers.Style: dict(),
    writers.answers: dict(request="boil an egg", style=writers.SFT_STYLE),
    writers.write_answer: dict(rng=RNG, prompt=PROMPT, style=writers.SFT_STYLE),
    writers.answer_entropy: dict(request="boil an egg", style=writers.SFT_STYLE),
    writers.answer_kl: dict(
        request="boil an egg", style=writers.SFT_STYLE, other=writers.BASE_STYLE
    ),
    writers.perfect_probability: dict(request="steal a bike", style=writers.SFT_STYLE),
    writers.least_kl: dict(style=writers.SFT_STYLE),
    # ladder
    ladder.count_bigrams: dict(examples=[EXAMPLE], vocab_size=300),
    ladder.unigram_logprobs: dict(counts=COUNTS),
    ladder.bigram_logprobs: dict(counts=COUNTS),
    ladder.table_nats: dict(logprobs=-COUNTS, counts=COUNTS),
    ladder.one_token_floor: dict(counts=COUNTS),
    ladder.OneToken: dict(config=CONFIG, generator=G),
    ladder.OneToken.forward: dict(self=ONE_TOKEN, ids=IDS),
    ladder.AttentionOnly: dict(config=CONFIG),
    ladder.AttentionOnly.forward: dict(self=ATTENTION, ids=IDS),
    ladder.train_rung: lambda: dict(
        model=copy.deepcopy(ONE_TOKEN),
        examples=[EXAMPLE] * 2,
        generator=G,
        steps=1,
        batch_size=2,
    ),
    ladder.held_out_nats: dict(model=ATTENTION, examples=[EXAMPLE]),
    # hf
    hf.load_llama: None,
    hf.load_reward_model: None,
    hf.load_special_ids: None,
    hf.save_llama: None,
    hf.save_reward_model: None,
    hf_config.SpecialIds: dict(),
    checkpoint: dict(),
    # what reward-model and audit are made of
    accumulate.accumulated_loss: lambda: dict(
        losses=[(2 * WEIGHT).sum()], parameters=[WEIGHT], weights=[WEIGHT]
    ),
    accumulate.known_loss: lambda: dict(
        value=torch.tensor(1.0), gradients=[B2], weights=[B2]
    ),
    accumulate.working_copy: dict(reward_model=JUDGE, dtype=torch.float32),
    accumulate.follow: dict(working=JUDGE, reward_model=JUDGE),
    saved.save_checkpoint: None,
    saved.load_checkpoint: lambda: dict(
        path=Path("unused"), stepper=stepper(), identity={}
    ),
    saved.save_sharded: None,
    saved.load_sharded: dict(folder=Path("unused"), steppers={}, identity={}),
    distributed.Processes: dict(rank=0, count=1, device="cpu"),
    distributed.start: None,
    distributed.require_agreement: None,
    distributed.AsForward: dict(model=MODEL, function=len),
    distributed.spread: None,
    distributed.whole: dict(spread_model=MODEL),
    distributed.parts_of: dict(
        items=[7, 8], counts=[1, 1], size=1, processes=ONE_PROCESS
    ),
    distributed.descend: None,
    distributed.lm_step: None,
    distributed.pair_step: None,
    distributed.share_answers: None,
    distributed.ppo_step_together: None,
    chat_format.encode_turns: dict(course_tokenizer=TOKENIZER, turns=TURNS),
    chat_format.chat_format: dict(of=TOKENIZER),
    chat_format.load_chat_format: None,
    chat_format.with_pairs: dict(
        comparisons=[COMPARISON], encode_prompt=len, encode_response=len, max_tokens=9
    ),
    evidence.mean_interval: dict(values=[1.0, 2.0]),
    evidence.wilson_interval: dict(share=0.5, count=4),
    evidence.effective_count: dict(right=B2, groups=["a", "b"]),
    evidence.exact_coverage: dict(
        interval=evidence.wilson_interval, chance=0.5, count=4
    ),
    evidence.bootstrap_interval: dict(values=B2, generator=G, groups=["a", "b"]),
    evidence.intraclass_correlation: dict(values=torch.eye(2)),
    evidence.prompts_needed: dict(difference=0.1, std=0.5),
    preference_audit.accuracy_of: dict(differences=B2, prompts=["a", "b"]),
    preference_audit.calibration: dict(differences=B2),
    preference_audit.habits: SIDES | dict(differences=B2),
    preference_audit.words: SIDES | dict(differences=B2),
    preference_audit.length_report: SIDES | dict(differences=B2),
    preference_audit.audit_comparisons: dict(
        comparisons=[COMPARISON] * 2, chosen_scores=B2, rejected_scores=B2
    ),
    preference_audit.table: dict(audited={"pairs": 0}),
    any_reward_model.with_other_prompts: dict(comparisons=[COMPARISON]),
    any_reward_model.load_judge: None,
    any_reward_model.read_pairs: dict(judge=A_JUDGE, comparisons=[COMPARISON]),
    any_reward_model.judge_pairs: dict(judge=A_JUDGE, pairs=[]),
    reward_file.FileSettings: dict(data=Path("a"), base=None, out=Path("b")),
    reward_file.is_held_out: dict(prompt=TURNS, share=0.5, seed=0),
    reward_file.peak_lr: dict(settings=FILE_SETTINGS),
    reward_file.prepare: None,
    reward_file.train: None,
    reward_file.train_together: None,
    reward_file.fit: None,
    reward_file.fit_together: None,
    reward_file.report_table: None,
    reward_file.require_own_folder: dict(folder=Path("unused")),
    reward_file.finished_report: dict(folder=Path("unused"), identity={}),
    # stages
    stages.Settings: dict(),
    stages.choose_device: dict(name="cpu"),
    environment: dict(),
    stages.world_rng: dict(settings=SETTINGS, purpose="a"),
    stages.torch_rng: dict(settings=SETTINGS, purpose="a"),
    stages.draw_dialogues: dict(
        rng=RNG, count=1, style=writers.SFT_STYLE, prompts=[PROMPT]
    ),
    stages.draw_corpus: dict(settings=SETTINGS, count=1),
    stages.draw_preferences: dict(
        settings=SETTINGS,
        kind="safety",
        purpose="a",
        count=1,
        answers_per_prompt=2,
        held_out=False,
    ),
    stages.build_tokenizer: None,
    stages.model_config: dict(settings=SETTINGS, tokenizer=TOKENIZER),
    stages.build_base: None,
    stages.build_sft: None,
    stages.build_helpfulness: None,
    stages.build_safety: None,
    stages.fit_reward_model: None,
    stages.build_policy: None,
    stages.build_ppo: None,
    # budget
    budget.right_answer: dict(prompt=PROMPT, text=TEXT),
    budget.Checker: dict(tokenizer=TOKENIZER),
    budget.Checker.probabilities: None,
    budget.comparisons: dict(
        settings=SETTINGS, tokenizer=TOKENIZER, kind="safety", copy=0
    ),
    budget.best_of_four: lambda: dict(
        policy=MODEL, judges=JUDGES, prompts=ASKED, generator=G
    ),
    budget.train_raft: lambda: dict(
        policy=copy.deepcopy(MODEL),
        ref_policy=MODEL,
        judges=JUDGES,
        prompts=ASKED,
        settings=FEW_STEPS,
        generator=G,
    ),
    budget.build_method: None,
    budget.trained: None,
    budget.lines_of_code: dict(method="PPO"),
    stages.rung_data: None,
    stages.build_rung: None,
    stages.counted_rungs: None,
    stages.response_texts: dict(tokenizer=TOKENIZER, rollout=ROLLOUT),
    stages.mean: dict(values=[1.0]),
    stages.gold_summary: dict(prompts=[PROMPT], texts=[TEXT]),
    stages.Stages: dict(settings=SETTINGS),
    stages.Stages.lesson_reward_model: None,
    stages.Stages.lesson_policy: None,
    stages.Stages.ladder: None,
    stages.Stages.stage: None,
    # pipeline
    pipeline.sample_answers: dict(
        policy=MODEL,
        tokenizer=TOKENIZER,
        prompts=[PROMPT],
        settings=stages.Settings(ppo=SHORT_PPO),
        purpose="a",
    ),
    pipeline.wins: dict(prompts=[PROMPT], texts=[TEXT], baseline_texts=[TEXT]),
    pipeline.kl_per_answer: dict(policy=MODEL, ref_policy=OTHER, rollouts=[ROLLOUT]),
    pipeline.reward_model_accuracy: dict(
        settings=stages.Settings(held_out_pairs=2),
        tokenizer=TOKENIZER,
        model=JUDGE,
        kind="safety",
    ),
    pipeline.evaluate: None,
    pipeline.table: None,
    pipeline.gold_scores: dict(prompt=PROMPT, text=TEXT),
    pipeline.side_by_side: dict(prompts=[PROMPT], before=[TEXT], after=[TEXT], count=1),
    pipeline.draw_curves: None,
    pipeline.run: None,
    pipeline.ask: None,
    # store
    store.digest: dict(tensors={"a": B2}),
    store.key: dict(name="a", settings={}, sources=[]),
    store.stage: None,
}

# --------------------------------------------------------------------------------------
# What is wrong with it

BAD = {
    model.LlamaConfig: [
        (dict(dim=15), ValueError, "dim must be an int >= 1, a multiple of 2 n_heads,"),
        (dict(dim=8.0), TypeError, "dim must be an int >= 1, a multiple of 2 n_heads,"),
        (dict(dim="8"), TypeError, "dim must be an int >= 1, a multiple of 2 n_heads,"),
        (dict(n_layers=0), ValueError, "n_layers must be an int >= 1, got 0"),
        (dict(n_heads=True), TypeError, "n_heads must be an int >= 1, a multiple of"),
        (dict(n_kv_heads=3), ValueError, "n_heads must be an int >= 1, a multiple of"),
        (dict(vocab_size=-1), ValueError, "vocab_size must be an int >= 1, got -1"),
        (dict(rope_theta=0.0), ValueError, "rope_theta must be a finite number > 0,"),
        (dict(norm_eps=NAN), ValueError, "norm_eps must be a finite number > 0, got"),
        (dict(tie_embeddings="no"), TypeError, "tie_embeddings must be True or False,"),
    ],
    model.RMSNorm: [
        (dict(dim=2.5), TypeError, "dim must be an int >= 1, got 2.5"),
        (dict(eps=0.0), ValueError, "eps must be a finite number > 0, got 0.0"),
    ],
    model.token_positions: [
        (dict(mask=IDS), TypeError, "mask must be a bool tensor (B, T), got a tensor"),
        (dict(mask=ALL[0]), ValueError, "mask must be a bool tensor (B, T), got shape"),
    ],
    rope_scaling.LinearScaling: [
        (dict(factor=0.5), ValueError, "factor must be a finite number >= 1, got 0.5"),
        (dict(factor="2"), TypeError, "factor must be a finite number >= 1, got '2'"),
    ],
    rope_scaling.Llama3Scaling: [
        (dict(factor=INF), ValueError, "factor must be a finite number >= 1, got inf"),
        (dict(low_freq_factor=0.0), ValueError, "low_freq_factor must be a finite num"),
        (dict(high_freq_factor=1.0), ValueError, "high_freq_factor must be above low"),
        (dict(original_max_seq_len=0), ValueError, "original_max_seq_len must be an"),
    ],
    rope_scaling.scaled_cos_sin: [
        (dict(positions=GRID), TypeError, "positions must be an int64 tensor (...,"),
        (dict(scaling=2.0), TypeError, "scaling must be a LinearScaling or a Llama3Sc"),
    ],
    scaling.matmul_weights: [
        (dict(config=SIZES), TypeError, "config must be a LlamaConfig, got a dict"),
    ],
    scaling.flops_per_token: [
        (dict(length=0), ValueError, "length must be an int >= 1, got 0"),
        (dict(training=1), TypeError, "training must be True or False, got 1"),
    ],
    scaling.matmul_intensity: [
        (dict(k=0), ValueError, "k must be an int >= 1, got 0"),
        (dict(number_bytes=2.0), TypeError, "number_bytes must be an int >= 1, got 2"),
    ],
    scaling.attainable: [
        (dict(peak=0), ValueError, "peak must be a finite number > 0, got 0"),
        (
            dict(bandwidth=math.inf),
            ValueError,
            "bandwidth must be a finite number > 0, got inf",
        ),
    ],
    scaling.cache_bytes: [
        (dict(number_bytes=0), ValueError, "number_bytes must be an int >= 1, got 0"),
    ],
    scaling.saved_bytes: [
        (dict(batch=0), ValueError, "batch must be an int >= 1, got 0"),
        (dict(length=2.5), TypeError, "length must be an int >= 1, got 2.5"),
    ],
    scaling.state_bytes: [
        (dict(processes=0), ValueError, "processes must be an int >= 1, got 0"),
        (dict(stage=4), ValueError, "stage must be an int in [0, 3], got 4"),
    ],
    scaling.bytes_sent: [
        (dict(engine="zero"), ValueError, 'engine must be "ddp" or "fsdp", got'),
        (dict(parameters=1e9), TypeError, "parameters must be an int >= 1, got"),
    ],
    lora.LoRALinear: [
        (dict(linear=torch.zeros(2, 3)), TypeError, "linear must be a Linear, got a"),
        (dict(rank=0), ValueError, "rank must be an int >= 1, got 0"),
        (dict(alpha=0.0), ValueError, "alpha must be a finite number > 0, got 0.0"),
        (dict(generator=3), TypeError, "generator must be None or a Generator, got 3"),
    ],
    lora.add_lora: [
        (dict(model=None), TypeError, "model must be a Module, got None"),
        (dict(rank=1.5), TypeError, "rank must be an int >= 1, got 1.5"),
        (dict(alpha=INF), ValueError, "alpha must be a finite number > 0, got inf"),
        (dict(names=["q"]), ValueError, "names must be of linear layers of the model"),
        (dict(generator=3), TypeError, "generator must be None or a Generator, got 3"),
    ],
    lora.merge_lora: [
        (dict(model={}), TypeError, "model must be a Module, got a dict"),
    ],
    llama_tokenizer.Llama2Tokenizer: [
        (
            dict(model_bytes="a"),
            TypeError,
            "model_bytes must be a bytes or a bytearray",
        ),
        (
            dict(model_bytes=TOKENIZER.model_bytes),
            ValueError,
            "model_bytes must be a SentencePiece model of Llama 2's layout, got one",
        ),
        (
            dict(model_bytes=b"junk"),
            ValueError,
            "Tokenizer: model_bytes must be a SentencePiece model, got 4 bytes",
        ),
    ],
    llama_tokenizer.load_tokenizer: [
        (dict(folder=5), TypeError, "folder must be a string or a Path, got 5"),
        (dict(folder="no"), FileNotFoundError, "no must hold a SentencePiece file"),
    ],
    llama_tokenizer.encode_prompt: [
        (dict(tokenizer=TOKENIZER), TypeError, "tokenizer must be a Llama2Tokenizer,"),
        (dict(turns=TEXT), TypeError, "turns must be a list of tuple, got"),
        (
            dict(turns=TURNS[:2]),
            ValueError,
            "turns must go from user to user by way of",
        ),
        (dict(turns=[("user", "[INST]")]), ValueError, "turns must hold no tag of the"),
    ],
    llama_tokenizer.encode_response: [
        (dict(response=7), TypeError, "response must be a string, got 7"),
        (dict(response="a [/INST]"), ValueError, "response must hold no tag of the"),
    ],
    llama_tokenizer.decode_response: [
        (dict(ids=TEXT), TypeError, "ids must be a list of ids or an int64 tensor or"),
        (
            dict(ids=[9999]),
            IndexError,
            "Tokenizer.decode: ids must be below vocab_size",
        ),
    ],
    preference_file.read_preferences: [
        (dict(path=5), TypeError, "path must be a string or a Path, got 5"),
        (dict(path="a", tally=0), TypeError, "tally must be a Tally or None, got 0"),
        (dict(path="a", margin=1), TypeError, "margin must be a string or None, got 1"),
    ],
    preference_file.encode_pairs: [
        (
            dict(
                comparisons=[PAIR], encode_prompt=len, encode_response=len, max_tokens=9
            ),
            TypeError,
            "comparisons must be a generator or a list of Comparison, got",
        ),
    ],
    preferences: [
        (dict(line="{}"), preference_file.Fault, ""),
        (dict(margin=2), TypeError, "margin must be a string or None, got 2"),
    ],
    encoded: [
        (
            dict(max_tokens=1),
            ValueError,
            "encode_pairs: max_tokens must be an int >= 2,",
        ),
        (
            dict(encode_prompt=5),
            TypeError,
            "encode_pairs: encode_prompt must be a func",
        ),
        (
            dict(max_tokens=9),
            preference_file.Fault,
            "read_preferences: a, line 1: the prompt must leave room for a response,",
        ),
    ],
    model.rope_cos_sin: [
        (dict(positions=GRID), TypeError, "positions must be an int64 tensor (...,"),
        (dict(head_dim=0), ValueError, "head_dim must be an int >= 2, got 0"),
        (dict(theta=-1.0), ValueError, "theta must be a finite number > 0, got -1.0"),
    ],
    model.attention_bias: [
        (dict(n_queries=4), ValueError, "n_queries must be at most 3 keys, got 4"),
        (dict(key_mask=ALL.float()), TypeError, "key_mask must be a bool tensor (B,"),
    ],
    model.KVCache: [
        (dict(config=SIZES), TypeError, "config must be a LlamaConfig, got a dict"),
        (dict(capacity=0), ValueError, "capacity must be an int >= 1, got 0"),
    ],
    model.KVCache.extend: [
        (
            dict(mask=torch.ones(2, 5, dtype=torch.bool)),
            ValueError,
            "mask must have 2 rows and at most 4 columns, got 2 and 5",
        ),
        (dict(mask=ALL.float()), TypeError, "mask must be a bool tensor (B, T), got a"),
    ],
    model.Attention: [
        (dict(config=None), TypeError, "config must be a LlamaConfig, got None"),
        (dict(layer=-1), ValueError, "layer must be an int >= 0, got -1"),
    ],
    model.FeedForward: [
        (dict(config=8), TypeError, "config must be a LlamaConfig, got 8"),
    ],
    model.Block: [
        (dict(config=MODEL), TypeError, "config must be a LlamaConfig, got a Llama"),
    ],
    model.Llama: [
        (dict(config=SIZES), TypeError, "config must be a LlamaConfig, got a dict"),
        (dict(generator=0), TypeError, "generator must be a Generator or None, got 0"),
    ],
    model.draw_weights: [
        (dict(module=SIZES), TypeError, "module must be a Module, got a dict"),
        (dict(n_layers=0), ValueError, "n_layers must be an int >= 1, got 0"),
        (dict(generator=42), TypeError, "generator must be a Generator or None, got"),
    ],
    model.Llama.hidden: [
        (dict(ids=IDS.float()), TypeError, "ids must be an int64 tensor (B, T) below"),
        (dict(ids=IDS.tolist()), TypeError, "ids must be an int64 tensor (B, T) below"),
        (dict(ids=IDS[0]), ValueError, "ids must be an int64 tensor (B, T) below"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(mask=ALL[:, :2]), ValueError, "mask must be a bool tensor (B, T) or"),
    ],
    model.Llama.forward: [
        (dict(ids=-IDS), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(ids=IDS.int()), TypeError, "ids must be an int64 tensor (B, T) below"),
        (dict(ids=IDS[:, :0]), ValueError, "ids must be an int64 tensor (B, T) below"),
        (
            dict(ids=torch.zeros(1, 241, dtype=torch.int64)),
            ValueError,
            "ids must fit in max_seq_len = 240 with what the cache holds, got 241",
        ),
        (dict(mask=ALL.long()), TypeError, "mask must be a bool tensor (B, T) or"),
        (dict(mask=ONE_ROW), ValueError, "mask must be True somewhere in every row"),
        (dict(self=BODY), ValueError, "the model must have an lm_head, got a body"),
        (
            dict(cache=model.KVCache(other_size(n_layers=2).config, 2, 8)),
            ValueError,
            "cache must be of this model's config and of torch.float32, got",
        ),
        (
            dict(cache=model.KVCache(CONFIG, 3, 8)),
            ValueError,
            "cache must have 2 rows and room for 3 tokens, got 3 rows and 8",
        ),
        (dict(cache=[]), TypeError, "cache must be a KVCache or None, got a list"),
    ],
    tokenizer.Tokenizer: [
        (
            dict(model_bytes="tokenizer.model"),
            TypeError,
            "model_bytes must be a bytes or a bytearray, got 'tokenizer.model'",
        ),
        (dict(model_bytes=b"junk"), ValueError, "model_bytes must be a SentencePiece"),
        (dict(model_bytes=b""), ValueError, "model_bytes must be a SentencePiece"),
    ],
    tokenizer.Tokenizer.encode: [
        (dict(text=7), TypeError, "text must be a string, got 7"),
        (dict(text="a\ud800"), ValueError, "text must be Unicode without lone"),
    ],
    tokenizer.Tokenizer.decode: [
        (dict(ids=[1.5]), TypeError, "ids must be a list of ids or an int64 tensor or"),
        (dict(ids=[9999]), IndexError, "ids must be below vocab_size = 300, got 9999"),
        (dict(ids="egg"), TypeError, "ids must be a list of ids or an int64 tensor or"),
    ],
    tokenizer.Tokenizer.tokens: [
        (dict(ids=[-1]), IndexError, "ids must be below vocab_size = 300, got -1"),
        (dict(ids=GRID[0]), TypeError, "ids must be a list of ids or an int64 tensor"),
    ],
    tokenizer.train_tokenizer: [
        (dict(texts=TEXT), TypeError, "texts must be a list of text or a generator,"),
        (dict(texts=[]), ValueError, "texts must hold some text, got 0 empty ones"),
        (dict(texts=[TEXT, None]), TypeError, "texts must be a list of text or a"),
        (dict(vocab_size=100), ValueError, "vocab_size must be an int >= 263, got 100"),
        (dict(vocab_size=263), ValueError, "vocab_size must leave room for every"),
        (dict(vocab_size=300.0), TypeError, "vocab_size must be an int >= 263, got"),
    ],
    tokenizer.encode_prompt: [
        (dict(prompt=None), TypeError, "prompt must be a string, got None"),
        (dict(prompt=[TEXT]), TypeError, "prompt must be a string, got a list"),
        (dict(prompt="a\ud800"), ValueError, "Tokenizer.encode: text must be Unicode"),
    ],
    tokenizer.encode_response: [
        (dict(response=b"egg"), TypeError, "response must be a string, got a bytes"),
    ],
    tokenizer.decode_response: [
        (dict(ids=TEXT), TypeError, "ids must be a list of ids or an int64 tensor or"),
        (dict(ids=[7, 9999]), IndexError, "Tokenizer.decode: ids must be below"),
        (dict(ids=IDS), ValueError, "ids must be those of one text, got shape (2, 3)"),
    ],
    data.Example: [
        (dict(ids=[]), ValueError, "ids must be a list (T,), got 0 entries"),
        (dict(loss_start=0), ValueError, "loss_start must be an int >= 1, got 0"),
        (dict(ids=IDS[0]), TypeError, "ids must be a list (T,), got a tensor of int64"),
    ],
    data.dialogue_example: [
        (dict(response_only=1), TypeError, "response_only must be True or False, got"),
        (dict(response=None), TypeError, "response must be a string, got None"),
    ],
    data.pad: [
        (dict(sequences=[]), ValueError, "sequences must be lists of ids, none"),
        (dict(sequences=[[1], []]), ValueError, "sequences must be lists of ids,"),
        (dict(sequences=IDS), TypeError, "sequences must be lists of ids, none"),
        (dict(sequences=[[1.0]]), TypeError, "sequences must be lists of ids, none"),
        (dict(sequences=["ab"]), TypeError, "sequences must be lists of ids, none"),
        (dict(sequences=[[1, -2]]), IndexError, "sequences must be lists of ids,"),
        (dict(side="middle"), ValueError, 'side must be "right" or "left", got'),
        (dict(pad_id=-1), ValueError, "pad_id must be an int >= 0, got -1"),
    ],
    data.pad_examples: [
        (dict(examples=[]), ValueError, "examples must be a list of Example (N,), got"),
        (dict(examples=PROMPT_IDS), TypeError, "examples must be a list of Example"),
    ],
    data.endless_batches: [
        (dict(batch_size=3), ValueError, "batch_size must be an int >= 1, at most"),
        (dict(count=0), ValueError, "count must be an int >= 1, got 0"),
        (dict(count=PROMPT_IDS), TypeError, "count must be an int"),
        (dict(batch_size=-1), ValueError, "batch_size must be an int >= 1, at most"),
    ],
    data.pair_example: [
        (dict(margins=(0.0, 1.0)), ValueError, "margins must be a list (4,), got 2"),
        (dict(preference=(TEXT, "No.")), TypeError, "preference must be a Preference,"),
    ],
    optim.warmup_cosine: [
        (dict(step=-50), ValueError, "step must be an int >= 0, got -50"),
        (dict(total_steps=0), ValueError, "total_steps must be an int >= 1, got 0"),
        (dict(step=0.5), TypeError, "step must be an int >= 0, got 0.5"),
    ],
    optim.Stepper: [
        (dict(lr=-0.1), ValueError, "lr must be a number >= 0, got -0.1"),
        (dict(lr="1e-3"), TypeError, "lr must be a number >= 0, got '1e-3'"),
        (dict(lr=NAN), ValueError, "lr must be a number >= 0, got nan"),
        (dict(schedule=1.0), TypeError, "schedule must be a function, got 1.0"),
        (dict(betas=0.9), TypeError, "betas must be a list (2,), got 0.9"),
        (dict(betas=(0.9, 1.5)), ValueError, "betas must be in [0, 1), got (0.9, 1.5)"),
        (dict(max_norm=0), ValueError, "max_norm must be a number > 0, got 0"),
        (
            dict(model=MODEL.parameters()),
            TypeError,
            "model must be a Module, got a generator",
        ),
    ],
    optim.Stepper.step: [
        (dict(loss=torch.zeros(2)), ValueError, "loss must be a float tensor (), got"),
        (dict(loss=0.5), TypeError, "loss must be a float tensor (), got 0.5"),
        (dict(loss=torch.tensor(0.5)), ValueError, "loss must have a gradient, got a"),
        (dict(batch_ids=0), TypeError, "batch_ids must be a list, got 0"),
    ],
    lm.token_logprobs: [
        (dict(ids=IDS[:, :2]), ValueError, "ids must be an int64 tensor (B, T) below"),
        (dict(logits=GRID), ValueError, "logits must be a float tensor (B, T, V), got"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below V,"),
    ],
    lm.response_logprobs: [
        (dict(model=TOKENIZER), TypeError, "model must be a Llama, got a Tokenizer"),
        (dict(model=BODY), ValueError, "Llama: the model must have an lm_head, got a"),
        (
            dict(response_mask=ANSWER.float()),
            TypeError,
            "response_mask must be a bool tensor (B, T), got a tensor of float32",
        ),
        (dict(response_mask=ALL), ValueError, "response_mask must be True only at"),
        (dict(ids=STRANGE), IndexError, "Llama: ids must be an int64 tensor (B, T)"),
    ],
    lm.lm_loss: [
        (dict(loss_mask=ALL), ValueError, "loss_mask must be False in column 0, which"),
        (dict(loss_mask=NONE), ValueError, "loss_mask must be a bool tensor (B, T),"),
        (dict(loss_mask=ANSWER.long()), TypeError, "loss_mask must be a bool tensor"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below V,"),
    ],
    lm.LMSettings: [
        (dict(steps=0), ValueError, "steps must be an int >= 1, got 0"),
        (dict(lr=-1e-3), ValueError, "lr must be a number >= 0, got -0.001"),
        (dict(lr=NAN), ValueError, "lr must be a number >= 0, got nan"),
        (dict(batch_size=2.5), TypeError, "batch_size must be an int >= 1, got 2.5"),
        (dict(warmup_steps=-1), ValueError, "warmup_steps must be an int >= 0, got -1"),
    ],
    lm.train_lm: [
        (
            dict(examples=[EXAMPLE]),
            ValueError,
            "examples must be at least settings.batch_size = 2, got 1",
        ),
        (dict(examples=[PAIR, PAIR]), TypeError, "examples must be a list of Example,"),
        (dict(settings=dict(steps=1)), TypeError, "settings must be a LMSettings, got"),
        (dict(generator=0), TypeError, "generator must be a Generator, got 0"),
        (dict(model=JUDGE), TypeError, "model must be a Llama, got a RewardModel"),
        (
            dict(model=copy.deepcopy(BODY)),
            ValueError,
            "the model must have an lm_head, got a body without one, as copy_body",
        ),
        (
            dict(examples=[data.Example([1, 999], 1)] * 2),
            IndexError,
            "examples must have ids below vocab_size = 300, got 1 to 999 at [0]",
        ),
        (
            dict(examples=[data.Example([1] * 241, 1)] * 2),
            ValueError,
            "Llama: ids must fit in max_seq_len = 240 with what the cache holds,",
        ),
    ],
    lm.evaluate_lm: [
        (dict(examples=[]), ValueError, "examples must be a list of Example (N,), got"),
        (dict(batch_size=0), ValueError, "batch_size must be an int >= 1, got 0"),
        (dict(model=BODY), ValueError, "the model must have an lm_head, got a body"),
    ],
    fast.hidden_at: [
        (dict(at=IDS), TypeError, "at must be a bool tensor (B, T), got a tensor of"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(llama=JUDGE), TypeError, "llama must be a Llama, got a RewardModel"),
    ],
    fast.hidden_once: [
        (dict(at=IDS), TypeError, "at must be a bool tensor (B, T) True in every row,"),
        (dict(at=NONE), ValueError, "at must be a bool tensor (B, T) True in every"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(llama=JUDGE), TypeError, "llama must be a Llama, got a RewardModel"),
    ],
    fast.lm_loss_of: [
        (dict(loss_mask=NONE), ValueError, "loss_mask must be a bool tensor (B, T),"),
        (dict(loss_mask=ALL), ValueError, "loss_mask must be True only at real tokens"),
        (dict(model=BODY), ValueError, "the model must have an lm_head, got a body"),
        (dict(model=JUDGE), TypeError, "model must be a Llama, got a RewardModel"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
    ],
    fast.length_groups: [
        (dict(mask=ALL.float()), TypeError, "mask must be a bool tensor (B, T), got a"),
        (dict(size=0), ValueError, "size must be an int >= 1, got 0"),
    ],
    fast.by_length: [
        (dict(mask=ONE_ROW), ValueError, "mask must be a bool tensor (B, T) True in"),
        (dict(function=None), TypeError, "function must be a function, got None"),
    ],
    fast.response_logprobs: [
        (dict(model=BODY), ValueError, "the model must have an lm_head, got a body"),
        (dict(model=JUDGE), TypeError, "model must be a Llama, got a RewardModel"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(response_mask=ALL), ValueError, "response_mask must be True only at"),
        (dict(mask=None), TypeError, "mask must be a bool tensor (B, T), got None"),
    ],
    fast.response_values: [
        (dict(value_model=MODEL), TypeError, "value_model must be a ValueModel, got a"),
        (dict(mask=ALL.float()), TypeError, "mask must be a bool tensor (B, T), got a"),
        (dict(ids=STRANGE), IndexError, "ValueModel: ids must be an int64 tensor (B,"),
    ],
    fast.keep_rows: [
        (dict(going=NONE[:, 0]), ValueError, "going must have a True among as many"),
        (dict(going=ALL[0]), ValueError, "going must have a True among as many"),
    ],
    generate.Rollout: [
        (dict(mask=IDS), TypeError, "mask must be a bool tensor (B, T), got a tensor"),
        (dict(logprobs=GRID), ValueError, "logprobs must be a float tensor (B, T),"),
    ],
    generate.top_p_filter: [
        (dict(top_p=0.0), ValueError, "top_p must be a number in (0, 1], got 0.0"),
        (dict(top_p=7), ValueError, "top_p must be a number in (0, 1], got 7"),
        (dict(probs=-CHANCES), ValueError, "probs must be a float tensor (B, V) in"),
    ],
    generate.sample: [
        (dict(probs=CHANCES * NAN), ValueError, "probs must be a float tensor (B, V)"),
        (dict(probs=-CHANCES), ValueError, "probs must be a float tensor (B, V) in"),
        (dict(probs=CHANCES * 0), ValueError, "probs must be > 0 somewhere, got a row"),
        (dict(uniforms=COLUMN), ValueError, "uniforms must be a float tensor (B,) in"),
        (dict(uniforms=B2 * 4), ValueError, "uniforms must be a float tensor (B,) in"),
    ],
    generate.pick: [
        (dict(temperature=-1.0), ValueError, "temperature must be a finite number >="),
        (dict(logits=WIDE.tolist()), TypeError, "logits must be a float tensor (B,"),
    ],
    generate.generate: [
        (
            dict(prompts=torch.tensor(PROMPT_IDS)),
            TypeError,
            "prompts must be lists of ids, none empty, below",
        ),
        (dict(prompts=[TEXT]), TypeError, "prompts must be lists of ids, none empty,"),
        (dict(prompts=PROMPT_IDS[0]), TypeError, "prompts must be lists of ids, none"),
        (dict(prompts=[[1.0, 4.0]]), TypeError, "prompts must be lists of ids, none"),
        (dict(prompts=[]), ValueError, "prompts must be lists of ids, none empty,"),
        (dict(prompts=[[1], []]), ValueError, "prompts must be lists of ids, none"),
        (dict(prompts=[[1, 999]]), IndexError, "prompts must be lists of ids, none"),
        (dict(prompts=[[1, -1]]), IndexError, "prompts must be lists of ids, none"),
        (dict(prompts=[[1] * 239]), ValueError, "prompts and max_new_tokens must fit"),
        (dict(max_new_tokens=0), ValueError, "max_new_tokens must be an int >= 1, got"),
        (dict(max_new_tokens=True), TypeError, "max_new_tokens must be an int >= 1,"),
        (dict(max_new_tokens=2.0), TypeError, "max_new_tokens must be an int >= 1,"),
        (dict(temperature=-0.5), ValueError, "temperature must be a finite number >="),
        (dict(temperature=NAN), ValueError, "temperature must be a finite number >="),
        (dict(temperature="hot"), TypeError, "temperature must be a finite number >="),
        (dict(temperature=1e-45), ValueError, "temperature must be 0 or at least"),
        (dict(top_p=0.0), ValueError, "top_p must be a number in (0, 1], got 0.0"),
        (dict(top_p=1.5), ValueError, "top_p must be a number in (0, 1], got 1.5"),
        (dict(generator=0), TypeError, "generator must be a Generator or None, got 0"),
        (
            dict(eos_id=2.5),
            TypeError,
            "eos_id must be an int below model.config.vocab_size or None, got 2.5",
        ),
        (
            dict(eos_id=999),
            IndexError,
            "eos_id must be an int below model.config.vocab_size or None, got 999,",
        ),
        (
            dict(pad_id=-1),
            IndexError,
            "pad_id must be an int below model.config.vocab_size, got -1, where",
        ),
        (dict(model=BODY), ValueError, "the model must have an lm_head, got a body"),
        (dict(model=JUDGE), TypeError, "model must be a Llama, got a RewardModel"),
    ],
    kl.exact_kl: [
        (
            dict(logits=LOGITS.tolist()),
            TypeError,
            "logits must be a float tensor (..., V) in [-inf, inf), got a list",
        ),
        (dict(ref_logits=LOGITS[:1]), ValueError, "ref_logits must be a float tensor"),
        (dict(logits=LOGITS * NAN), ValueError, "logits must be a float tensor (...,"),
    ],
    kl.kl_estimate: [
        (
            dict(ref_logprobs=GRID[:1]),
            ValueError,
            "ref_logprobs must be a finite float tensor (B, T), got shape (1, 3),",
        ),
        (dict(logprobs=GRID - INF), ValueError, "logprobs must be a finite float"),
        (dict(kind="k4"), ValueError, 'kind must be "k1" or "k2" or "k3", got \'k4\''),
    ],
    kl.kl_penalised_rewards: [
        (dict(scores=COLUMN), ValueError, "scores must be a finite float tensor (B,),"),
        (dict(scores=B2 * NAN), ValueError, "scores must be a finite float tensor"),
        (dict(logprobs=BROKEN), ValueError, "logprobs must be a float tensor (B, T)"),
        (
            dict(response_mask=ANSWER.float()),
            TypeError,
            "response_mask must be a bool tensor (B, T) True in every row, got a",
        ),
        (
            dict(response_mask=ONE_ROW),
            ValueError,
            "response_mask must be a bool tensor (B, T) True in every row, got no",
        ),
        (dict(beta=-0.1), ValueError, "beta must be a finite number >= 0, got -0.1"),
        (dict(beta=INF), ValueError, "beta must be a finite number >= 0, got inf"),
    ],
    gae.gae: [
        (dict(rewards=BROKEN), ValueError, "rewards must be a float tensor (B, T)"),
        (dict(values=WIDE), ValueError, "values must be a float tensor (B, T) finite"),
        (dict(response_mask=HOLES), ValueError, "response_mask must be a bool tensor"),
        (
            dict(response_mask=ONE_ROW),
            ValueError,
            "response_mask must be a bool tensor (B, T) one run of True in every",
        ),
        (
            dict(response_mask=ANSWER.float()),
            TypeError,
            "response_mask must be a bool tensor (B, T) one run of True in every",
        ),
        (dict(gamma=1.1), ValueError, "gamma must be a number in [0, 1], got 1.1"),
        (dict(lam=-0.5), ValueError, "lam must be a number in [0, 1], got -0.5"),
        (dict(values=GRID.tolist()), TypeError, "values must be a float tensor (B, T)"),
    ],
    whiten.masked_mean: [
        (dict(mask=NONE), ValueError, "mask must be a bool tensor (...) True"),
        (dict(mask=ANSWER.float()), TypeError, "mask must be a bool tensor (...) True"),
        (dict(values=BROKEN), ValueError, "values must be a float tensor (...) finite"),
        (dict(mask=ANSWER[:, :2]), ValueError, "mask must be a bool tensor (...) True"),
    ],
    whiten.logit: [
        (dict(p=B2 + 1), ValueError, "p must be a float tensor (...) in [0, 1], got"),
        (dict(p=B2 * NAN), ValueError, "p must be a float tensor (...) in [0, 1], got"),
        (dict(p=0.5), TypeError, "p must be a float tensor (...) in [0, 1], got 0.5"),
    ],
    whiten.whiten: [
        (dict(values=B2[:1]), ValueError, "values must be a float tensor (...) finite"),
        (dict(values=[0.25, 0.5]), TypeError, "values must be a float tensor (...)"),
        (dict(values=BROKEN), ValueError, "values must be a float tensor (...) finite"),
        (dict(mask=ANSWER.long()), TypeError, "mask must be None or a bool tensor"),
        (dict(shift_mean=None), TypeError, "shift_mean must be True or False, got"),
    ],
    reward_selection.select_reward: [
        (dict(safety=COLUMN), ValueError, "safety must be a float tensor (B,) in [0,"),
        (dict(helpfulness=B2 * 4), ValueError, "helpfulness must be a float tensor"),
        (dict(is_safety_prompt=B2), TypeError, "is_safety_prompt must be a bool"),
        (
            dict(is_safety_prompt=[True, False]),
            TypeError,
            "is_safety_prompt must be a bool tensor (B,), got a list",
        ),
        (dict(threshold=15), ValueError, "threshold must be a number in [0, 1], got"),
        (dict(safety=B2 * NAN), ValueError, "safety must be a float tensor (B,) in"),
    ],
    best_of_n.best_of_n_bound: [
        (dict(n=2.5), TypeError, "n must be an int >= 1, got 2.5"),
        (dict(n=0), ValueError, "n must be an int >= 1, got 0"),
    ],
    best_of_n.best_of_n_policy: [
        (
            dict(scores=torch.tensor([0.0, 1.0, NAN])),
            ValueError,
            "scores must be a finite float tensor (N,), got nan at [2]",
        ),
        (dict(logp=LOGP * NAN), ValueError, "logp must be a float tensor (N,) no NaN,"),
        (dict(logp=LOGP - INF), ValueError, "logp must be log-probabilities, got a"),
        (dict(scores=LOGP[:2]), ValueError, "scores must be a finite float tensor"),
        (dict(n=2.5), TypeError, "n must be an int >= 1, got 2.5"),
    ],
    best_of_n.best_of_n_mean: [
        (dict(scores=BROKEN), ValueError, "scores must be a finite float tensor (B,"),
        (dict(gold=GRID[:1]), ValueError, "gold must be a finite tensor (B, M), got"),
        (dict(n=4), ValueError, "n must be in 1..3, the answers to a prompt, got 4"),
    ],
    best_of_n.chosen_chance: [
        (dict(utilities=COLUMN), ValueError, "utilities must be a finite float tenso"),
        (dict(others=B2 * NAN), ValueError, "others must be a finite float tensor (M"),
        (dict(n=1), ValueError, "n must be an int >= 2, got 1"),
        (dict(temperature=0.0), ValueError, "temperature must be a number in (0, inf)"),
    ],
    grpo.grouped: [
        (dict(group_size=3), ValueError, "scores must be whole groups of group_size"),
        (dict(group_size=1), ValueError, "group_size must be an int >= 2, got 1"),
        (dict(scores=B2 * NAN), ValueError, "scores must be a finite float tensor (B"),
        (dict(scores=COLUMN), ValueError, "scores must be a finite float tensor (B,)"),
    ],
    grpo.group_advantages: [
        (dict(group_size=1), ValueError, "group_size must be an int >= 2, got 1"),
        (dict(scores=B2 * NAN), ValueError, "scores must be a finite float tensor (B"),
        (dict(scores=[0.5, 1.0]), TypeError, "scores must be a finite float tensor (B"),
        (dict(baseline="mean"), ValueError, 'baseline must be "group" or "others", g'),
        (dict(scale=None), TypeError, 'scale must be "std" or "none", got None'),
    ],
    grpo.live_groups: [
        (dict(scores=B2 - INF), ValueError, "scores must be a finite float tensor (B"),
        (dict(tolerance=-1.0), ValueError, "tolerance must be a finite number >= 0,"),
        (dict(group_size=2.0), TypeError, "group_size must be an int >= 2, got 2.0"),
    ],
    grpo.token_weights: [
        (dict(response_mask=ONE_ROW), ValueError, "response_mask must be a bool tens"),
        (dict(average="token"), ValueError, 'average must be "answer" or "batch" or'),
        (dict(average="constant"), ValueError, "length must be given if and only if"),
        (dict(length=3), ValueError, "length must be given if and only if average"),
        (
            dict(average="constant", length=0),
            ValueError,
            "length must be an int >= 1 or None, got 0",
        ),
    ],
    grpo.log_ratios: [
        (dict(logprobs=BROKEN), ValueError, "logprobs must be a float tensor (B, T)"),
        (dict(old_logprobs=GRID[:1]), ValueError, "old_logprobs must be a float tens"),
        (dict(response_mask=ONE_ROW), ValueError, "response_mask must be a bool tens"),
        (dict(ratio="answer"), ValueError, 'ratio must be "token" or "sequence", got'),
    ],
    grpo.grpo_loss: [
        (dict(advantages=GRID), ValueError, "advantages must be a finite float tenso"),
        (dict(advantages=B2 * NAN), ValueError, "advantages must be a finite float t"),
        (dict(old_logprobs=BROKEN), ValueError, "old_logprobs must be a float tensor"),
        (dict(clip_eps=0.0), ValueError, "clip_eps must be a number > 0, got 0.0"),
        (dict(response_mask=ONE_ROW), ValueError, "response_mask must be a bool tens"),
    ],
    grpo.kl_loss: [
        (dict(ref_logprobs=BROKEN), ValueError, "ref_logprobs must be a float tensor"),
        (dict(ref_logprobs=GRID[:1]), ValueError, "ref_logprobs must be a float tens"),
        (dict(response_mask=NONE), ValueError, "response_mask must be a bool tensor"),
        (dict(average="mean"), ValueError, 'average must be "answer" or "batch" or "'),
    ],
    grpo.GRPOSettings: [
        (dict(group_size=1), ValueError, "group_size must be an int >= 2, got 1"),
        (dict(batch_size=12), ValueError, "batch_size must be an int a multiple of gr"),
        (dict(minibatches=65), ValueError, "minibatches must be an int at most batch_"),
        (dict(iterations=0), ValueError, "iterations must be an int >= 1, got 0"),
        (dict(beta=-0.1), ValueError, "beta must be a finite number >= 0, got -0.1"),
        (dict(lr=INF), ValueError, "lr must be a finite number >= 0, got inf"),
        (dict(kl="k3"), ValueError, 'kl must be "loss" or "reward", got'),
        (dict(threshold=2.0), ValueError, "threshold must be a number in [0, 1], got"),
        (dict(drop_dead=1), TypeError, "drop_dead must be True or False, got 1"),
    ],
    grpo.Groups: [
        (dict(scores=COLUMN), ValueError, "scores must be a float tensor (B,), got s"),
        (dict(rewards=B2.long()), TypeError, "rewards must be a float tensor (B,), g"),
        (dict(ids=IDS[0]), ValueError, "ids must be an int64 tensor (B, T), got shap"),
    ],
    grpo.Groups.rows: [
        (dict(index=0), TypeError, "index must be a tensor (N,), got 0"),
        (dict(index=torch.tensor([[0]])), ValueError, "index must be a tensor (N,), g"),
    ],
    grpo.collect_groups: [
        (dict(judges=JUDGE), TypeError, "judges must be Judges or have their method"),
        (dict(is_safety=LABELS), ValueError, "is_safety must be a bool tensor (N,),"),
        (dict(prompt_ids=[[]]), ValueError, "prompt_ids must be lists of ids (N,), n"),
        (dict(prompt_ids=[[1, 999]]), IndexError, "prompt_ids must be lists of ids ("),
        (dict(settings=SHORT_PPO), TypeError, "settings must be a GRPOSettings, got"),
    ],
    grpo.grpo_step: [
        (dict(groups=EXPERIENCE), TypeError, "groups must be a Groups, got a Experie"),
        (dict(settings=SHORT_PPO), TypeError, "settings must be a GRPOSettings, got"),
        (dict(generator=0), TypeError, "generator must be a Generator, got 0"),
    ],
    grpo.group_summary: [
        (dict(groups=EXPERIENCE), TypeError, "groups must be a Groups, got a Experie"),
        (dict(group_size=1), ValueError, "group_size must be an int >= 2, got 1"),
    ],
    grpo.train_grpo: [
        (dict(ref_policy=LEARNER, policy=LEARNER), ValueError, "ref_policy must be a"),
        (dict(judges=JUDGE), TypeError, "judges must be Judges or have their method"),
        (dict(prompts=[]), ValueError, "prompts must be a list of list (N,), got 0"),
        (dict(settings=SHORT_PPO), TypeError, "settings must be a GRPOSettings, got"),
        (dict(policy=BODY), ValueError, "the model must have an lm_head, got a body"),
        (
            dict(settings=dataclasses.replace(SHORT_GRPO, batch_size=8)),
            ValueError,
            "prompts must be at least settings.batch_size / group_size = 4, got 2",
        ),
    ],
    off_policy.importance_weights: [
        (dict(logprobs=BROKEN), ValueError, "logprobs must be a float tensor (B, T)"),
        (
            dict(sampler_logprobs=GRID - INF),
            ValueError,
            "sampler_logprobs must be a float tensor (B, T) finite where resp",
        ),
        (dict(sampler_logprobs=COLUMN), ValueError, "sampler_logprobs must be a float"),
        (
            dict(response_mask=ONE_ROW),
            ValueError,
            "response_mask must be a bool tensor (B, T) True in every row, got no",
        ),
        (dict(response_mask=GRID), TypeError, "response_mask must be a bool tensor"),
        (
            dict(level="sequence"),
            ValueError,
            'level must be "answer" or "token", got \'sequence\'',
        ),
        (dict(level=None), TypeError, 'level must be "answer" or "token", got None'),
        (dict(cap=0.0), ValueError, "cap must be a number > 0, got 0.0"),
        (dict(cap=NAN), ValueError, "cap must be a number > 0, got nan"),
        (dict(cap=None), TypeError, "cap must be a number > 0, got None"),
        (
            dict(above="mask"),
            ValueError,
            'above must be "truncate" or "drop", got \'mask\'',
        ),
    ],
    off_policy.effective_sample_size: [
        (
            dict(weights=-B2),
            ValueError,
            "weights must be a finite float tensor (N,) >=",
        ),
        (dict(weights=B2 * INF), ValueError, "weights must be a finite float tensor"),
        (
            dict(weights=B2 * 0),
            ValueError,
            "weights must be more than 0 somewhere, got",
        ),
        (
            dict(weights=COLUMN),
            ValueError,
            "weights must be a finite float tensor (N,)",
        ),
        (dict(weights=[1.0]), TypeError, "weights must be a finite float tensor (N,)"),
    ],
    off_policy.sampling_logprobs: [
        (
            dict(logits=BROKEN),
            ValueError,
            "logits must be a finite float tensor (B, V)",
        ),
        (dict(logits=B2), ValueError, "logits must be a finite float tensor (B, V),"),
        (dict(temperature=0), ValueError, "temperature must be a number in (0, inf),"),
        (dict(temperature=INF), ValueError, "temperature must be a number in (0, inf)"),
        (dict(top_p=0.0), ValueError, "top_p must be a number in (0, 1], got 0.0"),
        (dict(top_p=1.5), ValueError, "top_p must be a number in (0, 1], got 1.5"),
    ],
    off_policy.squared_error: [
        (dict(gradients=BROKEN), ValueError, "gradients must be a finite float tensor"),
        (dict(chances=B2 * 4), ValueError, "chances must be a float tensor (N,) in [0"),
        (dict(chances=B2[:1]), ValueError, "chances must be a float tensor (N,) in [0"),
        (dict(truth=torch.zeros(3)), ValueError, "truth must be a finite float tensor"),
        (dict(n=0), ValueError, "n must be an int >= 1, got 0"),
        (dict(n=2.5), TypeError, "n must be an int >= 1, got 2.5"),
    ],
    policy_gradient.reinforce_loss: [
        (dict(logprobs=BROKEN), ValueError, "logprobs must be a float tensor (B, T)"),
        (dict(advantages=WIDE), ValueError, "advantages must be a float tensor (B, T)"),
        (dict(advantages=COLUMN), ValueError, "advantages must be a float tensor (B,"),
        (dict(advantages=GRID.long()), TypeError, "advantages must be a float tensor"),
        (
            dict(response_mask=ONE_ROW),
            ValueError,
            "response_mask must be a bool tensor (B, T) True in every row, got no",
        ),
    ],
    policy_gradient.leave_one_out: [
        (dict(scores=COLUMN), ValueError, "scores must have K >= 2 answers, got 1"),
        (dict(scores=B2 * NAN), ValueError, "scores must be a finite float tensor"),
        (dict(scores=B2.long()), TypeError, "scores must be a finite float tensor"),
    ],
    policy_gradient.rewards_to_go: [
        (dict(rewards=BROKEN), ValueError, "rewards must be a float tensor (B, T)"),
        (dict(response_mask=ANSWER.float()), TypeError, "response_mask must be a bool"),
        (dict(response_mask=ONE_ROW), ValueError, "response_mask must be a bool"),
        (dict(response_mask=ANSWER[:, :2]), ValueError, "response_mask must be a bool"),
    ],
    policy_gradient.token_states: [
        (dict(responses=IDS), TypeError, "responses must be a Responses, got a tensor"),
    ],
    policy_gradient.table_logprobs: [
        (dict(table=TABLE * NAN), ValueError, "table must be a finite float tensor"),
        (dict(table=TABLE[0]), ValueError, "table must be a finite float tensor (S, V"),
        (dict(states=STATES + 9), IndexError, "states must be an int64 tensor (N, T)"),
        (dict(states=STATES.float()), TypeError, "states must be an int64 tensor (N,"),
        (dict(responses=None), TypeError, "responses must be a Responses, got None"),
    ],
    policy_gradient.answer_gradients: [
        (dict(table=TABLE + INF), ValueError, "table must be a finite float tensor"),
        (dict(states=STATES - 1), IndexError, "states must be an int64 tensor (N, T)"),
        (dict(advantages=PRAISE[:, :2]), ValueError, "advantages must be a float"),
        (dict(responses=IDS), TypeError, "responses must be a Responses, got a tensor"),
    ],
    policy_gradient.gradient_variance: [
        (dict(gradients=WIDE + INF), ValueError, "gradients must be a finite float"),
        (dict(chances=LOGP), ValueError, "chances must be a float tensor (N,) in"),
        (dict(chances=B2 * 4), ValueError, "chances must be a float tensor (N,) in"),
        (dict(gradients=B2), ValueError, "gradients must be a finite float tensor (N,"),
    ],
    dpo.implicit_reward: [
        (dict(logprobs=B2 * NAN), ValueError, "logprobs must be a finite float tensor"),
        (dict(ref_logprobs=GRID), ValueError, "ref_logprobs must be a finite float"),
        (dict(beta=0.0), ValueError, "beta must be a finite number > 0, got 0"),
    ],
    dpo.dpo_loss: [
        (dict(chosen_logprobs=GRID), ValueError, "chosen_logprobs must be a finite"),
        (dict(rejected_logprobs=B2[:1]), ValueError, "rejected_logprobs must be a"),
        (dict(ref_chosen_logprobs=B2 * NAN), ValueError, "ref_chosen_logprobs must be"),
        (dict(ref_rejected_logprobs=IDS), TypeError, "ref_rejected_logprobs must be a"),
        (dict(beta=-0.1), ValueError, "beta must be a finite number > 0, got -0.1"),
        (dict(reduction="max"), ValueError, 'reduction must be "mean" or "sum" or'),
    ],
    dpo.ipo_loss: [
        (
            dict(chosen_logprobs=B2 * NAN),
            ValueError,
            "chosen_logprobs must be a finite",
        ),
        (dict(ref_rejected_logprobs=GRID), ValueError, "ref_rejected_logprobs must be"),
        (dict(tau=0.0), ValueError, "tau must be a finite number > 0, got 0"),
    ],
    dpo.kto_loss: [
        (dict(desirable=B2), TypeError, "desirable must be a bool tensor (B,), got a"),
        (
            dict(desirable=LABELS[:1]),
            ValueError,
            "desirable must be a bool tensor (B,)",
        ),
        (dict(reference_kl=torch.tensor(-1.0)), ValueError, "reference_kl must be a"),
        (dict(reference_kl=B2), ValueError, "reference_kl must be a finite float"),
        (dict(beta=0), ValueError, "beta must be a finite number > 0, got 0"),
        (dict(desirable_weight=-1.0), ValueError, "desirable_weight must be a finite"),
        (dict(undesirable_weight=NAN), ValueError, "undesirable_weight must be a"),
    ],
    dpo.mismatched_kl: [
        (dict(logprobs=B2 * NAN), ValueError, "logprobs must be a finite float tensor"),
        (dict(ref_logprobs=GRID), ValueError, "ref_logprobs must be a finite float"),
    ],
    dpo.answer_logprobs: [
        (dict(model=JUDGE), TypeError, "model must be a Llama, got a RewardModel"),
        (dict(model=BODY), ValueError, "the model must have an lm_head"),
        (dict(examples=[PAIR]), TypeError, "examples must be a list of Example"),
        (dict(examples=[]), ValueError, "examples must be a list of Example"),
    ],
    dpo.pair_logprobs: [
        (dict(policy=JUDGE), TypeError, "policy must be a Llama, got a RewardModel"),
        (dict(ref_policy=None), TypeError, "ref_policy must be a Llama, got None"),
        (dict(pairs=[EXAMPLE]), TypeError, "pairs must be a list of PairExample"),
    ],
    dpo.mismatched: [
        (dict(examples=[PAIR]), TypeError, "examples must be a list of Example"),
    ],
    dpo.DirectSettings: [
        (dict(loss="kto"), ValueError, 'loss must be "dpo" or "ipo"'),
        (dict(epochs=0), ValueError, "epochs must be an int >= 1, got 0"),
        (dict(lr=NAN), ValueError, "lr must be a finite number >= 0, got nan"),
        (dict(beta=0.0), ValueError, "beta must be a finite number > 0, got 0"),
    ],
    dpo.train_on_pairs: [
        (
            dict(groups=[[PAIR]]),
            ValueError,
            "there must be at least settings.batch_size = 2 groups or answers, got 1",
        ),
        (dict(groups=[[PAIR], []]), ValueError, "groups must be lists of PairExample"),
        (
            dict(groups=[[replace(PAIR, rejected=PAIR.chosen)]] * 2),
            ValueError,
            "groups must hold pairs of different sides, got a pair",
        ),
        (dict(policy=MODEL), ValueError, "ref_policy must be a copy of policy, got"),
        (dict(settings=ONE_EPOCH), TypeError, "settings must be a DirectSettings, got"),
    ],
    dpo.train_on_labels: [
        (dict(desirable=B2), TypeError, "desirable must be a bool tensor (N,), got a"),
        (
            dict(desirable=LABELS[:1]),
            ValueError,
            "desirable must be a bool tensor (N,)",
        ),
        (dict(policy=MODEL), ValueError, "ref_policy must be a copy of policy, got"),
        (
            dict(settings=dpo.DirectSettings(batch_size=1)),
            ValueError,
            "settings.batch_size must be at least 2, since the reference point needs",
        ),
    ],
    process_reward.step_labels: [
        (dict(prompt=UNSAFE), ValueError, "prompt must be an ordinary one, got 'stea"),
        (dict(prompt="How?"), TypeError, "prompt must be a Prompt, got 'How?'"),
        (dict(text=3), TypeError, "text must be a string, got 3"),
        (dict(ended=1), TypeError, "ended must be True or False, got 1"),
    ],
    process_reward.separators: [
        (dict(tokenizer=MODEL), TypeError, "tokenizer must be a Tokenizer, got a Llam"),
    ],
    process_reward.step_ends: [
        (dict(ids=GRID), TypeError, "ids must be an int64 tensor (B, T) below V"),
        (dict(response_mask=GRID), TypeError, "response_mask must be a bool tensor"),
        (dict(response_mask=ANSWER[:1]), ValueError, "response_mask must be a bool"),
        (dict(separators=GRID[0]), TypeError, "separators must be a bool tensor (V,)"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below V,"),
    ],
    process_reward.step_targets: [
        (dict(labels=[]), ValueError, "labels must be a list of flag (N,), got 0"),
        (dict(labels=[0.5]), TypeError, "labels must be a list of flag (N,), got a "),
        (dict(kind="final"), ValueError, 'kind must be "process" or "outcome", got'),
    ],
    process_reward.StepExample: [
        (dict(ids="text"), TypeError, "ids must be a list (T,), got 'text'"),
        (dict(start=0), ValueError, "start must be an int >= 1, got 0"),
        (dict(targets=[1.0]), TypeError, "targets must be a float tensor (N,), got"),
    ],
    process_reward.step_example: [
        (dict(tokenizer=None), TypeError, "tokenizer must be a Tokenizer, got None"),
        (dict(prompt="How?"), TypeError, "prompt must be a Prompt, got 'How?'"),
        (dict(text=None), TypeError, "text must be a string, got None"),
        (dict(targets=B2), ValueError, "targets must be one for each of the 3 steps"),
        (dict(targets=[1.0]), TypeError, "targets must be a float tensor (N,), got"),
    ],
    process_reward.head_scores: [
        (dict(reward_model=MODEL), TypeError, "reward_model must be a RewardModel, go"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below rew"),
        (dict(at=ANSWER[:1]), ValueError, "at must be a bool tensor (B, T), got shape"),
        (dict(mask=GRID), TypeError, "mask must be a bool tensor (B, T), got"),
    ],
    process_reward.yes_no_scores: [
        (dict(llama=JUDGE), TypeError, "llama must be a Llama, got a RewardModel"),
        (dict(llama=BODY), ValueError, "the model must have an lm_head, got a body"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below lla"),
        (dict(yes_id=999), IndexError, "yes_id must be an int"),
        (dict(no_id=-1), ValueError, "no_id must be an int >= 0"),
        (dict(at=GRID), TypeError, "at must be a bool tensor (B, T), got"),
    ],
    process_reward.step_loss: [
        (dict(targets=B2 * NAN), ValueError, "targets must have a label somewhere, go"),
        (
            dict(targets=B2 * 9),
            ValueError,
            "targets must be in [0, 1] or NaN, got 2.25",
        ),
        (dict(targets=COLUMN), ValueError, "targets must be a float tensor (N,), got"),
        (dict(targets=LABELS), TypeError, "targets must be a float tensor (N,), got"),
        (dict(scores=B2 * NAN), ValueError, "scores must be a finite float tensor (N"),
    ],
    process_reward.train_step_model: [
        (dict(model=None), TypeError, "model must be a Module, got None"),
        (dict(scores_at=None), TypeError, "scores_at must be a function, got None"),
        (dict(examples=[STEPS]), ValueError, "examples must be at least settings.batc"),
        (dict(examples=[EXAMPLE] * 2), TypeError, "examples must be a list of StepExa"),
        (dict(separators=B2), TypeError, "separators must be a bool tensor (V,), got"),
        (
            dict(settings=SETTINGS),
            TypeError,
            "settings must be a LMSettings, got a Set",
        ),
        (dict(generator=None), TypeError, "generator must be a Generator, got None"),
    ],
    process_reward.score_steps: [
        (dict(model=None), TypeError, "model must be a Module, got None"),
        (dict(texts=[]), ValueError, "texts must be a list (N,), got"),
        (dict(scores_at=3), TypeError, "scores_at must be a function, got 3"),
        (dict(batch_size=0), ValueError, "batch_size must be an int >= 1, got 0"),
        (dict(separators=B2), TypeError, "separators must be a bool tensor (V,), got"),
    ],
    process_reward.answer_scores: [
        (dict(scores=[]), ValueError, "scores must be a list of tensor (N,), got"),
        (dict(scores=[0.5]), TypeError, "scores must be a list of tensor (N,), got"),
        (dict(how="mean"), ValueError, 'how must be "product" or "min" or "last", got'),
    ],
    process_reward.next_steps: [
        (dict(policy=JUDGE), TypeError, "policy must be a Llama, got a RewardModel"),
        (dict(policy=BODY), ValueError, "the model must have an lm_head, got a body"),
        (dict(texts=[[]]), ValueError, "texts must be lists of ids, none empty, below"),
        (dict(texts=[[999]]), IndexError, "texts must be lists of ids, none empty, be"),
        (dict(samples=0), ValueError, "samples must be an int >= 1, got 0"),
        (dict(separators=B2), TypeError, "separators must be a bool tensor (V,), got"),
        (dict(max_new_tokens=0), ValueError, "max_new_tokens must be an int >= 1, got"),
        (dict(max_new_tokens=999), ValueError, "texts and max_new_tokens must fit in"),
        (dict(temperature=0.0), ValueError, "temperature must be a finite number > 0"),
        (dict(generator=3), TypeError, "generator must be a Generator, got 3"),
    ],
    process_reward.step_judge: [
        (dict(model=None), TypeError, "model must be a Module, got None"),
        (dict(scores_at=3), TypeError, "scores_at must be a function, got 3"),
        (dict(separators=B2), TypeError, "separators must be a bool tensor (V,), got"),
        (dict(how="sum"), ValueError, 'how must be "product" or "min" or "last", got'),
    ],
    process_reward.step_search: [
        (dict(policy=JUDGE), TypeError, "policy must be a Llama, got a RewardModel"),
        (dict(prompts=[]), ValueError, "prompts must be lists of ids, none empty, bel"),
        (dict(judge=None), TypeError, "judge must be a function, got None"),
        (dict(samples=0), ValueError, "samples must be an int >= 1, got 0"),
        (dict(width=0), ValueError, "width must be an int >= 1, got 0"),
        (dict(max_steps=0), ValueError, "max_steps must be an int >= 1, got 0"),
        (dict(temperature=0.0), ValueError, "temperature must be a finite number > 0"),
        (
            dict(judge=lambda texts: [NAN] * len(texts)),
            ValueError,
            "judge must give a number for each text, got nan",
        ),
        (
            dict(judge=lambda texts: [0.0]),
            ValueError,
            "judge must give one score a text, got 1 for",
        ),
    ],
    process_reward.right_futures: [
        (dict(request="fly"), ValueError, "request must be one of TASKS, got 'fly'"),
        (dict(request=3), TypeError, "request must be a string, got 3"),
        (dict(part=3), TypeError, "part must be a string or a tuple or a OneOf, got 3"),
        (dict(part="Go. Fly."), ValueError, "part must have one sentence in each"),
    ],
    process_reward.search_chance: [
        (dict(futures=[]), TypeError, "futures must be a dict, got a list"),
        (dict(samples=0), ValueError, "samples must be an int >= 1, got 0"),
        (dict(by="gold"), ValueError, 'by must be "labels" or "futures", got'),
    ],
    preference_loss.bradley_terry_loss: [
        (dict(rejected_scores=COLUMN), ValueError, "rejected_scores must be a finite"),
        (dict(margin=-1.0), ValueError, "margin must be None or a finite number >= 0"),
        (dict(margin=COLUMN), ValueError, "margin must be None or a finite number >="),
        (dict(chosen_scores=B2 * NAN), ValueError, "chosen_scores must be a finite"),
        (dict(chosen_scores=B2.long()), TypeError, "chosen_scores must be a finite"),
        (dict(reduction="avg"), ValueError, 'reduction must be "mean" or "sum" or'),
        (
            dict(chosen_scores=B2[:0], rejected_scores=B2[:0]),
            ValueError,
            "chosen_scores must be a finite float tensor (B,), got shape (0,)",
        ),
    ],
    preference_loss.safety_label_loss: [
        (dict(labels=IDS[:, 0]), TypeError, "labels must be a bool tensor (B,) or a"),
        (dict(labels=B2 * 4), ValueError, "labels must be a bool tensor (B,) or a"),
        (dict(labels=[True, False]), TypeError, "labels must be a bool tensor (B,) or"),
    ],
    preference_loss.centring_loss: [
        (dict(chosen_scores=COLUMN), ValueError, "chosen_scores must be a finite"),
    ],
    preference_loss.RewardSettings: [
        (dict(epochs=0), ValueError, "epochs must be an int >= 1, got 0"),
        (dict(batch_size=-1), ValueError, "batch_size must be an int >= 1, got -1"),
        (dict(label_weight=-0.5), ValueError, "label_weight must be a finite number"),
        (dict(centre_weight=NAN), ValueError, "centre_weight must be a finite number"),
        (dict(lr=INF), ValueError, "lr must be a finite number >= 0, got inf"),
    ],
    preference_loss.pair_scores: [
        (dict(pairs=[]), ValueError, "pairs must be a list of PairExample (B,), got 0"),
        (dict(pairs=[PREFERENCE]), TypeError, "pairs must be a list of PairExample"),
        (dict(reward_model=scored), TypeError, "reward_model must be a Module, got a"),
    ],
    preference_loss.pair_loss: [
        (dict(pairs=[PAIR]), ValueError, "pairs must be a list of PairExample (B,),"),
        (dict(label_weight=-1.0), ValueError, "label_weight must be a finite number"),
    ],
    preference_loss.chosen_lm_loss: [
        (dict(reward_model=JUDGE), ValueError, "reward_model must be made with"),
        (dict(pairs=[]), ValueError, "pairs must be a list of PairExample (B,), got 0"),
    ],
    preference_loss.train_reward_model: [
        (
            dict(groups=[[PAIR]]),
            ValueError,
            "groups must be at least settings.batch_size = 2, got 1",
        ),
        (dict(groups=[[PAIR], []]), ValueError, "groups must be lists of PairExample"),
        (dict(groups=[PAIR, PAIR]), TypeError, "groups must be lists of PairExample"),
        (dict(settings=FEW_STEPS), TypeError, "settings must be a RewardSettings, got"),
        (dict(reward_model=scored), TypeError, "reward_model must be a Module, got a"),
        (
            dict(settings=preference_loss.RewardSettings(batch_size=2, lm_weight=0.1)),
            ValueError,
            "reward_model must be made with keep_lm_head=True for an lm_weight",
        ),
    ],
    reward_model.copy_body: [
        (dict(llama=JUDGE), TypeError, "llama must be a Llama, got a RewardModel"),
        (dict(keep_lm_head="yes"), TypeError, "keep_lm_head must be True or False,"),
    ],
    reward_model.last_token: [
        (dict(mask=ONE_ROW), ValueError, "mask must be a bool tensor (B, T) True in"),
        (dict(mask=GRID), TypeError, "mask must be a bool tensor (B, T) True in every"),
    ],
    reward_model.pool_mean: [
        (dict(hidden=GRID), ValueError, "hidden must be a float tensor (B, T, D), got"),
        (dict(mask=NONE), ValueError, "mask must be a bool tensor (B, T) True in"),
    ],
    reward_model.RewardModel: [
        (dict(llama=CONFIG), TypeError, "llama must be a Llama, got a LlamaConfig"),
        (dict(pooling="max"), ValueError, 'pooling must be "last" or "mean", got'),
        (dict(keep_lm_head=1), TypeError, "keep_lm_head must be True or False, got 1"),
    ],
    reward_model.RewardModel.raw_scores: [
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(ids=IDS.float()), TypeError, "ids must be an int64 tensor (B, T) below"),
    ],
    reward_model.RewardModel.forward: [
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(mask=HOLES), ValueError, "mask must be None or a bool tensor (B, T) one"),
        (dict(mask=ONE_ROW), ValueError, "mask must be None or a bool tensor (B, T)"),
    ],
    reward_model.RewardModel.set_normalisation: [
        (dict(std=0.0), ValueError, "std must be a finite number > 0, got 0.0"),
        (dict(mean=NAN), ValueError, "mean must be a finite number, got nan"),
    ],
    reward_model.ValueModel: [
        (dict(reward_model=MODEL), TypeError, "reward_model must be a RewardModel,"),
    ],
    reward_model.ValueModel.forward: [
        (dict(mask=HOLES), ValueError, "mask must be None or a bool tensor (B, T) one"),
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
    ],
    reward_model.response_values: [
        (dict(value_model=JUDGE), TypeError, "value_model must be a ValueModel, got a"),
        (
            dict(response_mask=ANSWER[:, :2]),
            ValueError,
            "response_mask must be a bool tensor (B, T), got shape (2, 2), with T =",
        ),
    ],
    reward_model.score_texts: [
        (dict(texts=[TEXT]), TypeError, "texts must be lists of ids none empty, got a"),
        (dict(texts=IDS), TypeError, "texts must be lists of ids none empty, got a"),
        (dict(texts=[]), ValueError, "texts must be lists of ids none empty, got an"),
        (dict(texts=[[1, 999]]), IndexError, "RewardModel: ids must be an int64"),
        (dict(batch_size=-1), ValueError, "batch_size must be an int >= 1, got -1"),
        (dict(reward_model=MODEL), ValueError, "reward_model must give one score a"),
    ],
    reward_model.score_normalisation: [
        (dict(scores=B2[:1]), ValueError, "scores must be at least 2 different ones"),
        (dict(scores=B2 * NAN), ValueError, "scores must be a finite float tensor"),
        (dict(scores=torch.ones(3)), ValueError, "scores must be at least 2 different"),
    ],
    ppo.policy_loss: [
        (
            dict(response_mask=ANSWER.float()),
            TypeError,
            "response_mask must be a bool tensor (B, T), True somewhere, got a",
        ),
        (dict(response_mask=NONE), ValueError, "response_mask must be a bool tensor"),
        (
            dict(old_logprobs=GRID[:1]),
            ValueError,
            "old_logprobs must be a float tensor (B, T), finite where",
        ),
        (dict(advantages=B2), ValueError, "advantages must be a float tensor (B, T),"),
        (dict(advantages=BROKEN), ValueError, "advantages must be a float tensor (B,"),
        (dict(logprobs=GRID - INF), ValueError, "logprobs must be a float tensor (B,"),
        (dict(clip_eps=0), ValueError, "clip_eps must be a number > 0, got 0"),
    ],
    ppo.value_loss: [
        (
            dict(response_mask=ANSWER.float()),
            TypeError,
            "response_mask must be a bool tensor (B, T), True somewhere, got a",
        ),
        (dict(returns=BROKEN), ValueError, "returns must be a float tensor (B, T),"),
        (dict(old_values=WIDE), ValueError, "old_values must be a float tensor (B,"),
    ],
    ppo.clip_fraction: [
        (
            dict(old_logprobs=GRID[:1]),
            ValueError,
            "old_logprobs must be a float tensor (B, T), finite where",
        ),
        (dict(logprobs=BROKEN), ValueError, "logprobs must be a float tensor (B, T),"),
    ],
    ppo.PPOSettings: [
        (dict(iterations=0), ValueError, "iterations must be an int >= 1, got 0"),
        (dict(epochs=0), ValueError, "epochs must be an int >= 1, got 0"),
        (dict(batch_size=1), ValueError, "batch_size must be an int >= 2, got 1"),
        (
            dict(batch_size=4, minibatches=5),
            ValueError,
            "minibatches must be an int at most batch_size, got 5, where batch_size",
        ),
        (dict(beta=-0.1), ValueError, "beta must be a finite number >= 0, got -0.1"),
        (dict(beta=INF), ValueError, "beta must be a finite number >= 0, got inf"),
        (dict(gamma=1.5), ValueError, "gamma must be a number in [0, 1], got 1.5"),
        (dict(lam="0.95"), TypeError, "lam must be a number in [0, 1], got '0.95'"),
        (dict(clip_eps=0.0), ValueError, "clip_eps must be a number > 0, got 0.0"),
        (dict(threshold=15), ValueError, "threshold must be a number in [0, 1], got"),
        (dict(policy_lr=-1e-4), ValueError, "policy_lr must be a finite number >= 0,"),
        (dict(value_lr=NAN), ValueError, "value_lr must be a finite number >= 0, got"),
        (dict(whiten_scores=1), TypeError, "whiten_scores must be True or False, got"),
        (dict(max_new_tokens=True), TypeError, "max_new_tokens must be an int >= 1,"),
    ],
    ppo.Judges: [
        (dict(safety=MODEL), TypeError, "safety must be a RewardModel, got a Llama"),
        (dict(helpfulness=TRAINING), ValueError, "helpfulness must be in eval mode,"),
    ],
    ppo.Judges.probabilities: [
        (dict(mask=None), TypeError, "mask must be a bool tensor (B, T) one run of"),
        (dict(ids=STRANGE), IndexError, "RewardModel: ids must be an int64 tensor (B,"),
        (dict(mask=ONE_ROW), ValueError, "mask must be a bool tensor (B, T) one run"),
    ],
    ppo.Experience: [
        (dict(scores=COLUMN), ValueError, "scores must be a float tensor (B,), got"),
        (dict(values=None), TypeError, "values must be a float tensor (B, T), got"),
    ],
    ppo.Experience.rows: [
        (dict(index=[0, 1]), TypeError, "index must be an int64 tensor (N,), got a"),
    ],
    ppo.collect_experience: [
        (dict(is_safety=[True, False]), TypeError, "is_safety must be a bool tensor"),
        (dict(is_safety=ALL[0]), ValueError, "is_safety must be a bool tensor (B,),"),
        (dict(judges=(JUDGE, JUDGE)), TypeError, "judges must be Judges or have their"),
        (dict(value_model=JUDGE), TypeError, "value_model must be a ValueModel, got a"),
        (dict(prompt_ids=ASKED), TypeError, "prompt_ids must be lists of ids (B,),"),
        (dict(settings=None), TypeError, "settings must be a PPOSettings, got None"),
    ],
    ppo.ppo_step: [
        (dict(experience=ROLLOUT), TypeError, "experience must be a Experience, got a"),
        (
            dict(settings=ppo.PPOSettings(minibatches=3)),
            ValueError,
            "experience must have at least settings.minibatches = 3 answers, got 2",
        ),
        (
            dict(policy_stepper=stepper(VALUE)),
            ValueError,
            "policy_stepper and value_stepper must be those of policy",
        ),
    ],
    ppo.summary: [
        (
            dict(experience=vars(EXPERIENCE)),
            TypeError,
            "experience must be a Experience, got a dict",
        ),
    ],
    ppo.train_ppo: [
        (dict(policy=OTHER), ValueError, "ref_policy must be a Llama other than"),
        (dict(ref_policy=VALUE), TypeError, "ref_policy must be a Llama other than"),
        (dict(value_model=JUDGE), TypeError, "value_model must be a ValueModel, got a"),
        (dict(judges=JUDGE), TypeError, "judges must be Judges or have their method"),
        (
            dict(prompts=ASKED[:1]),
            ValueError,
            "prompts must be at least settings.batch_size = 2, got 1",
        ),
        (dict(prompts=PROMPT_IDS), TypeError, "prompts must be pairs (ids, is_safety)"),
        (
            dict(prompts=[(TEXT, False)] * 2),
            TypeError,
            "prompts must be pairs (ids, is_safety) of at most max_seq_len -",
        ),
        (
            dict(prompts=[([1, 999], True)] * 2),
            IndexError,
            "prompts must be pairs (ids, is_safety) of at most max_seq_len -",
        ),
        (
            dict(prompts=[([1] * 240, True)] * 2),
            ValueError,
            "prompts must be pairs (ids, is_safety) of at most max_seq_len -",
        ),
        (
            dict(prompts=[([1, 4], 1)] * 2),
            TypeError,
            "prompts must be pairs (ids, is_safety) of at most max_seq_len -",
        ),
        (dict(judge_gold="gold"), TypeError, "judge_gold must be a function or None,"),
        (dict(settings=ONE_EPOCH), TypeError, "settings must be a PPOSettings, got a"),
        (
            dict(policy=copy.deepcopy(BODY)),
            ValueError,
            "the model must have an lm_head, got a body without one, as copy_body",
        ),
        (
            dict(
                value_model=reward_model.ValueModel(
                    reward_model.RewardModel(other_size(vocab_size=5))
                )
            ),
            IndexError,
            "ValueModel: ids must be an int64 tensor (B, T) below",
        ),
    ],
    exact.outcome_chances: [
        (
            dict(thresholds=[1.0, 0.5]),
            ValueError,
            "thresholds must be a list of number increasing, got [1.0, 0.5]",
        ),
        (dict(thresholds=[-0.5]), ValueError, "thresholds must be positive and"),
        (dict(difference=0.5), TypeError, "difference must be a finite float tensor"),
    ],
    exact.margin_slope: [
        (dict(margins=torch.zeros(3)), ValueError, "margins must be a finite float"),
        (dict(wins=-CHANCES), ValueError, "wins must be a finite tensor (N, K) >= 0,"),
    ],
    exact.margin_minimiser: [
        (dict(losses=CHANCES * 0), ValueError, "wins and losses must be more than 0"),
        (dict(wins=CHANCES[:, :1]), ValueError, "losses must be a finite tensor (N,"),
    ],
    exact.Responses: [
        (dict(mask=RESPONSES.ids), TypeError, "mask must be a bool tensor (N, T), got"),
    ],
    exact.enumerate_responses: [
        (
            dict(vocab_size=100, max_new_tokens=4),
            ValueError,
            "vocab_size ** max_new_tokens must be a million at most, got 100 ** 4",
        ),
        (dict(prompt_ids=[]), ValueError, "prompt_ids must be a list of ids (P,)"),
        (dict(prompt_ids=[1, 6]), IndexError, "prompt_ids must be a list of ids (P,)"),
    ],
    exact.small_policy: [
        (dict(spread=-1), ValueError, "spread must be a number in [0, inf), got -1"),
        (dict(spread=NAN), ValueError, "spread must be a number in [0, inf), got nan"),
    ],
    exact.rises: [
        (dict(ids=GRID), TypeError, "ids must be an int64 tensor (B, T), got a tensor"),
    ],
    exact.sequence_token_logprobs: [
        (dict(policy=JUDGE), TypeError, "policy must be a Llama, got a RewardModel"),
    ],
    exact.sequence_logprobs: [
        (dict(responses=ROLLOUT), TypeError, "responses must be a Responses, got a"),
        (dict(policy=BODY), ValueError, "Llama: the model must have an lm_head, got a"),
    ],
    exact.response_kl: [
        (dict(ref_logp=LOGP[:, None]), ValueError, "ref_logp must be a float tensor"),
        (dict(logp=LOGP * NAN), ValueError, "logp must be a float tensor (N,) no NaN,"),
    ],
    exact.objective: [
        (
            dict(scores=LOGP[:, None]),
            ValueError,
            "scores must be a finite float tensor (N,), got shape (3, 1)",
        ),
        (dict(beta=NAN), ValueError, "beta must be a number in [0, inf), got nan"),
    ],
    exact.optimal_policy: [
        (dict(beta=0), ValueError, "beta must be a number in (0, inf), got 0"),
        (dict(scores=LOGP[:1]), ValueError, "scores must be a finite float tensor"),
        (dict(beta=INF), ValueError, "beta must be a number in (0, inf), got inf"),
    ],
    exact.exact_gradient: [
        (
            dict(scalar=torch.tensor(0.5)),
            ValueError,
            "scalar must have a gradient, got a constant",
        ),
        (dict(scalar=0.5), TypeError, "scalar must be a finite float tensor (), got"),
        (dict(policy=None), TypeError, "policy must be a Module, got None"),
    ],
    exact.exact_values: [
        (dict(rewards=GRID), ValueError, "rewards must be a finite float tensor (N,"),
        (
            dict(rewards=torch.zeros(len(RESPONSES.ids), 9)),
            ValueError,
            "rewards must have the shape of responses, (31, 4), got (31, 9)",
        ),
        (dict(gamma=2), ValueError, "gamma must be a number in [0, 1], got 2"),
    ],
    audit.score_function: [
        (dict(tokenizer=None), TypeError, "tokenizer must be a Tokenizer, got None"),
        (dict(reward_model=scored), TypeError, "reward_model must be a Module, got a"),
    ],
    arena.fit_strengths: [
        (dict(wins=B2), ValueError, "wins must be a finite tensor (..., N, N) >= 0,"),
        (dict(wins=COLUMN), ValueError, "wins must be a finite tensor (..., N, N) >="),
        (dict(wins=-torch.ones(2, 2)), ValueError, "wins must be a finite tensor (..."),
        (dict(wins=torch.eye(2)), ValueError, "wins must lead from everyone to every"),
    ],
    arena.strength_errors: [
        (dict(wins=COLUMN), ValueError, "wins must be a finite tensor (..., N, N) >="),
        (dict(strengths=B2 * NAN), ValueError, "strengths must be a finite float tens"),
        (dict(strengths=COLUMN), ValueError, "strengths must be a finite float tensor"),
    ],
    audit.correlation: [
        (dict(x=torch.ones(2)), ValueError, "x and y must not be constant, got equal"),
        (dict(y=COLUMN), ValueError, "y must be a finite float tensor (N,), got shape"),
    ],
    audit.agreement: [
        (dict(differences=COLUMN), ValueError, "differences must be a float tensor"),
        (dict(differences=B2 * NAN), ValueError, "differences must be a float tensor"),
        (dict(exact=B2 * 4), ValueError, "exact must be a float tensor (N,) in [0,"),
    ],
    audit.length_only_accuracy: [
        (dict(longer_by=IDS[:, 0]), TypeError, "longer_by must be a float tensor (N,)"),
    ],
    audit.brier_score: [
        (dict(predicted=COLUMN), ValueError, "predicted must be a float tensor (N,)"),
        (dict(predicted=B2 * 4), ValueError, "predicted must be a float tensor (N,)"),
    ],
    audit.brier_floor: [
        (dict(exact=0.5), TypeError, "exact must be a float tensor (N,) in [0, 1],"),
    ],
    audit.length_buckets: [
        (dict(edges=[1.0, 0.0]), ValueError, "edges must be a list of number (E,)"),
        (dict(edges=[]), ValueError, "edges must be a list of number (E,) increasing,"),
    ],
    audit.spoiled_steps: [
        (dict(flaw="a typo"), ValueError, "prompt must be ordinary and flaw one of"),
    ],
    audit.flawed_answer: [
        (dict(prompt=UNSAFE), ValueError, "prompt must be ordinary and flaw one of"),
        (dict(flaw="a typo"), ValueError, "prompt must be ordinary and flaw one of"),
    ],
    audit.adversarial_pairs: [
        (dict(prompts=[UNSAFE]), ValueError, "prompts must be ordinary, got an unsafe"),
        (dict(prompts=[PROMPT.text]), TypeError, "prompts must be a list of Prompt"),
    ],
    audit.order_blind: [
        (dict(prompt="How?"), TypeError, "prompt must be a Prompt, got 'How?'"),
        (dict(text=3), TypeError, "text must be a string, got 3"),
    ],
    audit.topic_blind: [
        (dict(prompt="How?"), TypeError, "prompt must be a Prompt, got 'How?'"),
        (dict(text=None), TypeError, "text must be a string, got None"),
    ],
    audit.one_change: [
        (dict(prompt=UNSAFE), ValueError, "prompt must be ordinary and change one of"),
        (dict(change="a typo"), ValueError, "prompt must be ordinary and change one"),
        (dict(rng=0), TypeError, "rng must be a Random, got 0"),
    ],
    audit.changed_pairs: [
        (dict(prompts=[UNSAFE]), ValueError, "prompts must be ordinary, got an unsafe"),
        (dict(prompts=[]), ValueError, "prompts must be a list of Prompt (N,), got 0"),
    ],
    audit.price_list: [
        (dict(score=None), TypeError, "score must be a function, got None"),
        (dict(pairs=[]), ValueError, "pairs must be a list (N,), got 0 entries"),
        (
            dict(score=lambda dialogues: [0.0] * len(dialogues)),
            TypeError,
            "score must return a tensor (N,), got a list",
        ),
        (
            dict(score=lambda dialogues: scored(dialogues) * NAN),
            ValueError,
            "score must return (5,) finite scores, got",
        ),
    ],
    audit.accuracy_by_flaw: [
        (dict(score=JUDGE), TypeError, "RewardModel: ids must be an int64 tensor (B,"),
        (dict(score=None), TypeError, "score must be a function, got None"),
        (dict(pairs=[]), ValueError, "pairs must be a list (N,), got 0 entries"),
    ],
    audit.preferred_words: [
        (dict(differences=B2), ValueError, "differences must be a float tensor (N,)"),
        (dict(smallest=10), ValueError, "smallest must be a number in [0, 1], got 10"),
    ],
    audit.length_balanced: [
        (dict(length=3), TypeError, "length must be a function, got 3"),
        (dict(groups=[PREFERENCE]), TypeError, "groups must be lists of Preference,"),
    ],
    audit.roc_curve: [
        (dict(scores=COLUMN), ValueError, "scores must be a float tensor (N,) no NaN"),
        (dict(scores=B2 * NAN), ValueError, "scores must be a float tensor (N,) no"),
        (dict(labels=B2), TypeError, "labels must be a bool tensor (N,), got"),
        (dict(labels=B2 > 9), ValueError, "labels must be True and False, got 2 of"),
    ],
    audit.auc: [
        (dict(scores=B2 * NAN), ValueError, "scores must be a float tensor (N,) no"),
        (dict(labels=[True, False]), TypeError, "labels must be a bool tensor (N,)"),
    ],
    audit.alarm_level: [
        (dict(values=B2 * INF), ValueError, "values must be a finite float tensor"),
        (dict(generator=None), TypeError, "generator must be a Generator, got None"),
        (dict(batch=0), ValueError, "batch must be an int >= 1, got 0"),
        (dict(looks=0), ValueError, "looks must be an int >= 1, got 0"),
        (dict(rate=5), ValueError, "rate must be a number in (0, 1), got 5"),
    ],
    audit.audit: [
        (dict(preferences=[PREFERENCE]), ValueError, "preferences must be at least 2,"),
        (
            dict(preferences=[PREFERENCE] * 2),
            ValueError,
            "differences of score must be (2,), finite and not all equal, got",
        ),
        (dict(exact=B2[:1]), ValueError, "preferences must be at least 2, with as"),
        (dict(exact=COLUMN), ValueError, "exact must be a float tensor (N,) in [0, 1]"),
        (
            dict(score=lambda dialogues: [0.0] * len(dialogues)),
            TypeError,
            "score must return a tensor (N,), got a list",
        ),
        (
            dict(score=lambda dialogues: scored(dialogues) * NAN),
            ValueError,
            "differences of score must be (2,), finite and not all equal, got",
        ),
        (dict(buckets=0), ValueError, "buckets must be an int >= 1, got 0"),
    ],
    world.Prompt: [
        (dict(is_safety="no"), TypeError, "is_safety must be True or False, got 'no'"),
        (dict(text=None), TypeError, "text must be a string, got None"),
    ],
    world.normalise: [
        (dict(text=["a"]), TypeError, "text must be a string, got a list"),
    ],
    world.find_prompt: [
        (dict(text=None), TypeError, "text must be a string, got None"),
    ],
    world.parse: [
        (dict(text=5), TypeError, "text must be a string, got 5"),
    ],
    world.helpfulness: [
        (dict(prompt=PROMPT.text), TypeError, "prompt must be a Prompt, got 'How do I"),
        (dict(text=None), TypeError, "text must be a string, got None"),
    ],
    world.safety: [
        (dict(prompt=None), TypeError, "prompt must be a Prompt, got None"),
    ],
    world.refuses: [
        (dict(text=None), TypeError, "text must be a string, got None"),
    ],
    world.gives_risky_advice: [
        (dict(text=7), TypeError, "text must be a string, got 7"),
    ],
    world.Preference: [
        (dict(strength=4), ValueError, "strength must be in 0..3, got 4"),
        (dict(chosen=None), TypeError, "chosen and rejected must be strings, got None"),
        (dict(strength=1.5), ValueError, "strength must be in 0..3, got 1.5"),
    ],
    world.Annotator: [
        (dict(temperature=0), ValueError, "temperature must be a number in (0, inf),"),
        (dict(temperature=-1), ValueError, "temperature must be a number in (0, inf),"),
        (
            dict(thresholds=(2.0, 1.0)),
            ValueError,
            "thresholds must be a list of number increasing, got [2.0, 1.0]",
        ),
        (dict(thresholds=(-1.0, 1.0)), ValueError, "thresholds must be positive and"),
        (
            dict(gold="helpfulness"),
            TypeError,
            "gold must be a function, got 'helpfulness'",
        ),
        (dict(length_bias=NAN), ValueError, "length_bias must be a finite number, got"),
        (dict(safe_temperature=0), ValueError, "safe_temperature must be a number in"),
    ],
    world.Annotator.utility: [
        (
            dict(self=world.Annotator(gold=lambda prompt, text: NAN)),
            ValueError,
            "Annotator: gold must return finite numbers, got nan",
        ),
    ],
    world.collect_preferences: [
        (dict(answers=[(TEXT,)]), ValueError, "answers must be pairs, got other lists"),
        (dict(answers=[TEXT]), TypeError, "answers must be lists of text (N,), got a"),
        (dict(prompts=[]), ValueError, "prompts must be a list of Prompt (N,), got 0"),
        (
            dict(annotator=world.helpfulness),
            TypeError,
            "annotator must be a Annotator, got a _lru_cache_wrapper",
        ),
        (dict(prompts=[PROMPT.text]), TypeError, "prompts must be a list of Prompt"),
    ],
    world.bayes_ceiling: [
        (dict(preferences=[]), ValueError, "preferences must be a list of Preference"),
        (
            dict(preferences=[(TEXT, "No.")]),
            TypeError,
            "preferences must be a list of Preference (N,), got a list",
        ),
    ],
    world.expected_accuracy: [
        (dict(prefers_chosen=[2.0]), ValueError, "prefers_chosen must hold numbers in"),
        (dict(prefers_chosen=[NAN]), ValueError, "prefers_chosen must hold numbers in"),
        (
            dict(prefers_chosen=[0.5, 0.5]),
            ValueError,
            "prefers_chosen must be a list (N,), got 2 entries, with N = 1 as in",
        ),
    ],
    grammar.OneOf: [
        (
            dict(probabilities=(0.5, 0.4)),
            ValueError,
            "probabilities must be at least 0 and add up to 1, got (0.5, 0.4)",
        ),
        (
            dict(probabilities=(1.5, -0.5)),
            ValueError,
            "probabilities must be at least 0 and add up to 1, got (1.5, -0.5)",
        ),
        (
            dict(probabilities=(0.5, NAN)),
            ValueError,
            "probabilities must be at least 0 and add up to 1, got (0.5, nan)",
        ),
        (dict(probabilities=(1.0,)), ValueError, "parts must be a list (N,), got 2"),
        (
            dict(probabilities=("1", "0")),
            TypeError,
            "probabilities must be a list of number (N,), got a tuple",
        ),
        (dict(parts="ab"), TypeError, "parts must be a list (N,), got 'ab'"),
        (
            dict(probabilities=(), parts=()),
            ValueError,
            "probabilities must be a list of number (N,), got 0 entries",
        ),
    ],
    grammar.evenly: [
        (dict(parts=[]), ValueError, "parts must be a list (N,), got 0 entries"),
        (dict(parts="Heads."), TypeError, "parts must be a list (N,), got 'Heads.'"),
    ],
    grammar.maybe: [
        (dict(p=1.5), ValueError, "p must be a number in [0, 1], got 1.5"),
        (dict(p=-0.1), ValueError, "p must be a number in [0, 1], got -0.1"),
        (dict(p="half"), TypeError, "p must be a number in [0, 1], got 'half'"),
    ],
    grammar.draw: [
        (dict(rng=0), TypeError, "rng must be a Random, got 0"),
        (
            dict(part=["Heads."]),
            TypeError,
            "part must be a string or a tuple or a OneOf, got a list",
        ),
    ],
    grammar.entropy: [
        (
            dict(part=5),
            TypeError,
            "part must be a string or a tuple or a OneOf, got 5",
        ),
        (
            dict(part=("Heads.", None)),
            TypeError,
            "part must be a string or a tuple or a OneOf, got None",
        ),
    ],
    grammar.kl: [
        (
            dict(other=None),
            TypeError,
            "other must be a string or a tuple or a OneOf, got None",
        ),
        (
            dict(other=grammar.evenly(["Heads.", "Edge."])),
            ValueError,
            "part and other must differ in probabilities alone, got 'Tails.' and 'Edge",
        ),
        (
            dict(other=("Heads.", "Tails.")),
            ValueError,
            "part and other must differ in probabilities alone, got a OneOf of 2 and a",
        ),
    ],
    writers.Style: [
        (dict(full=1.5), ValueError, "full must be a number in [0, 1], got 1.5"),
        (dict(rude=-0.1), ValueError, "rude must be a number in [0, 1], got -0.1"),
        (
            dict(filler=0.5, rude=0.4, risky=0.3),
            ValueError,
            "filler + rude + risky must be at most 1, got 1.2",
        ),
        (
            dict(full=0.6, common_mistake=0.5),
            ValueError,
            "full + common_mistake must be at most 1, got 1.1",
        ),
        (dict(customary=2), ValueError, "customary must be a number in [0, 1], got 2"),
        (dict(opener="often"), TypeError, "opener must be a number in [0, 1], got"),
        (dict(reason=NAN), ValueError, "reason must be a number in [0, 1], got nan"),
    ],
    writers.answers: [
        (
            dict(request="fly"),
            ValueError,
            "request must be one of REQUESTS, got 'fly'",
        ),
        (dict(request=PROMPT), TypeError, "request must be a string, got a Prompt"),
        (dict(style="kind"), TypeError, "style must be a Style, got 'kind'"),
    ],
    writers.write_answer: [
        (dict(rng=G), TypeError, "rng must be a Random, got a Generator"),
        (
            dict(prompt="How do I boil an egg?"),
            TypeError,
            "prompt must be a Prompt, got 'How do I boil an egg?'",
        ),
        (dict(style=None), TypeError, "style must be a Style, got None"),
        (
            dict(prompt=world.Prompt("How do I fly?", "fly", False)),
            ValueError,
            "prompt must ask for one of REQUESTS, got 'fly'",
        ),
    ],
    writers.answer_entropy: [
        (
            dict(request="fly"),
            ValueError,
            "request must be one of REQUESTS, got 'fly'",
        ),
        (dict(style=0.5), TypeError, "style must be a Style, got 0.5"),
    ],
    writers.answer_kl: [
        (
            dict(request="fly"),
            ValueError,
            "request must be one of REQUESTS, got 'fly'",
        ),
        (dict(other=None), TypeError, "other must be a Style, got None"),
    ],
    writers.perfect_probability: [
        (
            dict(request="fly"),
            ValueError,
            "request must be one of REQUESTS, got 'fly'",
        ),
        (dict(request=7), TypeError, "request must be a string, got 7"),
    ],
    writers.least_kl: [
        (dict(style="kind"), TypeError, "style must be a Style, got 'kind'"),
    ],
    ladder.count_bigrams: [
        (
            dict(vocab_size=10),
            IndexError,
            "examples must have ids below vocab_size = 10, got ",
        ),
        (
            dict(examples=[EXAMPLE, data.Example([1, -1], 1)]),
            IndexError,
            "examples must have ids below vocab_size = 300, got -1 to 1 at [1]",
        ),
        (dict(examples=[]), ValueError, "examples must be a list of Example (N,), got"),
        (dict(examples=PROMPT_IDS), TypeError, "examples must be a list of Example"),
        (dict(vocab_size=0), ValueError, "vocab_size must be an int >= 1, got 0"),
    ],
    ladder.unigram_logprobs: [
        (dict(counts=-COUNTS), ValueError, "counts must be a finite float tensor (V,"),
        (dict(counts=COUNTS[0]), ValueError, "counts must be a finite float tensor"),
        (dict(counts=COUNTS[:2]), ValueError, "counts must be a finite float tensor"),
        (dict(counts=COUNTS * INF), ValueError, "counts must be a finite float tensor"),
        (dict(counts=COUNTS.long()), TypeError, "counts must be a finite float tensor"),
    ],
    ladder.bigram_logprobs: [
        (dict(counts=COUNTS * NAN), ValueError, "counts must be a finite float tensor"),
        (dict(strength=0), ValueError, "strength must be a finite number > 0, got 0"),
        (dict(strength=INF), ValueError, "strength must be a finite number > 0, got"),
    ],
    ladder.table_nats: [
        (
            dict(logprobs=COUNTS[:2, :2]),
            ValueError,
            "counts must be a finite float tensor (V, V), >= 0, got shape (3, 3), with",
        ),
        (
            dict(logprobs=COUNTS * NAN),
            ValueError,
            "logprobs must be a float tensor (V, V), no NaN, got nan at [0, 0]",
        ),
        (dict(counts=COUNTS * 0), ValueError, "counts must be > 0 somewhere, got zero"),
    ],
    ladder.one_token_floor: [
        (dict(counts=COUNTS * 0), ValueError, "counts must be > 0 somewhere, got zero"),
        (dict(counts=-COUNTS), ValueError, "counts must be a finite float tensor (V,"),
    ],
    ladder.OneToken: [
        (dict(config=SIZES), TypeError, "config must be a LlamaConfig, got a dict"),
        (dict(generator=0), TypeError, "generator must be a Generator or None, got 0"),
    ],
    ladder.OneToken.forward: [
        (dict(ids=STRANGE), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(ids=IDS[0]), ValueError, "ids must be an int64 tensor (B, T) below"),
        (dict(mask=ALL.long()), TypeError, "mask must be a bool tensor (B, T) or None"),
    ],
    ladder.AttentionOnly: [
        (dict(config=None), TypeError, "config must be a LlamaConfig, got None"),
        (dict(positions=1), TypeError, "positions must be True or False, got 1"),
        (dict(generator=0), TypeError, "generator must be a Generator or None, got 0"),
    ],
    ladder.AttentionOnly.forward: [
        (dict(ids=IDS.float()), TypeError, "ids must be an int64 tensor (B, T) below"),
        (dict(ids=-IDS), IndexError, "ids must be an int64 tensor (B, T) below"),
        (dict(mask=ALL[:, :2]), ValueError, "mask must be a bool tensor (B, T) or"),
    ],
    ladder.train_rung: [
        (
            dict(batch_size=3),
            ValueError,
            "batch_size must be an int >= 1, at most len(examples), got 3, where",
        ),
        (dict(steps=0), ValueError, "steps must be an int >= 1, got 0"),
        (dict(generator=0), TypeError, "generator must be a Generator, got 0"),
        (dict(examples=[PAIR, PAIR]), TypeError, "examples must be a list of Example"),
        (dict(model=CONFIG), TypeError, "model must be a Module, got a LlamaConfig"),
        (
            dict(examples=[data.Example([1, 999], 1)] * 2),
            IndexError,
            "OneToken: ids must be an int64 tensor (B, T) below",
        ),
    ],
    ladder.held_out_nats: [
        (dict(examples=[]), ValueError, "examples must be a list of Example (N,), got"),
        (dict(batch_size=0), ValueError, "batch_size must be an int >= 1, got 0"),
        (dict(model=None), TypeError, "model must be a Module, got None"),
    ],
    hf.load_llama: [
        (dict(folder=5), TypeError, "folder must be a string or a Path, got 5"),
        (
            dict(folder=".", dtype="bfloat16"),
            TypeError,
            "dtype must be a dtype or None, got 'bfloat16'",
        ),
    ],
    hf.load_reward_model: [
        (dict(folder=5), TypeError, "folder must be a string or a Path, got 5"),
        (
            dict(folder=".", device=0.5),
            TypeError,
            "device must be a string or a device",
        ),
    ],
    accumulate.accumulated_loss: [
        (dict(losses=3.0), TypeError, "losses must be a generator or a list of Tensor"),
        (
            dict(parameters=[]),
            ValueError,
            "parameters must be a list of Parameter (N,), got 0 entries",
        ),
        (
            dict(weights=[WEIGHT, WEIGHT]),
            ValueError,
            "weights must be a list of Parameter (N,), got 2 entries, with N = 1",
        ),
    ],
    accumulate.known_loss: [
        (dict(value=1.0), TypeError, "value must be a float tensor (), got 1.0"),
        (
            dict(gradients=[B2, B2]),
            ValueError,
            "weights must be a list of Tensor (N,), got 1 entries, with N = 2",
        ),
    ],
    accumulate.working_copy: [
        (
            dict(reward_model=MODEL),
            TypeError,
            "reward_model must be a RewardModel, got",
        ),
        (dict(dtype="bf16"), TypeError, "dtype must be a dtype, got 'bf16'"),
    ],
    accumulate.follow: [
        (dict(working=MODEL), TypeError, "working must be a RewardModel, got a Llama"),
    ],
    saved.save_checkpoint: [
        (
            dict(path="a", stepper=None, losses=[], identity={}),
            TypeError,
            "path must be a Path, got 'a'",
        ),
    ],
    saved.load_checkpoint: [
        (dict(path="a"), TypeError, "path must be a Path, got 'a'"),
        (dict(stepper=MODEL), TypeError, "stepper must be a Stepper, got a Llama"),
        (dict(identity=[]), TypeError, "identity must be a dict, got a list"),
    ],
    saved.save_sharded: [
        (
            dict(folder="a", steppers={}, losses=[], identity={}),
            TypeError,
            "folder must be a Path, got 'a'",
        ),
        (
            dict(folder=Path("a"), steppers=[], losses=[], identity={}),
            TypeError,
            "steppers must be a dict, got a list",
        ),
    ],
    saved.load_sharded: [
        (dict(folder="a"), TypeError, "folder must be a Path, got 'a'"),
        (dict(steppers=MODEL), TypeError, "steppers must be a dict, got a Llama"),
        (dict(identity=[]), TypeError, "identity must be a dict, got a list"),
    ],
    distributed.Processes: [
        (dict(rank=-1), ValueError, "rank must be an int >= 0, got -1"),
        (dict(count=0), ValueError, "count must be an int >= 1, got 0"),
        (dict(device="gpu"), ValueError, 'device must be "cpu" or "cuda", got'),
    ],
    distributed.start: [
        (dict(device="gpu"), ValueError, 'device must be "cpu" or "cuda", got'),
        (dict(device="cpu"), ValueError, "the environment must have RANK, WORLD_SIZE"),
    ],
    distributed.require_agreement: [
        (
            dict(identity=[], processes=ONE_PROCESS),
            TypeError,
            "identity must be a dict, got a list",
        ),
    ],
    distributed.AsForward: [
        (dict(function=None), TypeError, "function must be a function, got None"),
        (dict(model=len), TypeError, "model must be a Module, got a builtin"),
    ],
    distributed.spread: [
        (
            dict(model=MODEL, function=len, engine="zero", processes=ONE_PROCESS),
            ValueError,
            'engine must be "ddp" or "fsdp", got',
        ),
        (
            dict(model=MODEL, function=len, engine="ddp", processes=2),
            TypeError,
            "processes must be a Processes, got 2",
        ),
    ],
    distributed.whole: [
        (dict(spread_model=None), TypeError, "spread_model must be a Module, got None"),
    ],
    distributed.parts_of: [
        (
            dict(counts=[1]),
            ValueError,
            "counts must be a list of int (N,), got 1 entries, with N = 2 as in items",
        ),
        (dict(counts=[1, 0]), ValueError, "counts must be at least 1, got 0"),
        (dict(size=0), ValueError, "size must be an int >= 1, got 0"),
        (
            dict(items=[], counts=[]),
            ValueError,
            "items must be a list (N,), got 0 entries, where no size may be 0",
        ),
    ],
    distributed.descend: [
        (dict(STEP, stepper=MODEL, loss_of=len, parts=[1]), TypeError, NO_STEPPER),
    ],
    distributed.lm_step: [
        (dict(STEP, stepper=MODEL, examples=[EXAMPLE], size=1), TypeError, NO_STEPPER),
    ],
    distributed.pair_step: [
        (dict(STEP, stepper=MODEL, pairs=[PAIR], size=1), TypeError, NO_STEPPER),
    ],
    distributed.share_answers: [
        (
            dict(experience=ROLLOUT, settings=SHORT_PPO, processes=ONE_PROCESS),
            TypeError,
            "experience must be a Experience, got a Rollout",
        ),
    ],
    distributed.ppo_step_together: [
        (
            dict(
                policy_stepper=MODEL,
                value_stepper=None,
                experience=None,
                settings=SHORT_PPO,
                generator=G,
                size=1,
                processes=ONE_PROCESS,
            ),
            TypeError,
            "policy_stepper must be a Stepper, got a Llama",
        ),
    ],
    chat_format.encode_turns: [
        (
            dict(turns=TURNS[:2]),
            ValueError,
            "turns must go from user to user by way of assistant, got user, assistant",
        ),
        (
            dict(course_tokenizer=LLAMA2),
            TypeError,
            "course_tokenizer must be a Tokenizer, got a Llama2Tokenizer",
        ),
    ],
    chat_format.chat_format: [
        (dict(of=None), TypeError, "of must be a Tokenizer or a Llama2Tokenizer, got"),
    ],
    chat_format.load_chat_format: [
        (dict(folder=5), TypeError, "folder must be a string or a Path, got 5"),
    ],
    chat_format.with_pairs: [
        (dict(max_tokens=1), ValueError, "max_tokens must be an int >= 2, got 1"),
        (dict(comparisons=[PAIR]), TypeError, "comparisons must be a generator or a"),
        (dict(view=None), TypeError, "view must be a function, got None"),
    ],
    evidence.mean_interval: [
        (dict(values=[1.0]), ValueError, "values must be at least two runs, got one"),
        (dict(values=5), TypeError, "values must be"),
    ],
    evidence.wilson_interval: [
        (dict(share=1.5), ValueError, "share must be a number in [0, 1], got 1.5"),
        (dict(count=0), ValueError, "count must be a number > 0, got 0"),
    ],
    evidence.effective_count: [
        (dict(right=B2 + 1), ValueError, "right must be a float tensor (N,) in [0, 1]"),
        (dict(groups=["a"]), ValueError, "groups must be a list (N,), got 1 entries,"),
    ],
    evidence.exact_coverage: [
        (dict(interval=0.5), TypeError, "interval must be a function, got 0.5"),
        (dict(chance=1.5), ValueError, "chance must be a number in [0, 1], got 1.5"),
        (dict(count=0), ValueError, "count must be an int in [1, 1000], got 0"),
        (dict(count=5000), ValueError, "count must be an int in [1, 1000], got 5000"),
    ],
    evidence.bootstrap_interval: [
        (dict(values=B2 * NAN), ValueError, "values must be a finite float tensor"),
        (dict(values=COLUMN), ValueError, "values must be a finite float tensor (N,)"),
        (dict(generator=0), TypeError, "generator must be a Generator, got 0"),
        (dict(groups=["a"]), ValueError, "groups must be a list (N,) or None, got 1"),
        (dict(groups=["a", "a"]), ValueError, "values must be of at least two units"),
        (dict(draws=0), ValueError, "draws must be an int >= 1, got 0"),
        (dict(level=95), ValueError, "level must be a number in (0, 1), got 95"),
    ],
    evidence.intraclass_correlation: [
        (dict(values=B2), ValueError, "values must be a finite float tensor (N, K)"),
        (dict(values=torch.ones(2, 2)), ValueError, "values must be at least (2, 2)"),
        (dict(values=torch.eye(2)[:1]), ValueError, "values must be at least (2, 2)"),
        (dict(values=torch.eye(2) * NAN), ValueError, "values must be a finite float"),
    ],
    evidence.prompts_needed: [
        (dict(difference=0), ValueError, "difference must be a finite number > 0, got"),
        (dict(std=INF), ValueError, "std must be a finite number > 0, got inf"),
        (dict(power=1.0), ValueError, "power must be a number in [0.5, 1), got 1.0"),
    ],
    preference_audit.accuracy_of: [
        (
            dict(differences=torch.tensor([0.0, NAN])),
            ValueError,
            "differences must be a finite float tensor (N,), got nan at [1]",
        ),
        (dict(prompts=["a"]), ValueError, "prompts must be a list (N,), got 1 entries"),
    ],
    preference_audit.calibration: [
        (
            dict(differences=torch.zeros(0)),
            ValueError,
            "differences must be a finite float tensor (N,), got shape (0,), where no",
        ),
    ],
    preference_audit.habits: [
        (
            dict(chosen=[TEXT]),
            ValueError,
            "rejected must be a list of text (N,), got 2",
        ),
        (dict(chosen=[1, 2]), TypeError, "chosen must be a list of text (N,), got a"),
    ],
    preference_audit.words: [
        (dict(differences=B2[:1]), ValueError, "differences must be a finite float"),
        (dict(most=0), ValueError, "most must be an int >= 1, got 0"),
    ],
    preference_audit.length_report: [
        (dict(buckets=0), ValueError, "buckets must be an int >= 1, got 0"),
        (dict(differences=None), TypeError, "differences must be a finite float"),
    ],
    preference_audit.audit_comparisons: [
        (
            dict(comparisons=[PAIR]),
            TypeError,
            "comparisons must be a list of Comparison",
        ),
        (
            dict(rejected_scores=COLUMN),
            ValueError,
            "rejected_scores must be a finite float tensor (N,), got shape (2, 1)",
        ),
    ],
    preference_audit.table: [
        (dict(audited=[]), TypeError, "audited must be a dict, got a list"),
    ],
    any_reward_model.with_other_prompts: [
        (dict(comparisons=[]), ValueError, "comparisons must be a list of Comparison"),
    ],
    any_reward_model.load_judge: [
        (dict(folder=5), TypeError, "folder must be a string or a Path, got 5"),
        (dict(folder="a", device=0), TypeError, "device must be a string, got 0"),
    ],
    any_reward_model.read_pairs: [
        (dict(judge=JUDGE), TypeError, "judge must be a Judge, got a RewardModel"),
        (dict(tally={}), TypeError, "tally must be a Tally or None, got a dict"),
    ],
    any_reward_model.judge_pairs: [
        (dict(judge=JUDGE), TypeError, "judge must be a Judge, got a RewardModel"),
    ],
    reward_file.FileSettings: [
        (dict(data="a"), TypeError, "data must be a Path, got 'a'"),
        (dict(held_out=1), ValueError, "held_out must be a number in [0, 1), got 1"),
        (dict(batch_size=0), ValueError, "batch_size must be an int >= 1, got 0"),
        (dict(dtype="fp16"), ValueError, 'dtype must be "fp32" or "bf16", got'),
        (dict(lr=INF), ValueError, "lr must be a finite number >= 0 or None, got inf"),
        (dict(vocab_size=9), ValueError, "vocab_size must be an int >= 263, got 9"),
    ],
    reward_file.is_held_out: [
        (dict(share=2), ValueError, "share must be a number in [0, 1], got 2"),
        (dict(prompt=TEXT), TypeError, "prompt must be a list, got"),
    ],
    reward_file.peak_lr: [
        (dict(settings=SETTINGS), TypeError, "settings must be a FileSettings, got a"),
    ],
    reward_file.prepare: [
        (dict(settings=None), TypeError, "settings must be a FileSettings, got None"),
    ],
    reward_file.train: [
        (
            dict(prepared=None, settings=FILE_SETTINGS),
            TypeError,
            "prepared must be a Prepared, got None",
        ),
    ],
    reward_file.fit: [
        (
            dict(prepared=None, settings=FILE_SETTINGS),
            TypeError,
            "prepared must be a Prepared, got None",
        ),
    ],
    reward_file.train_together: [
        (
            dict(prepared=None, settings=FILE_SETTINGS, processes=ONE_PROCESS),
            TypeError,
            "prepared must be a Prepared, got None",
        ),
    ],
    reward_file.fit_together: [
        (
            dict(prepared=None, settings=FILE_SETTINGS, processes=ONE_PROCESS),
            TypeError,
            "prepared must be a Prepared, got None",
        ),
    ],
    reward_file.report_table: [
        (dict(report=None), TypeError, "report must be a dict, got None"),
    ],
    reward_file.require_own_folder: [
        (dict(folder="a"), TypeError, "folder must be a Path, got 'a'"),
    ],
    reward_file.finished_report: [
        (dict(folder="a"), TypeError, "folder must be a Path, got 'a'"),
        (dict(identity=None), TypeError, "identity must be a dict, got None"),
    ],
    hf.load_special_ids: [
        (dict(folder=None), TypeError, "folder must be a string or a Path, got None"),
    ],
    hf.save_reward_model: [
        (
            dict(reward_model=MODEL, folder="unused"),
            TypeError,
            "reward_model must be a RewardModel, got a Llama",
        ),
        (
            dict(reward_model=POOLING_MEAN, folder="unused"),
            ValueError,
            "reward_model must pool the last token, got 'mean'",
        ),
        (
            dict(
                reward_model=JUDGE,
                folder="unused",
                special_ids=hf_config.SpecialIds(1, [2, 5], 5),
            ),
            ValueError,
            "special_ids.pad must be an id below 300 other than eos, got 5 beside",
        ),
        (
            dict(
                reward_model=JUDGE,
                folder="unused",
                special_ids=hf_config.SpecialIds(1, 2, None),
            ),
            ValueError,
            "special_ids.pad must be an id below 300 other than eos, got None beside 2",
        ),
    ],
    hf_config.SpecialIds: [
        (dict(bos=-1), ValueError, "bos must be an int >= 0 or None, got -1"),
        (dict(eos="</s>"), TypeError, "eos must be an int >= 0 or a list of ids or"),
    ],
    hf.save_llama: [
        (
            dict(model=MODEL, folder="unused", special_ids=(1, 2, 3)),
            TypeError,
            "special_ids must be a SpecialIds, got a tuple",
        ),
        (
            dict(model=BODY, folder="unused"),
            ValueError,
            "model must have an lm_head, got a body without",
        ),
        (
            dict(model=JUDGE, folder="unused"),
            TypeError,
            "model must be a Llama, got a RewardModel",
        ),
    ],
    checkpoint: [
        (
            dict(without=["rms_norm_eps"]),
            ValueError,
            "config.json must have rms_norm_eps, got none of them",
        ),
        (
            dict(without=["hidden_size", "num_attention_heads"]),
            ValueError,
            "config.json must have hidden_size, num_attention_heads, got none of",
        ),
        (
            dict(without=["model.norm.weight"]),
            ValueError,
            "the tensors must be those of the config, got missing model.norm.weight",
        ),
        (
            dict(tensors={"model.norm.weight": torch.ones(9)}),
            ValueError,
            "the tensors must be those of the config, got model.norm.weight is (9,),",
        ),
        (
            dict(tensors={"model.norm.bias": torch.ones(8)}),
            ValueError,
            "the tensors must be those of the config, got unexpected model.norm.bias",
        ),
        (
            dict(tensors={"model.norm.weight": torch.ones(8, dtype=torch.int64)}),
            ValueError,
            "the tensors must be those of the config, got model.norm.weight is I64",
        ),
        (
            dict(tensors={"model.norm.weight": torch.ones(8).half()}),
            ValueError,
            "dtype must be given where a checkpoint mixes several, got None for",
        ),
        (
            dict(config={"tie_word_embeddings": True}),
            ValueError,
            "lm_head.weight must equal model.embed_tokens.weight, as tie_word_",
        ),
        (
            dict(config={"rope_scaling": {"type": "yarn", "factor": 2.0}}),
            ValueError,
            "config.json must describe a plain LLaMA, got an unsupported rope type",
        ),
        (
            dict(config={"model_type": "mistral"}),
            ValueError,
            "config.json must describe a plain LLaMA, got an unsupported model_type",
        ),
        (
            dict(config={"hidden_act": "gelu"}),
            ValueError,
            "config.json must describe a plain LLaMA, got an unsupported hidden_act",
        ),
        (
            dict(config={"attention_bias": True}),
            ValueError,
            "config.json must describe a plain LLaMA, got an unsupported",
        ),
        (
            dict(config={"hidden_size": "8"}),
            TypeError,
            "LlamaConfig: dim must be an int >= 1, a multiple of 2 n_heads, got '8'",
        ),
    ],
    stages.Settings: [
        (dict(seed="0"), TypeError, "seed must be an int, got '0'"),
        (dict(device="tpu"), ValueError, 'device must be "cpu" or "cuda", got \'tpu\''),
        (dict(vocab_size=0), ValueError, "vocab_size must be an int > 0, got 0"),
        (dict(corpus=24_000.0), TypeError, "corpus must be an int > 0, got 24000.0"),
        (dict(answers_per_prompt=1), ValueError, "answers_per_prompt must be an int"),
        (dict(base=ppo.PPOSettings()), TypeError, "base must be a LMSettings, got a"),
        (dict(ppo=dict(iterations=1)), TypeError, "ppo must be a PPOSettings, got a"),
        (dict(dim=10), ValueError, "dim must be an int > 0, a multiple of 2 n_heads,"),
    ],
    stages.choose_device: [
        (dict(name="gpu"), ValueError, "name must be auto, cpu or cuda, got 'gpu'"),
        (dict(name=0), TypeError, "name must be a string, got 0"),
    ],
    environment: [
        (dict(MINILLAMA_SEED="abc"), ValueError, "MINILLAMA_SEED must be an integer,"),
        (dict(MINILLAMA_SEED="1.5"), ValueError, "MINILLAMA_SEED must be an integer,"),
        (dict(MINILLAMA_DEVICE="tpu"), ValueError, "MINILLAMA_DEVICE must be auto,"),
    ],
    stages.world_rng: [
        (dict(settings=0), TypeError, "settings must be a Settings, got 0"),
    ],
    stages.torch_rng: [
        (dict(purpose=None), TypeError, "purpose must be a string, got None"),
    ],
    stages.draw_dialogues: [
        (dict(count=-1), ValueError, "count must be an int >= 0, got -1"),
        (dict(prompts=[]), ValueError, "prompts must be a list of Prompt (N,), got 0"),
    ],
    stages.draw_corpus: [
        (dict(count=0), ValueError, "count must be an int > 0 or None, got 0"),
        (dict(count=2.5), TypeError, "count must be an int > 0 or None, got 2.5"),
    ],
    stages.draw_preferences: [
        (dict(kind="honesty"), ValueError, 'kind must be "helpfulness" or "safety",'),
        (dict(answers_per_prompt=1), ValueError, "answers_per_prompt must be an int"),
        (dict(cut_off=1), TypeError, "cut_off must be True or False, got 1"),
    ],
    stages.build_tokenizer: [
        (dict(settings=None), TypeError, "settings must be a Settings, got None"),
    ],
    stages.model_config: [
        (dict(tokenizer=MODEL), TypeError, "tokenizer must be a Tokenizer, got a"),
    ],
    stages.build_base: [
        (
            dict(settings=SETTINGS, tokenizer=None),
            TypeError,
            "tokenizer must be a Tokenizer, got None",
        ),
    ],
    stages.build_sft: [
        (
            dict(settings=SETTINGS, tokenizer=TOKENIZER, base=JUDGE),
            TypeError,
            "base must be a Llama, got a RewardModel",
        ),
    ],
    stages.build_helpfulness: [
        (
            dict(settings=SETTINGS, tokenizer=TOKENIZER, sft=None),
            TypeError,
            "sft must be a Llama, got None",
        ),
    ],
    stages.build_safety: [
        (
            dict(settings=SETTINGS, tokenizer=MODEL, sft=TOKENIZER),
            TypeError,
            "tokenizer must be a Tokenizer, got a Llama",
        ),
    ],
    stages.fit_reward_model: [
        (
            dict(
                settings=SETTINGS,
                sft=MODEL,
                name="a",
                groups=[PAIR],
                reward_settings=ONE_EPOCH,
            ),
            TypeError,
            "groups must be lists of PairExample, got a list",
        ),
    ],
    stages.build_policy: [
        (
            dict(
                settings=SETTINGS,
                tokenizer=TOKENIZER,
                sft=MODEL,
                helpfulness=JUDGE,
                safety=MODEL,
            ),
            TypeError,
            "safety must be a RewardModel, got a Llama",
        ),
    ],
    stages.build_ppo: [
        (
            dict(
                settings=SETTINGS,
                tokenizer=TOKENIZER,
                sft=MODEL,
                judges=JUDGE,
                prompts=[PROMPT],
                ppo_settings=SHORT_PPO,
            ),
            TypeError,
            "judges must be a Judges, got a RewardModel",
        ),
        (
            dict(
                settings=SETTINGS,
                tokenizer=TOKENIZER,
                sft=MODEL,
                judges=JUDGES,
                prompts=[PROMPT.text],
                ppo_settings=SHORT_PPO,
            ),
            TypeError,
            "prompts must be a list of Prompt (N,), got a list",
        ),
    ],
    budget.right_answer: [
        (dict(prompt=PROMPT.text), TypeError, "prompt must be a Prompt, got"),
        (dict(text=None), TypeError, "text must be a string, got None"),
    ],
    budget.Checker: [(dict(tokenizer=None), TypeError, "tokenizer must be a Tokenize")],
    budget.Checker.probabilities: [
        (
            dict(self=budget.Checker(TOKENIZER), ids=IDS[0], mask=ALL),
            ValueError,
            "ids must be an int64 tensor (B, T), got shape",
        ),
    ],
    budget.comparisons: [
        (dict(kind="style"), ValueError, 'kind must be "helpfulness" or "safety", g'),
        (dict(copy=-1), ValueError, "copy must be an int >= 0, got -1"),
    ],
    budget.best_of_four: [
        (dict(prompts=[]), ValueError, "prompts must be a list of list (N,), got 0"),
        (dict(policy=JUDGE), TypeError, "policy must be a Llama, got a RewardModel"),
    ],
    budget.train_raft: [
        (dict(policy=LEARNER, ref_policy=LEARNER), ValueError, "ref_policy must be a"),
        (dict(settings=SHORT_GRPO), TypeError, "settings must be a LMSettings, got"),
    ],
    budget.build_method: [
        (
            dict(
                settings=SETTINGS,
                tokenizer=TOKENIZER,
                sft=MODEL,
                safety=JUDGE,
                helpfulness=JUDGE,
                method="SPPO",
                plan=None,
                copy=0,
            ),
            ValueError,
            "method must be in ['PPO', 'GRPO',",
        ),
    ],
    budget.trained: [
        (dict(stages=STAGES, method="SPPO", copy=0), ValueError, "method must be in"),
        (dict(stages=STAGES, method="PPO", copy=-1), ValueError, "copy must be an int"),
    ],
    budget.lines_of_code: [
        (dict(method="SPPO"), ValueError, "method must be in ['PPO', 'GRPO',"),
    ],
    stages.rung_data: [
        (
            dict(settings=SETTINGS, tokenizer=None),
            TypeError,
            "tokenizer must be a Tokenizer, got None",
        ),
    ],
    stages.build_rung: [
        (
            dict(settings=SETTINGS, tokenizer=TOKENIZER, rung="bigram"),
            ValueError,
            "rung must be in ['one token', 'attention, no positions', 'attention with",
        ),
        (
            dict(settings=SETTINGS, tokenizer=TOKENIZER, rung=1),
            TypeError,
            "rung must be a string, got 1",
        ),
    ],
    stages.counted_rungs: [
        (
            dict(settings=None, tokenizer=TOKENIZER),
            TypeError,
            "settings must be a Settings, got None",
        ),
    ],
    stages.response_texts: [
        (dict(rollout=IDS), TypeError, "rollout must be a Rollout or a Experience,"),
    ],
    stages.mean: [
        (dict(values=[]), ValueError, "values must be at least one number, got none"),
        (dict(values=[1.0, NAN]), ValueError, "values must be finite, got a mean of"),
    ],
    stages.gold_summary: [
        (dict(texts=[TEXT, TEXT]), ValueError, "texts must be a list of text (N,),"),
        (dict(texts=TEXT), TypeError, "texts must be a list of text (N,), got 'First,"),
    ],
    stages.Stages: [
        (dict(settings=None), TypeError, "settings must be a Settings, got None"),
        (dict(rebuild="yes"), TypeError, "rebuild must be True or False, got 'yes'"),
    ],
    stages.Stages.lesson_reward_model: [
        (
            dict(self=STAGES, name="a", groups=[PAIR], reward_settings=ONE_EPOCH),
            TypeError,
            "groups must be lists of PairExample, got a list",
        ),
    ],
    stages.Stages.lesson_policy: [
        (
            dict(
                self=STAGES,
                name="a",
                judges=(JUDGE, JUDGE),
                prompts=[PROMPT],
                ppo_settings=SHORT_PPO,
            ),
            TypeError,
            "judges must be a Judges, got a tuple",
        ),
    ],
    stages.Stages.ladder: [
        (
            dict(self=STAGES, up_to="three blocks"),
            ValueError,
            "up_to must be in ['uniform', 'unigram', 'bigram', 'one token', 'atten",
        ),
        (dict(self=STAGES, up_to=8), TypeError, "up_to must be a string, got 8"),
    ],
    stages.Stages.stage: [
        (
            dict(self=STAGES, name="a", build=None),
            TypeError,
            "build must be a function, got None",
        ),
    ],
    pipeline.sample_answers: [
        (dict(prompts=[PROMPT.text]), TypeError, "prompts must be a list of Prompt"),
        (dict(policy=JUDGE), TypeError, "policy must be a Llama, got a RewardModel"),
        (dict(temperature=-1), ValueError, "temperature must be a number in [0, inf),"),
    ],
    pipeline.wins: [
        (dict(baseline_texts=[]), ValueError, "baseline_texts must be a list of text"),
        (dict(texts=[None]), TypeError, "texts must be a list of text (N,), got a"),
    ],
    pipeline.kl_per_answer: [
        (dict(rollouts=ROLLOUT), TypeError, "rollouts must be a list of Rollout (N,),"),
        (dict(ref_policy=None), TypeError, "ref_policy must be a Llama, got None"),
    ],
    pipeline.reward_model_accuracy: [
        (dict(kind="honesty"), ValueError, 'kind must be "helpfulness" or "safety",'),
        (dict(model=MODEL), TypeError, "model must be a RewardModel, got a Llama"),
    ],
    pipeline.evaluate: [
        (
            dict(stages=SETTINGS, prompts=[PROMPT]),
            TypeError,
            "stages must be a Stages, got a Settings",
        ),
        (
            dict(stages=STAGES, prompts=[PROMPT]),
            ValueError,
            "prompts must be ordinary and unsafe, got one kind",
        ),
    ],
    pipeline.table: [
        (dict(report=[]), TypeError, "report must be a dict, got a list"),
    ],
    pipeline.gold_scores: [
        (dict(prompt=PROMPT.text), TypeError, "prompt must be a Prompt, got 'How do I"),
    ],
    pipeline.side_by_side: [
        (dict(count=2), ValueError, "count must be an int >= 1 at most len(prompts),"),
        (dict(count=0), ValueError, "count must be an int >= 1 at most len(prompts),"),
    ],
    pipeline.draw_curves: [
        (
            dict(history=[], path="unused.png"),
            ValueError,
            "history must be a list (N,), got 0 entries",
        ),
    ],
    pipeline.run: [
        (
            dict(settings=None, out="unused"),
            TypeError,
            "settings must be a Settings, got None",
        ),
        (
            dict(settings=SETTINGS, out=None),
            TypeError,
            "out must be a string or a Path, got None",
        ),
    ],
    pipeline.ask: [
        (
            dict(stages=STAGES, question=""),
            ValueError,
            "question must have words, got ''",
        ),
        (
            dict(stages=STAGES, question=None),
            TypeError,
            "question must be a string, got None",
        ),
        (
            dict(stages=STAGES, question="How?", temperature=-1),
            ValueError,
            "temperature must be a number in [0, inf), got -1",
        ),
        (
            dict(stages=SETTINGS, question="How?"),
            TypeError,
            "stages must be a Stages, got a Settings",
        ),
    ],
    store.digest: [
        (dict(tensors=[B2]), TypeError, "tensors must be a dict, got a list"),
    ],
    store.key: [
        (dict(name="a/b"), ValueError, "name must be letters, digits, - and _, got"),
        (dict(sources=["ppo.py"]), TypeError, "sources must be functions, classes or"),
        (
            dict(settings={"lr": {1, 2}}),
            TypeError,
            "settings['lr'] must be a JSON value, got one that is not: Object of",
        ),
        (dict(sources="ppo.py"), TypeError, "sources must be a list, got 'ppo.py'"),
    ],
    store.stage: [
        (
            dict(name="a", settings={}, sources=[], build=None),
            TypeError,
            "build must be a function, got None",
        ),
    ],
}


# --------------------------------------------------------------------------------------
# The tests

# A model that the caller hands over speaks for itself.
OWN_NAME = re.compile(
    r"(Llama|LlamaConfig|RewardModel|ValueModel|OneToken|Annotator|Tokenizer|"
    r"Tokenizer\.\w+): "
)
CASES = [(function, *row) for function, rows in BAD.items() for row in rows]


def name_of(function):
    """A function's name as its messages have it, such as "gae" or "Llama.hidden"."""
    return re.sub(r"\.forward$", "", function.__qualname__)


def call(function, changes, request):
    """Make the good call with some arguments changed, beside the fixtures it needs."""
    arguments = GOOD[function] or {}
    arguments = arguments() if callable(arguments) else arguments
    if function in FIXTURES:
        argument, fixture = FIXTURES[function]
        arguments = {argument: request.getfixturevalue(fixture)}
    return function(**{**arguments, **changes})


@pytest.mark.parametrize(
    "function, changes, kind, words",
    CASES,
    ids=[f"{name_of(row[0])}-{'-'.join(row[1])}" for row in CASES],
)
def test_it_is_refused_in_words(function, changes, kind, words, request):
    speaker = SPOKEN.get(function, f"{name_of(function)}: ")
    if OWN_NAME.match(words):
        speaker = ""
    with pytest.raises(kind) as caught:
        call(function, changes, request)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.startswith(speaker + words)
    assert " must " in message and ", got " in message


WITHOUT_GOOD_CALL = [function for function in GOOD if GOOD[function] is None]


@pytest.mark.parametrize(
    "function", [f for f in GOOD if f not in WITHOUT_GOOD_CALL], ids=name_of
)
def test_the_good_call_is_not_refused(function, request):
    call(function, {}, request)


# Public names that are not in the table, and why.
EXCEPTIONS = {
    "contracts": ("Alternative expects", "test_contracts.py has their tables"),
    "sources": (
        "Sources texts_behind text_of is_code",
        "they read code, not what a user types",
    ),
    "model": (
        "rotate attend require_lm_head require_fit require_slots require_constants "
        "positions_and_keys rotary_table",
        "without contract in each layer; the doors speak as Llama, generate, …",
    ),
    "lm": ("require_readable", "speaks as train_lm and evaluate_lm"),
    "tokenizer": (
        "load_pieces as_list",
        "speak as Tokenizer and decode_response, which are in the table",
    ),
    "data": (
        "PairExample require_ids",
        "made by pair_example, 200,000 times in a run; speaks as its callers",
    ),
    "hf_config": (
        "read_config write_config read_special_ids refuse",
        "speak as load_llama, save_llama and their like",
    ),
    "hf_files": (
        "few read_json headers check_tensors one_dtype mapped read_tensors",
        "speak as load_llama and its like",
    ),
    "llama_tokenizer": (
        "roles_alternate require_no_tags require_turns",
        "speak as encode_prompt and encode_response",
    ),
    "preference_file": (
        "Comparison Tally StrictTally",
        "made by read_preferences for every line; counts of it",
    ),
    "checkpoint": ("require_same", "speaks as load_checkpoint and finished_report"),
    "chat_format": ("ChatFormat", "made by chat_format"),
    "any_reward_model": (
        "Judge as_plain_text as_dialogues",
        "made by load_judge; parts of it",
    ),
    "reward_file": (
        "Prepared locked",
        "made by prepare; test_reward_file.py has what it refuses",
    ),
    "dpo": ("require_direct", "speaks as its callers, which are in the table"),
    "fast": ("require_past", "speaks as its callers, which are in the table"),
    "generate": (
        "require_finite require_room require_possible sample_responses",
        "speak as generate and sample, of which they are parts",
    ),
    "ppo": ("require_prompts require_sound require_judges", "speak as train_ppo"),
    "preference_loss": ("reduce_losses", "a part of each loss, which checks before"),
    "arena": ("require_connected", "speaks as fit_strengths"),
    "audit": (
        "Audit differences_of pick said_in_order",
        "a result of audit, a part of it, parts of flawed_answer",
    ),
    "world": ("sigmoid", "inside Annotator, hundreds of thousands of times"),
    "grammar": (
        "outline read",
        "inside kl; it walks a grammar and calls itself at every part",
    ),
    "writers": (
        "Answer connected steps_answer refusal require_known",
        "what write_answer draws, parts of answers; speaks as its callers",
    ),
    "ladder": ("require_pairs", "speaks as table_nats and one_token_floor"),
    "process_reward": (
        "require_scores one_sentence",
        "speak as step_search and right_futures, of which they are parts",
    ),
    "stages": ("shown", "takes any name"),
    "pipeline": (
        "question_ids before_ppo",
        "speaks as ask, which is in the table; a part of evaluate",
    ),
    "store": (
        "say content code_in sources_of Stage",
        "speak as key, or are made by stage",
    ),
    "__main__": (
        "Parser temperature at_least share folder_or_none add_course_commands "
        "add_reward_model add_audit chosen_device settings_of file_settings_of run ask "
        "reward_model reward_model_together audit main",
        "test_main.py has the command line",
    ),
}


def public(module):
    """The names of a module's own functions and classes that take arguments.

    Not errors: those are what a caller gets.
    """
    for name, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == module.__name__
        is_error = isinstance(value, type) and issubclass(value, Exception)
        if not name.startswith("_") and is_own and callable(value) and not is_error:
            if inspect.signature(value).parameters:
                yield name


def test_the_table_knows_every_public_function():
    assert len(CASES) >= 140
    assert set(GOOD) == set(BAD)
    known = {(f.__module__, f.__qualname__) for f in BAD}
    unknown = []
    for found in pkgutil.iter_modules(minillama.__path__):
        if found.ispkg:
            continue
        module = importlib.import_module(f"minillama.{found.name}")
        excepted = EXCEPTIONS.get(found.name, ("", ""))[0].split()
        names = set(public(module))
        assert set(excepted) <= names, f"{found.name} has no such names"
        unknown += [
            f"{found.name}.{name}"
            for name in sorted(names - set(excepted))
            if (module.__name__, name) not in known
        ]
    assert unknown == []
