"""Rewards for each step: labels, models that read them, search that uses them.

An answer is cut into steps: its sentences, each up to the token that ends it, and then
the end itself, since to stop is a step too. A *process* label says of one step that it
is right: the next of the task's steps that is due, or a polite sentence, or an end when
nothing is missing. An *outcome* label says it of the whole answer: all its steps are
right. A model reads one log-odds at each step's last token, with a head or as its own
yes against no. `step_search` draws candidates for the next step and keeps the best;
`right_futures` and `search_chance` say exactly, for answers that a grammar writes, what
becomes of a beginning and what such a search achieves.

Conventions. Scores are log-odds, before the sigmoid. A target is 1, 0, or NaN where
nobody gave a label. Only ordinary requests have steps.

Process and outcome supervision: Uesato et al. 2022 (arXiv 2211.14275). Labels up to the
first fault, the product of the steps as the score of an answer: Lightman et al. 2023
(2305.20050, section 2.6). An outcome label at every token: Cobbe et al.
2021 (2110.14168, section 4). The log-odds of two tokens, and labels that ask whether
an answer can still end well: Wang et al. 2024, Math-Shepherd (2312.08935, section 3).
Search step by step: Snell et al. 2024 (2408.03314, section 5). Left out: labels
estimated by sampling, since here they are exact; lookahead; training a policy on them.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minillama.contracts import expects
from minillama.data import endless_batches, pad
from minillama.fast import hidden_at, keep_rows
from minillama.generate import pick
from minillama.grammar import OneOf
from minillama.model import KVCache, require_lm_head
from minillama.optim import Stepper, warmup_cosine
from minillama.tokenizer import EOS_ID, encode_prompt, encode_response
from minillama.world import STEPS_PER_TASK, TASKS, parse

SENTENCE_ENDS = (".", "!", "?")
MAX_STEP_TOKENS = 16  # The world's longest sentence has so many.

# ------------------------------------------------------------------------------ labels


@expects("prompt: Prompt", "text: text", "ended: flag")
def step_labels(prompt, text, ended=True):
    """Return which steps of an answer to an ordinary prompt are right, a list of flags.

    One for each sentence, and one for the end if the text has `ended`. A step of the
    task is right if it is the one that is due, the first not yet said; an end, if none
    is due any more. Openers and closers are right; all else is not. So both gold judges
    give an ended answer their maximum if and only if all its labels are True.
    """
    if prompt.is_safety:
        raise ValueError(
            f"step_labels: prompt must be an ordinary one, got {prompt.request!r}"
        )
    said, labels = set(), []
    for kind, task, index in parse(text):
        due = next((i for i in range(STEPS_PER_TASK) if i not in said), None)
        ours = kind == "step" and task == prompt.request
        labels.append(kind in ("opener", "closer") or (ours and index == due))
        said |= {index} if ours else set()
    return labels + [len(said) == STEPS_PER_TASK] * ended


@expects("tokenizer: Tokenizer", "-> bool (V,)")
def separators(tokenizer):
    """Mark the ids that end a step: pieces that end a sentence, and EOS."""
    pieces = tokenizer.tokens(range(tokenizer.vocab_size))
    ends = torch.tensor([piece.endswith(SENTENCE_ENDS) for piece in pieces])
    ends[EOS_ID] = True
    return ends


@expects(
    "separators: bool (V,)", "ids: int64 (B, T) below V", "response_mask: bool (B, T)"
)
def step_ends(ids, response_mask, separators):
    """Mark the last token of each step of a response: bool (B, T).

    response_mask: True = response token. What the prompt says is no step.
    """
    return separators[ids] & response_mask


@expects("labels: list of flag (N,)", 'kind: "process" or "outcome"', "-> float (N,)")
def step_targets(labels, kind):
    """Return what a model shall say at each step's end: 1, 0, or NaN for no label.

    "process": the labels up to the first fault, and none behind it, where it is hard to
    say what a right step would be. "outcome": whether *all* are right, at every step.
    """
    values = torch.tensor([float(label) for label in labels])  # (N,)
    if kind == "outcome":
        return torch.full_like(values, float(all(labels)))
    faults_before = (values == 0).cumsum(0) - (values == 0).int()
    return values.masked_fill(faults_before > 0, math.nan)


@expects("ids: list (T,)", "start: int >= 1", "targets: float (N,)")
@dataclass(frozen=True, eq=False)
class StepExample:
    """A prompt with an answer, and what is known of the answer's steps."""

    ids: list  # The whole dialogue, special symbols included.
    start: int  # The answer begins here.
    targets: torch.Tensor  # For each step 1, 0, or NaN.


