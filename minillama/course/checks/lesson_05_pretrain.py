"""Checks of 05_pretrain."""

import math

import torch

from minillama.course.checks.case import check, error_of, gradient, row


@check
def token_logprobs(f):
    """Check `token_logprobs(logits, ids)`."""
    logits = torch.log(
        torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]])
    )
    yield (
        "by hand: ln .7 and ln .3",
        f(logits, torch.tensor([[0, 2, 1]])),
        row(0.0, math.log(0.7), math.log(0.3)),
        "the logits at t predict the token at t + 1; entry 0 is 0",
    )
    yield (
        "logits need not be normalised",
        f(logits + 5, torch.tensor([[0, 2, 1]])),
        row(0.0, math.log(0.7), math.log(0.3)),
        "log_softmax over the vocabulary",
    )
    two, ids = (
        torch.cat((logits, logits.flip(-1) + 1)),
        torch.tensor([[0, 2, 1], [1, 2, 0]]),
    )
    before = two.clone(), ids.clone()
    by_hand = torch.tensor([[0.7, 0.3], [0.1, 0.2]]).log()
    yield (
        "two texts, each by its own logits and ids",
        f(two, ids)[:, 1:],
        by_hand,
        "the second text has 0.1 and 0.2",
    )
    yield (
        "logits and ids stay as they were",
        torch.equal(two, before[0]) and torch.equal(ids, before[1]),
        True,
        "compute a new tensor",
    )
    shares = two.softmax(-1)[:, :2]
    slopes = torch.nn.functional.one_hot(ids[:, 1:], 3) - shares
    yield (
        "the gradient at the logits",
        gradient(lambda x: f(x, ids), two),
        torch.cat((slopes, torch.zeros(2, 1, 3)), 1),
        "1 - p at the token that came, -p at the others, 0 after the last token; "
        "detach nothing",
    )
    yield (
        "every id of six has a log-probability, symbols and padding too",
        f(torch.zeros(1, 7, 6), torch.tensor([[0, 1, 2, 3, 4, 5, 0]])),
        row(0.0, *[-math.log(6)] * 6),
        "ignore no id; whoever calls has a mask",
    )
    yield (
        "logits 0 and 300 far apart",
        f(torch.tensor([[[0.0, 300.0], [0.0, 300.0], [0.0, 0.0]]]), ids[:1] % 2),
        row(0.0, -300.0, 0.0),
        "log_softmax, not the log of a softmax, which is 0 here; clamp nothing",
    )


@check
def lm_loss(f):
    """Check `lm_loss(logits, ids, loss_mask)`."""
    logits = torch.log(torch.tensor([[0.25, 0.75]])).expand(2, 4, 2)
    ids = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0]])
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    quarter, rest = -math.log(0.25), -math.log(0.75)
    yield (
        "mean over counted tokens",
        f(logits, ids, mask),
        torch.tensor((2 * quarter + 2 * rest) / 4),
        "four tokens count; a mean of the two rows' means is another number",
    )
    only = torch.tensor([[False, False, True, False], [False] * 4])
    yield (
        "one token",
        f(logits, ids, only),
        torch.tensor(rest),
        "what does not count has no share",
    )
    sure = torch.tensor([[0.0, 40.0], [40.0, 0.0], [40.0, 0.0], [0.0, 40.0]])[None]
    yield (
        "logits that know the next token have no loss",
        f(
            sure,
            torch.tensor([[0, 1, 0, 0]]),
            torch.tensor([[False, True, True, True]]),
        ),
        torch.tensor(0.0),
        "the logits at t predict the token at t + 1",
    )
    slopes = gradient(lambda x: f(x, ids, mask), logits)
    yield (
        "only logits before a counted token feel the loss",
        (slopes.abs().amax(-1) > 0).int(),
        torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]),
        "select with the mask after the shift; detach nothing",
    )
    yield (
        "more logit at a token that came lowers the loss, by its share",
        slopes[1, 0],
        torch.tensor([-0.75, 0.75]) / 4,
        "(p - 1) / 4 at the token that came, p / 4 at the other",
    )
    yield (
        "chances .1, .2, .3 and .4 of ids 0 to 3, each of which comes once",
        f(
            torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 5, 4),
            torch.tensor([[0, 1, 2, 3, 0]]),
            torch.tensor([[False, True, True, True, True]]),
        ),
        torch.tensor(-math.log(0.1 * 0.2 * 0.3 * 0.4) / 4),
        "the mask alone says what counts, not the ids",
    )
    yield (
        "ids and mask stay as they were",
        torch.stack((ids, mask.long())),
        torch.tensor([[[0, 0, 1, 1], [1, 0, 0, 0]], [[0, 1, 1, 1], [0, 1, 0, 0]]]),
        "change no argument",
    )
    late = torch.tensor([[False, True, True, True], [True, True, False, False]])
    yield (
        "a token in column 0, of the second row alone, has no past",
        error_of(lambda: f(logits, ids, late)),
        ValueError,
        "refuse it in any row",
    )
    yield (
        "a mask of floats is refused",
        error_of(lambda: f(logits, ids, mask.float())),
        TypeError,
        "look at its dtype",
    )


