"""Five training runs, each of them well and with one fault: the clinic of lesson 28.

Diagnose them by their curves first: the line that is wrong stands below, beside the
word `sick`.

Each run takes a `Setup`, whether it is sick and a generator, and returns its curves: a
dict from the name of a number to its value at every step. All happen where the truth is
known: a text whose entropy is exact, and the enumerable world of exact.py, in which a
policy is a table of logits (policy_gradient.py). Left out: whatever makes a run slow.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillama import exact
from minillama.dpo import dpo_loss
from minillama.exact import Responses, response_kl, rises
from minillama.grpo import group_advantages, live_groups
from minillama.lm import lm_loss
from minillama.model import Llama, LlamaConfig
from minillama.optim import Stepper
from minillama.policy_gradient import table_logprobs, token_states
from minillama.preference_loss import bradley_terry_loss
from minillama.reward_model import RewardModel

SYMBOLS, LENGTH, BATCH = 8, 16, 64


@dataclass(frozen=True)
class Setup:
    """What all runs of one seed share."""

    chain: Tensor  # (8, 8): the chances of the next symbol of a text, given the last.
    usual: Tensor  # (8,): how often each symbol comes in a long text.
    responses: Responses  # All 781 responses of the enumerable world.
    gold: Tensor  # (781,): how good each is, -3 to 3.
    states: Tensor  # (781, T): the state in which each of their tokens is chosen.
    home: Tensor  # (S, V): the logits of the policy that runs start from.
    body: Llama  # A small model that a judge starts from.

    def logp(self, table):
        """Return the log-probability of each response under a table, (781,)."""
        return table_logprobs(table, self.states, self.responses).sum(1)

    def drawn(self, table, count, generator):
        """Draw the numbers of `count` responses from a table's policy."""
        chances = self.logp(table).detach().exp()
        return torch.multinomial(chances, count, True, generator=generator)

    def compared(self, count, generator):
        """Draw pairs from home and an annotator's choice: (chosen, rejected)."""
        a, b = (self.drawn(self.home, count, generator) for _ in range(2))
        chance = torch.sigmoid(self.gold[a] - self.gold[b])
        wins = torch.rand(count, generator=generator, dtype=torch.float64) < chance
        return torch.where(wins, a, b), torch.where(wins, b, a)


def new_setup(generator):
    """Return a `Setup` of random texts and policies."""
    logits = 1.5 * torch.randn(SYMBOLS, SYMBOLS, generator=generator)
    chain = logits.double().softmax(-1)
    responses = exact.enumerate_responses(
        exact.PROMPT_IDS, exact.VOCAB_SIZE, exact.MAX_NEW_TOKENS
    )
    states = token_states(responses)
    shape = int(states.max()) + 1, exact.VOCAB_SIZE
    home = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Setup(
        chain,
        torch.linalg.matrix_power(chain, 100)[0],
        responses,
        rises(responses.ids, responses.mask).double(),
        states,
        home,
        exact.small_policy(generator),
    )


def text(setup, generator):
    """Write a batch of texts, one symbol after the other: (BATCH, LENGTH)."""
    ids = torch.multinomial(setup.usual, BATCH, True, generator=generator)[:, None]
    for _ in range(LENGTH - 1):
        following = torch.multinomial(setup.chain[ids[:, -1]], 1, generator=generator)
        ids = torch.cat((ids, following), 1)
    return ids


def share_right(differences):
    """Return how often a difference is above 0; a tie counts one half."""
    return (0.5 + 0.5 * torch.sign(differences)).mean().item()