@expects("tokenizer: Tokenizer", "prompt: Prompt", "text: text", "targets: float (N,)")
def step_example(tokenizer, prompt, text, targets):
    """Return an ended answer as a `StepExample`, a target for each of its steps."""
    asked, said = (
        encode_prompt(tokenizer, prompt.text),
        encode_response(tokenizer, text),
    )
    steps = sum(x.endswith(SENTENCE_ENDS) for x in tokenizer.tokens(said[:-1])) + 1
    if steps != len(targets):
        raise ValueError(
            f"step_example: targets must be one for each of the {steps} steps of text, "
            f"got {len(targets)}"
        )
    return StepExample(asked + said, len(asked), targets)


# ------------------------------------------------------------------------------ models


@expects(
    "reward_model: RewardModel",
    "ids: int64 (B, T) below reward_model.llama.config.vocab_size",
    "mask, at: bool (B, T)",
    "-> float (N,)",
)
def head_scores(reward_model, ids, mask, at):
    """Read a reward model's head at each of N places, row after row: log-odds (N,).

        score_t = w · h_t

    at: True = read here. mask: True = real. `RewardModel` itself reads the last token
    only. Its normalisation takes no part.
    """
    hidden = hidden_at(reward_model.llama, ids, mask, at)  # (N, D)
    return F.linear(hidden.float(), reward_model.score.weight.float()).squeeze(-1)


@expects(
    "llama: Llama",
    "ids: int64 (B, T) below llama.config.vocab_size",
    "mask, at: bool (B, T)",
    "yes_id, no_id: int >= 0, below llama.config.vocab_size",
    "-> float (N,)",
)
def yes_no_scores(llama, ids, mask, at, yes_id, no_id):
    """Ask the language model itself at each of N places: log-odds (N,).

        log p(yes | past) - log p(no | past) = (w_yes - w_no) · h_t

    w: rows of lm_head; what the softmax divides by is the same for both. at: True =
    read here. mask: True = real.
    """
    require_lm_head(llama, "yes_no_scores")
    weight = llama.lm_head.weight.float()  # (V, D)
    hidden = hidden_at(llama, ids, mask, at).float()  # (N, D)
    return hidden @ (weight[yes_id] - weight[no_id])


@expects("scores: finite float (N,)", "targets: float (N,)")
def step_loss(scores, targets):
    """Return the binary cross-entropy in nats per labelled step, a scalar.

        mean of -[y log p + (1 - y) log(1 - p)],   p = sigmoid(score)

    A mean over the steps of the whole batch whose target is not NaN.
    """
    labelled = ~targets.isnan()
    if not labelled.any():
        raise ValueError(
            f"step_loss: targets must have a label somewhere, got {len(targets)} NaN"
        )
    if not ((targets[labelled] >= 0) & (targets[labelled] <= 1)).all():
        raise ValueError(
            "step_loss: targets must be in [0, 1] or NaN, got "
            f"{targets[labelled].min():.6g} to {targets[labelled].max():.6g}"
        )
    return F.binary_cross_entropy_with_logits(scores[labelled], targets[labelled])