@check
def warmup_cosine(f):
    """Check `warmup_cosine(step, total_steps, warmup_steps)`."""
    share = [f(step, 110, 10) for step in (0, 4, 9, 10, 60, 110)]
    yield (
        "up in a line, down along a cosine",
        torch.tensor(share),
        torch.tensor([0.1, 0.5, 1.0, 1.0, 0.5, 0.0]),
        "(step + 1) / 10 first; then (1 + cos(pi * done)) / 2 with done = 0, 1/2, 1",
    )
    yield ("no warm-up", f(0, 10, 0), 1.0, "begin at the peak")
    yield (
        "a quarter of the way down",
        round(f(35, 110, 10), 6),
        0.853553,
        "(1 + cos(pi / 4)) / 2, above a straight line",
    )
    yield (
        "after the end it stays at 0",
        round(f(300, 110, 10), 6),
        0.0,
        "done is at most 1",
    )
    yield (
        "4 steps of warm-up in 12",
        torch.tensor([f(step, 12, 4) for step in (1, 3, 8)]),
        torch.tensor([0.5, 1.0, 0.5]),
        "divide by warmup_steps, then by total_steps - warmup_steps",
    )


def _adam_by_hand(weight, gradients, lrs, betas):
    """Where AdamW without decay goes, step after step: list of (1, 2) tensors."""
    mean, square, places = 0.0, 0.0, []
    for t, (slope, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
        mean = betas[0] * mean + (1 - betas[0]) * slope
        square = betas[1] * square + (1 - betas[1]) * slope**2
        corrected = mean / (1 - betas[0] ** t), square / (1 - betas[1] ** t)
        weight = weight - lr * corrected[0] / (corrected[1].sqrt() + 1e-8)
        places.append(weight)
    return places


@check
def stepper(f):
    """Check `Stepper(model, lr, schedule, betas, max_norm)`, the class."""
    start = torch.tensor([1.0, -1.0, 2.0])

    def fresh(lr=0.1, **settings):
        network = torch.nn.Linear(2, 1)  # two parameters: two weights and a bias
        with torch.no_grad():
            network.weight.copy_(start[:2])
            network.bias.copy_(start[2:])
        return network, f(network, lr, **settings)

    def now(network):
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    def loss(network, *slopes):
        """A loss with these slopes."""
        here = torch.cat([p.flatten() for p in network.parameters()])
        return (here * torch.tensor(slopes)).sum()

    def stopped(step):
        """What the error says of step and batch, if the right one comes."""
        try:
            step()
        except FloatingPointError as error:
            return str(error)
        return "no error"

    network, descent = fresh(schedule=lambda step: (0.5, 1.0)[step], max_norm=1.0)
    norm = descent.step(loss(network, 3.0, -4.0, 12.0), [0])
    yield (
        "the norm before clipping",
        torch.as_tensor(norm).detach(),
        torch.tensor(13.0),
        "sqrt(9 + 16 + 144), over all parameters; step returns it",
    )
    yield (
        "Adam's first step is lr in each direction",
        now(network),
        torch.tensor([0.95, -0.95, 1.95]),
        "lr times the schedule's share, 0.1 * 0.5, against the gradient's sign",
    )
    # a loss that is not finite though its gradient is
    said = stopped(
        lambda: descent.step(loss(network, 1.0, 1.0, 1.0) + math.nan, [7, 8])
    )
    yield (
        "a loss that is not finite stops the run and names step and batch",
        ("step 1" in said, "[7, 8]" in said),
        (True, True),
        "raise a FloatingPointError that names the step, counted from 0, and the ids "
        "of the batch",
    )
    yield (
        "the last good weights are back",
        now(network),
        start,
        "those of the last finite loss, all parameters",
    )

    network, descent = fresh(
        0.2, schedule=lambda step: 1 / (step + 1), betas=(0.5, 0.75), max_norm=2.0
    )
    slopes = ((3.0, -4.0, 12.0), (0.3, 0.4, 0.0), (1.0, 0.0, -1.0))
    places = []
    for slope in slopes:
        descent.step(loss(network, *slope), [0])
        places.append(now(network))
    # the first gradient has a norm of 13 and is shortened to 2
    gradients = [torch.tensor(slope) for slope in slopes]
    by_hand = _adam_by_hand(
        start,
        [2 / 13 * gradients[0], *gradients[1:]],
        (0.2, 0.1, 0.2 / 3),
        (0.5, 0.75),
    )
    yield (
        "three steps by hand",
        torch.stack(places),
        torch.stack(by_hand),
        "clip all gradients together, to a norm of 2; forget each after its step; use "
        "the betas, no decay, and the schedule's share of lr",
    )
    # the square root has an infinite slope at 0
    steep = sum((p - p.detach()).sqrt().sum() for p in network.parameters())
    yield (
        "a finite loss with an infinite gradient stops the run",
        "step 3" in stopped(lambda: descent.step(steep, [0])),
        True,
        "look at the gradient's norm too, before the step; good steps count",
    )
    yield (
        "the last good weights are those before the latest good step",
        now(network),
        places[1],
        "renew last_good at each step with a finite loss and gradient",
    )
    network, descent = fresh(schedule=lambda step: 1.0)
    gradients = [gradients[0] / 13, gradients[1], gradients[2] / math.sqrt(2)]
    for slope in slopes:
        descent.step(loss(network, *slope), [0])
    yield (
        "three steps with betas and max_norm left out",
        now(network),
        _adam_by_hand(start, gradients, (0.1,) * 3, (0.9, 0.95))[-1],
        "betas 0.9 and 0.95, max_norm 1",
    )
    network, descent = fresh(schedule=lambda step: 1.0)
    lost = loss(network, 1.0, 1.0, 1.0) * math.inf
    yield (
        "a first loss that is not finite stops the run too",
        ("step 0" in stopped(lambda: descent.step(lost, [5])), now(network).tolist()),
        (True, start.tolist()),
        "the first weights are the last good ones until a step is made",
    )
    network, descent = fresh(schedule=lambda step: math.inf)
    stop = stopped(lambda: descent.step(loss(network, 1.0, 1.0, 1.0), [5]))
    yield (
        "a step that breaks the weights is refused and taken back",
        ("step 0" in stop, now(network).tolist()),
        (True, start.tolist()),
        "look at the weights after the step as well",
    )
