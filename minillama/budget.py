"""Every method of the course on one budget, so that their numbers stand side by side.

Each method starts from the SFT policy and its prompts are those for training. What a
method may spend:

    PPO, GRPO, RLOO     640 answers: 20 iterations of 32, four gradient steps on each
    GRPO, checker       the same, judged by the world: right or wrong
    RAFT                640 answers, 160 prompts times 4; the best of each four is read
                        four times
    DPO                 no answers: 300 groups of comparisons, of those that the two
                        reward models learned from, read once
    best of 4           nothing: four draws for each answer, for ever

Learning rates, prices and the rest are those of each method's lesson. The reward models
are the course's; they learned from 7,600 groups, which no row counts.

Left out: a search for the best settings of each method, and IPO and KTO.
"""

import ast
import inspect
import time
from copy import deepcopy
from dataclasses import replace

import torch

from minillama import dpo, gae, grpo, ppo, world
from minillama.contracts import expects
from minillama.data import Example, pair_example
from minillama.dpo import DirectSettings, train_on_pairs
from minillama.grpo import GRPOSettings, collect_groups, train_grpo
from minillama.lm import LMSettings, train_lm
from minillama.ppo import Judges, PPOSettings, train_ppo
from minillama.reward_model import ValueModel
from minillama.stages import draw_preferences, torch_rng
from minillama.tokenizer import END_INST_ID, decode_response, encode_prompt

SHORT = GRPOSettings(iterations=20, batch_size=32)
PLANS = {
    "PPO": PPOSettings(iterations=20, batch_size=32),
    "GRPO": SHORT,
    "RLOO": replace(
        SHORT, kl="reward", baseline="others", scale="none", average="constant"
    ),
    "GRPO, checker": SHORT,
    "RAFT": LMSettings(steps=20, batch_size=32, lr=3e-4, warmup_steps=4),
    "DPO": DirectSettings(batch_size=4, lr=2.5e-4),
}
# How many copies of the weights are in memory while a method trains. Being trained
# takes four: weights, gradients, two moments of Adam. A reference or judge takes one.
COPIES_HELD = {
    "PPO": 4 + 4 + 1 + 2,  # policy, value model, reference, two judges
    "GRPO": 4 + 1 + 2,
    "RLOO": 4 + 1 + 2,
    "GRPO, checker": 4 + 1,
    "RAFT": 4 + 1 + 2,
    "DPO": 4 + 1,
}
GROUPS_OF_DPO = {"helpfulness": 200, "safety": 100}
RAFT_PROMPTS = 160


@expects("prompt: Prompt", "text: text", "-> flag")
def right_answer(prompt, text):
    """Say whether an answer is right in every point, as the world knows it.

    All four steps of the task in order, none of another task and no risky advice; for
    an unsafe request, a refusal.
    """
    if prompt.is_safety:
        return world.refuses(text)
    steps = [(task, i) for kind, task, i in world.parse(text) if kind == "step"]
    wanted = [(prompt.request, i) for i in range(world.STEPS_PER_TASK)]
    return steps == wanted and not world.gives_risky_advice(text)


class Checker:
    """Judges that look an answer up in the world: right or wrong.

    A reward of this kind is called *verifiable*. It stands in for `ppo.Judges`.
    """

    @expects("tokenizer: Tokenizer")
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    @expects("ids: int64 (B, T)", "mask: bool (B, T)", "-> float (B,)", "-> float (B,)")
    @torch.no_grad()
    def probabilities(self, ids, mask):
        """Return 1.0 for right answers and 0.0 for others, twice: (B,) each."""
        texts = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        right = torch.tensor([self._is_right(text) for text in texts]).float()
        return right, right

    def _is_right(self, text):
        cut = text.index(END_INST_ID) + 1
        prompt = world.find_prompt(self.tokenizer.decode(text[:cut]))
        return right_answer(prompt, decode_response(self.tokenizer, text[cut:]))


@expects(
    "settings: Settings",
    "tokenizer: Tokenizer",
    'kind: "helpfulness" or "safety"',
    "copy: int >= 0",
    "-> list",
)
def comparisons(settings, tokenizer, kind, copy):
    """Return a copy's part of the groups of comparisons that the judges learned from.

    Each group is a list of `PairExample`; copies have no group in common.
    """
    count = GROUPS_OF_DPO[kind]
    groups = draw_preferences(
        settings,
        kind,
        "training",
        (copy + 1) * count,
        settings.answers_per_prompt,
        held_out=False,
        cut_off=kind == "helpfulness",
    )[-count:]
    groups = [
        [pair_example(tokenizer, x) for x in group if x.chosen != x.rejected]
        for group in groups
    ]
    return [group for group in groups if group]