def columns(rows):
    """Turn a dict for each step into a list for each name."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def language_model(setup, sick, generator, steps=80):
    """A: a small model learns to continue the text."""
    model = Llama(LlamaConfig(SYMBOLS, 32, 1, 4, 2, 64, LENGTH), generator)
    stepper, rows = Stepper(model, lr=5e-3), []
    for step in range(steps):
        ids = labels = text(setup, generator)
        if sick:
            ids, labels = ids[:, :-1], ids[:, 1:]  # lm_loss shifts, too
        counted = torch.ones_like(labels, dtype=torch.bool)
        counted[:, 0] = False
        logits = model(ids)
        loss = lm_loss(logits, labels, counted)
        norm = stepper.step(loss, [step]).item()
        right = (logits[:, :-1].argmax(-1) == labels[:, 1:]).double().mean().item()
        rows.append({"loss": loss.item(), "gradient norm": norm, "accuracy": right})
    return columns(rows)


def reward_model(setup, sick, generator, steps=120):
    """B: a judge learns from comparisons."""
    judge = RewardModel(setup.body, generator=generator)
    stepper, rows = Stepper(judge, lr=3e-3), []
    ids, mask = setup.responses.ids, setup.responses.mask
    fresh = setup.compared(2000, generator)
    for step in range(steps):
        chosen, rejected = setup.compared(BATCH, generator)
        of_chosen, of_rejected = mask[chosen], mask[rejected]
        if sick:
            of_rejected = cut(of_rejected)  # an off-by-one on one of the two sides
        both = ids[torch.cat((chosen, rejected))], torch.cat((of_chosen, of_rejected))
        better, worse = judge(*both).chunk(2)
        loss = bradley_terry_loss(better, worse)
        stepper.step(loss, [step])
        with torch.no_grad():
            scores = judge(ids, mask)
        seen, unseen = better - worse, scores[fresh[0]] - scores[fresh[1]]
        row = {"loss": loss.item(), "accuracy": share_right(seen.double())}
        rows.append(row | {"accuracy on fresh pairs": share_right(unseen.double())})
    return columns(rows)


def cut(mask):
    """Return a mask, padded on the right, without each row's last token."""
    return mask & mask.roll(-1, 1) & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)


def reinforce(setup, sick, generator, steps=200, beta=0.5, rate=1.0):
    """C: a policy climbs gold less a price, by REINFORCE and plain descent."""
    table = setup.home.clone().requires_grad_()
    total, rows = torch.zeros_like(table), []
    home = setup.logp(setup.home)
    for _ in range(steps):
        drawn = setup.drawn(table, BATCH, generator)
        logp = setup.logp(table)
        rewards = setup.gold[drawn] - beta * (logp - home)[drawn].detach()
        loss = -((rewards - rewards.mean()) * logp[drawn]).mean()
        gradient = torch.autograd.grad(loss, table)[0]
        total = total + gradient if sick else gradient  # nobody sets it to zero
        with torch.no_grad():
            table -= rate * total
        row = {"score": setup.gold[drawn].mean().item()}
        row |= {"KL": response_kl(logp, home).item(), "J": rewards.mean().item()}
        row |= {"gradient norm": total.norm().item()}
        rows.append(row | {"norm of this batch": gradient.norm().item()})
    return columns(rows)


def direct(setup, sick, generator, steps=200, beta=0.5):
    """D: a policy learns from comparisons by DPO."""
    table = setup.home.clone().requires_grad_()
    adam, rows = torch.optim.Adam([table], lr=0.03), []
    home = setup.logp(setup.home)
    for _ in range(steps):
        chosen, rejected = setup.compared(BATCH, generator)
        logp = setup.logp(table)
        reference = logp.detach() if sick else home  # "the policy as it was before"
        four = logp[chosen], logp[rejected], reference[chosen], reference[rejected]
        loss = dpo_loss(*four, beta)
        adam.zero_grad()
        loss.backward()
        adam.step()
        apart = ((logp - reference)[chosen] - (logp - reference)[rejected]).detach()
        row = {"loss": loss.item(), "accuracy": share_right(apart)}
        rows.append(row | {"KL": response_kl(logp, home).item()})
    return columns(rows)


def groups(setup, sick, generator, steps=200, size=4):
    """E: a policy climbs without a value model, by groups of answers."""
    table = setup.home.clone().requires_grad_()
    adam, rows = torch.optim.Adam([table], lr=0.05), []
    paid = setup.gold.clamp(-1, 1) if sick else setup.gold  # "for stability"
    for _ in range(steps):
        drawn = setup.drawn(table, BATCH, generator)
        logp = setup.logp(table)
        advantages = group_advantages(paid[drawn], size, scale="none")
        loss = -(advantages * logp[drawn]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        live = live_groups(paid[drawn], size).double().mean().item()
        row = {"reward": paid[drawn].mean().item(), "live groups": live}
        row |= {"gradient norm": table.grad.norm().item()}
        rows.append(row | {"gold": (logp.exp() * setup.gold).sum().item()})
    return columns(rows)


RUNS = {
    "A": language_model,
    "B": reward_model,
    "C": reinforce,
    "D": direct,
    "E": groups,
}