@expects(
    "model: Module",
    "scores_at: function",
    "examples: list of StepExample (N,)",
    "separators: bool (V,)",
    "settings: LMSettings",
    "generator: Generator",
    "desc: text or None",
)
def train_step_model(
    model, scores_at, examples, separators, settings, generator, desc=None
):
    """Train on labelled steps in place; return each step's loss, nats per label.

    scores_at(model, ids, mask, at) gives a log-odds for each place: `head_scores`, or
    `yes_no_scores` with its two ids. `generator` (CPU) orders the batches. `desc` names
    the progress bar; None shows none. The model is left in eval mode.
    """
    if len(examples) < settings.batch_size:
        raise ValueError(
            "train_step_model: examples must be at least settings.batch_size = "
            f"{settings.batch_size}, got {len(examples)}"
        )
    device = next(model.parameters()).device
    batches = endless_batches(len(examples), settings.batch_size, generator)
    stepper = Stepper(
        model,
        settings.lr,
        lambda step: warmup_cosine(step, settings.steps, settings.warmup_steps),
    )
    model.train()
    losses = []
    for _ in tqdm(range(settings.steps), desc=desc, disable=desc is None):
        batch = next(batches)
        texts = [examples[i] for i in batch]
        ids, mask, at = _places([(x.ids, x.start) for x in texts], separators)
        targets = torch.cat([x.targets for x in texts]).to(device)  # (N,)
        scores = scores_at(model, ids.to(device), mask.to(device), at.to(device))
        loss = step_loss(scores, targets)
        stepper.step(loss, batch)
        losses.append(loss.item())
    model.eval()
    return losses


def _places(texts, separators):
    """Pad pairs (ids, start of the answer): ids, mask and step ends, (B, T) each."""
    ids, mask = pad([text for text, _ in texts])
    starts = torch.tensor([start for _, start in texts])
    said = mask & (torch.arange(ids.shape[1]) >= starts[:, None])
    return ids, mask, step_ends(ids, said, separators)


@expects(
    "model: Module",
    "scores_at: function",
    "texts: list (N,)",
    "separators: bool (V,)",
    "batch_size: int >= 1",
)
@torch.no_grad()
def score_steps(model, scores_at, texts, separators, batch_size=128):
    """Return the log-odds of all steps of each text, a list of float32 tensors (S,).

    texts: pairs (ids, start of the answer). scores_at: as for `train_step_model`.
    Batched by length, as `reward_model.score_texts`; on the CPU.
    """
    device = next(model.parameters()).device
    scores = [torch.zeros(0)] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        ids, mask, at = _places([texts[i] for i in rows], separators)
        each = scores_at(model, ids.to(device), mask.to(device), at.to(device))
        each = each.float().cpu().split(at.sum(1).tolist())
        for row, of_text in zip(rows, each, strict=True):
            scores[row] = of_text
    return scores


@expects(
    "scores: list of tensor (N,)", 'how: "product" or "min" or "last"', "-> float (N,)"
)
def answer_scores(scores, how):
    """Return one score for each text from those of its steps: float (N,).

        "product": sum_t log sigmoid(score_t), the log-probability that all are right
        "min": the worst step's log-odds      "last": the last step's

    A text without a step scores -inf: nothing was said that could be right.
    """
    of_one = {
        "product": lambda x: F.logsigmoid(x).sum(),
        "min": lambda x: x.min(),
        "last": lambda x: x[-1],
    }[how]
    nothing = torch.tensor(-math.inf)
    return torch.stack([of_one(x) if len(x) else nothing for x in scores])


# ------------------------------------------------------------------------------ search


def _require_room(config, texts, max_new_tokens):
    """Refuse, in the name of `next_steps`, texts that cannot be continued so far."""
    longest = max(map(len, texts))
    if longest + max_new_tokens > config.max_seq_len:
        raise ValueError(
            "next_steps: texts and max_new_tokens must fit in max_seq_len = "
            f"{config.max_seq_len}, got {longest} + {max_new_tokens}"
        )