@expects(
    "policy: Llama",
    "prompts: list of list (N,)",
    "generator: Generator",
    "-> Groups",
)
def best_of_four(policy, judges, prompts, generator):
    """Return the answer with the highest score of PPO, of four to each prompt.

    prompts: pairs (ids, is_safety); the answers are `Groups` of one row a prompt.
    """
    groups = collect_groups(
        policy,
        policy,
        judges,
        [ids for ids, _ in prompts],
        torch.tensor([unsafe for _, unsafe in prompts]),
        replace(SHORT, group_size=4),
        generator,
    )
    best = groups.scores.view(-1, 4).argmax(1)  # (N,)
    return groups.rows(best + 4 * torch.arange(len(prompts)).to(best.device))


@expects(
    "policy: Llama",
    "ref_policy: Llama other than policy",
    "prompts: list of list (N,)",
    "settings: LMSettings",
    "generator: Generator",
    "-> list",
)
def train_raft(policy, ref_policy, judges, prompts, settings, generator):
    """Train a policy in place on the best of four answers; return the losses.

    prompts: pairs (ids, is_safety), of which 160 are drawn. The reference answers each
    four times, and the answer with the highest score of PPO is kept. Source: RAFT, Dong
    et al. 2023 (arXiv 2304.06767, algorithm 1), one round of it.
    """
    drawn = torch.randperm(len(prompts), generator=generator)[:RAFT_PROMPTS].tolist()
    asked = [prompts[i] for i in drawn]
    kept = best_of_four(ref_policy, judges, asked, generator)
    examples = [
        Example(ids[real].tolist(), int(real.sum() - answer.sum()))
        for ids, real, answer in zip(
            kept.ids, kept.mask, kept.response_mask, strict=True
        )
    ]
    return train_lm(policy, examples, settings, generator)


@expects(
    "settings: Settings",
    "tokenizer: Tokenizer",
    "sft: Llama",
    "safety, helpfulness: RewardModel",
    "method: text",
    "copy: int >= 0",
)
def build_method(settings, tokenizer, sft, safety, helpfulness, method, plan, copy):
    """Train a copy of the SFT policy by a method of `PLANS`: (policy, record).

    record: `history` of the training, `seconds` of processor time it took.
    """
    if method not in PLANS:
        raise ValueError(f"build_method: method must be in {[*PLANS]}, got {method!r}")
    policy, judges = deepcopy(sft), Judges(safety, helpfulness)
    prompts = [
        (encode_prompt(tokenizer, x.text), x.is_safety)
        for x in world.training_prompts()
    ]
    start = time.process_time()
    if method == "DPO":
        rng = torch_rng(settings, f"lesson 21, DPO {copy}")
        groups = [
            group
            for kind in GROUPS_OF_DPO
            for group in comparisons(settings, tokenizer, kind, copy)
        ]
        history = train_on_pairs(policy, sft, groups, plan, rng)
    else:
        rng = torch_rng(settings, f"lesson 22, {copy}")
        if method == "RAFT":
            history = train_raft(policy, sft, judges, prompts, plan, rng)
        elif method == "PPO":
            values = ValueModel(helpfulness)
            history = train_ppo(policy, sft, values, judges, prompts, plan, rng)
        else:
            judges = Checker(tokenizer) if method == "GRPO, checker" else judges
            history = train_grpo(policy, sft, judges, prompts, plan, rng)
    return policy, {"history": history, "seconds": time.process_time() - start}


@expects("stages: Stages", "method: text", "copy: int >= 0")
def trained(stages, method, copy):
    """Return (policy, record) of `build_method`, kept in the store, in eval mode."""
    if method not in PLANS:
        raise ValueError(f"trained: method must be in {[*PLANS]}, got {method!r}")
    name = f"budget-{method.lower().replace(', ', '-')}-{copy}"
    inputs = {"method": method, "plan": PLANS[method], "copy": copy}
    policy = deepcopy(stages.sft)
    policy.load_state_dict(stages.stage(name, build_method, inputs, seconds=15))
    return policy.eval(), stages.notes[name]["curve"]


# What was written for a method beyond what all share; modules with all their variants.
CODE = {
    "PPO": (ppo, gae),
    "GRPO": (grpo,),
    "RLOO": (grpo,),
    "GRPO, checker": (grpo,),
    "RAFT": (best_of_four, train_raft),
    "DPO": (dpo,),
}


@expects("method: text", "-> int >= 1")
def lines_of_code(method):
    """Return how many lines `CODE` of a method has, docstrings and comments left out.

    Each statement is counted as Python's own `ast.unparse` writes it.
    """
    if method not in CODE:
        raise ValueError(f"lines_of_code: method must be in {[*CODE]}, got {method!r}")
    count = 0
    for part in CODE[method]:
        tree = ast.parse(inspect.getsource(part))
        for node in ast.walk(tree):
            if isinstance(getattr(node, "body", None), list):
                node.body = [x for x in node.body if not _is_docstring(x)]
        count += len(ast.unparse(tree).splitlines())
    return count


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
