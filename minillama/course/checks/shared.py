"""What checks of several lessons share: numbers, texts, comparisons, models."""

import torch

from minillama import world

NOTHING = torch.tensor(0.0)


def randomised(module, seed=0):
    """Return the module with every parameter, norms too, drawn anew and large."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
    return module


def gap(got, expected):
    """Return the largest difference, a number that a message can show."""
    if not isinstance(got, torch.Tensor):
        return got
    if got.shape != expected.shape:
        return tuple(got.shape)
    return (got.detach() - expected.detach()).abs().max()


def in_pieces(call, cache, x, mask):
    """Return call(x, mask, cache) joined over pieces of x (B, T, …), or its error.

    The pieces have two columns, one and the rest. A cache that is not used shows as
    shapes that do not fit.
    """
    sizes = [2, 1, x.shape[1] - 3]
    pieces = zip(x.split(sizes, 1), mask.split(sizes, 1), strict=True)
    try:
        with torch.no_grad():
            return torch.cat([call(x, mask, cache) for x, mask in pieces], 1)
    except NotImplementedError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"


def wrong_gradients(module, got, expected, **inputs):
    """Return the names of weights, and of inputs, that feel `got` in a wrong way.

    The gradient is that of a sum with random shares, so that nothing cancels.
    """
    leaves = dict(module.named_parameters()) | inputs
    wrong = [name for name, x in leaves.items() if not x.requires_grad]
    if wrong or not got.requires_grad:
        return wrong or sorted(leaves)
    shares = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    slopes = (
        torch.autograd.grad(
            (result * shares).sum(),
            leaves.values(),
            retain_graph=True,
            allow_unused=True,
        )
        for result in (got, expected)
    )
    for name, one, other in zip(leaves, *slopes, strict=True):
        if one is None or (one - other).abs().max() > 1e-4 * other.abs().max():
            wrong.append(name)
    return wrong


# spaces, letters, line ends and symbols where a careless hand would lose them
TYPED = "  Ab [INST]\n <s> ab </s>[/INST]  b \n "


def counted():
    """Return counts of pairs, new ones each time, so that nobody can spoil them.

    0 came once, 1 three times, 2 never; 2 stands before nothing that counts.
    """
    return torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).double()


REQUEST = world.Prompt("How do I boil an egg?", "boil an egg", False)


def kind(value):
    """Return float for a plain number, a subclass's too, else the type."""
    return float if isinstance(value, float) else type(value)


def kinds(values):
    """Return `kind` of each of several values."""
    return [kind(x) for x in values]


def normal(*shape, seed=0, scale=1.0):
    """Return normal random numbers, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator)


def compared(*pairs, request=REQUEST):
    """Return preferences between texts (chosen, rejected), nothing else said."""
    return [
        world.Preference(request, chosen, rejected, 0, True, True)
        for chosen, rejected in pairs
    ]


def ragged():
    """Return a response_mask of five answers of 3, 1, 4, 2 and 5 tokens, (5, 6)."""
    starts, ends = (
        torch.tensor([[1], [2], [1], [4], [1]]),
        torch.tensor([4, 3, 5, 6, 6]),
    )
    at = torch.arange(6)
    return (at >= starts) & (at < ends[:, None])


def three_answers():
    """Return logprobs and scores of three answers: of (.5, .3, .2), and (0, 1, 2)."""
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return probabilities.log(), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