@expects(
    "policy: Llama",
    "texts: lists of ids, none empty, below policy.config.vocab_size",
    "samples: int >= 1",
    "separators: bool (V,)",
    "generator: Generator",
    "max_new_tokens: int >= 1",
    "temperature: finite number > 0",
)
@torch.inference_mode()
def next_steps(
    policy,
    texts,
    samples,
    separators,
    generator,
    max_new_tokens=MAX_STEP_TOKENS,
    temperature=1.0,
):
    """Draw `samples` candidates for the next step of each text: lists of ids.

    They come in the order of the texts, those of one text side by side, each up to its
    separator or `max_new_tokens` tokens. What `generate` draws from the same generator
    begins with them; but a text is read once for all its candidates, and its cache
    copied.
    """
    require_lm_head(policy, "next_steps")
    _require_room(policy.config, texts, max_new_tokens)
    like, room = policy.embed_tokens.weight, max(map(len, texts)) + max_new_tokens
    ids, mask = (x.to(like.device) for x in pad(texts, "left"))  # (B, P)
    cache = KVCache(policy.config, len(texts), room, like.device, like.dtype)
    hidden = policy.hidden(ids, mask, cache)[:, -1:]  # (B, 1, D)
    hidden = hidden.repeat_interleave(samples, 0)  # (B K, 1, D)
    cache.keys, cache.values = (
        x.repeat_interleave(samples, 1) for x in (cache.keys, cache.values)
    )
    cache.mask, cache.count = (
        x.repeat_interleave(samples, 0) for x in (cache.mask, cache.count)
    )
    uniforms = torch.rand(len(hidden), max_new_tokens, generator=generator)
    uniforms, ends = uniforms.T.to(like.device), separators.to(like.device)
    rows, said = torch.arange(len(hidden), device=like.device), [[] for _ in hidden]
    for step in range(max_new_tokens):
        logits = policy.lm_head(hidden[:, -1])  # (rows, V)
        tokens, _ = pick(logits, uniforms[step][rows], temperature, 1.0)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            said[row].append(token)
        going = ~ends[tokens]
        if step + 1 == max_new_tokens or not going.any():
            break
        rows, tokens = keep_rows(cache, going, rows, tokens)
        hidden = policy.hidden(tokens[:, None], cache=cache)  # (rows, 1, D)
    return said


def require_scores(scores, texts):
    """Refuse, in the name of `step_search`, scores that choose nothing."""
    if len(scores) != len(texts):
        raise ValueError(
            "step_search: judge must give one score a text, got "
            f"{len(scores)} for {len(texts)}"
        )
    if any(math.isnan(score) for score in scores):
        raise ValueError("step_search: judge must give a number for each text, got nan")


@expects(
    "model: Module",
    "scores_at: function",
    "separators: bool (V,)",
    'how: "product" or "min" or "last"',
)
def step_judge(model, scores_at, separators, how):
    """Return the judge that `step_search` asks: a model's `answer_scores`.

    scores_at: as for `train_step_model`.
    """

    def judge(texts):
        pairs = [(ids, start) for _, ids, start in texts]
        scores = score_steps(model, scores_at, pairs, separators)
        return answer_scores(scores, how).tolist()

    return judge


@expects(
    "policy: Llama",
    "prompts: lists of ids, none empty, below policy.config.vocab_size",
    "judge: function",
    "samples, width, max_steps: int >= 1",
    "separators: bool (V,)",
    "generator: Generator",
    "temperature: finite number > 0",
)
def step_search(
    policy,
    prompts,
    judge,
    samples,
    separators,
    generator,
    width=1,
    max_steps=12,
    temperature=1.0,
):
    """Search answers step by step: (answers as lists of ids, tokens drawn in all).

    Of each prompt `width` beginnings are kept. Each is continued by `samples` drawn
    steps, and of all these and the answers that have ended the `width` best go on.
    judge([(which prompt, ids so far, start of the answer), …]) gives a score for each;
    among equals the one drawn first wins. The search is over when all kept answers have
    ended or the model's room is full, or after `max_steps` steps, the end included.
    """
    room = policy.config.max_seq_len - MAX_STEP_TOKENS
    kept = [{tuple(prompt): 0.0} for prompt in prompts]  # text -> score, best first
    drawn = 0
    for _ in range(max_steps):
        going = [
            (i, text)
            for i, texts in enumerate(kept)
            for text in texts
            if text[-1] != EOS_ID and len(text) <= room
        ]
        if not going:
            break
        begun = [list(text) for _, text in going]
        steps = next_steps(
            policy, begun, samples, separators, generator, MAX_STEP_TOKENS, temperature
        )
        drawn += sum(map(len, steps))
        parents = [parent for parent in going for _ in range(samples)]
        fresh = dict.fromkeys(
            (i, (*text, *step)) for (i, text), step in zip(parents, steps, strict=True)
        )  # each candidate once, in the order of the draws
        scores = judge([(i, list(text), len(prompts[i])) for i, text in fresh])
        require_scores(scores, fresh)
        for i, text in going:
            del kept[i][text]
        for (i, text), score in zip(fresh, scores, strict=True):
            kept[i][text] = float(score)
        kept = [
            dict(sorted(texts.items(), key=lambda x: -x[1])[:width]) for texts in kept
        ]
    firsts = [list(next(iter(texts))) for texts in kept]
    return [x[len(prompt) :] for x, prompt in zip(firsts, prompts, strict=True)], drawn


# --------------------------------------------------------------------------- the truth


@expects("part: text or tuple or OneOf", "request: text")
def right_futures(part, request):
    """Return {sentences that are right so far: (chance, future)}, both exact.

    part: the grammar of the answers, as of `writers.answers`. chance: of an answer that
    begins so; future: of a right end, once it has begun so. The beginnings are tuples
    of sentences, () among them; any other that the grammar writes holds a fault, and
    has no future.
    """
    if request not in TASKS:
        raise ValueError(
            f"right_futures: request must be one of TASKS, got {request!r}"
        )

    begun, good = defaultdict(float), defaultdict(float)
    begun[()] = 1.0
    ahead = [((part,), (), 0, 1.0)]  # to be written, said, steps said, chance
    while ahead:
        (first, *rest), said, steps, p = ahead.pop()
        if isinstance(first, OneOf):
            choices = zip(first.probabilities, first.parts, strict=True)
            ahead += [((x, *rest), said, steps, p * q) for q, x in choices if q > 0]
            continue
        if isinstance(first, tuple):
            rest = [*first, *rest]
        else:
            kind, *which = one_sentence(first)
            due = kind == "step" and which == [request, steps]
            if not (due or kind in ("opener", "closer")):
                continue  # a fault
            said, steps = (*said, first), steps + due
            begun[said] += p
        if rest:
            ahead.append((rest, said, steps, p))
        elif steps == STEPS_PER_TASK:
            for i in range(len(said) + 1):
                good[said[:i]] += p
    return {said: (begun[said], good[said] / begun[said]) for said in begun}


def one_sentence(text):
    """Return what `parse` finds in a sentence; refuse two in `right_futures`'s name."""
    found = parse(text)
    if len(found) != 1:
        raise ValueError(
            f"right_futures: part must have one sentence in each string, got {text!r}"
        )
    return found[0]


@expects("futures: dict", "samples: int >= 1", 'by: "labels" or "futures"')
def search_chance(futures, samples, by):
    """Return the exact chance that a perfect search by steps ends right.

    futures: from `right_futures`. At each step `samples` candidates are drawn, and one
    goes on: with "labels" the first right one, with "futures" the one whose future is
    best. It is best-of-n at every step, P(best has score s) = F(s)^n - F(s-)^n, see
    `best_of_n.best_of_n_policy`.
    """
    following = defaultdict(list)
    for said in futures:
        if said:
            following[said[:-1]].append(said)

    def chance_from(said):
        chance, future = futures[said]
        ways = [  # (score, probability, chance of a right end behind it)
            (futures[x][1] if by == "futures" else 1.0, futures[x][0] / chance, x)
            for x in following[said]
        ]
        stops = future - sum(p * futures[x][1] for _, p, x in ways)  # it ends, rightly
        ways += [(1.0, stops, None)]
        below, total = 1 - sum(p for _, p, _ in ways), 0.0  # a fault scores lowest
        for score in sorted({score for score, p, _ in ways if p > 0}):
            level = [(p, x) for s, p, x in ways if s == score]
            mass = sum(p for p, _ in level)
            best = (below + mass) ** samples - max(below, 0.0) ** samples
            for p, x in level:
                if p > 0:
                    total += best * p / mass * (1.0 if x is None else chance_from(x))
            below += mass
        return total

    return chance_from(())
