"""Checks of 27_scaling."""

import torch

from minillama.course.checks.case import check, error_of, tiny_config


def _sizes(**changes):
    """Settings in which no two sizes agree: 3 layers, 6 heads of 4, 2 for keys."""
    sizes = {"vocab_size": 11, "dim": 24, "n_layers": 3, "n_heads": 6}
    sizes |= {"n_kv_heads": 2, "ffn_dim": 20, "max_seq_len": 64}
    return tiny_config(**sizes | changes)


@check
def flops_per_token(f):
    """Check `flops_per_token(config, length, training)`."""
    one = tiny_config()  # a block of 2 x 32 x 32, 2 x 32 x 16 and 3 x 32 x 16; 32 x 11
    yield (
        "one layer, one token, forward",
        f(one, 1, training=False),
        2 * (2048 + 1024 + 1536 + 352) + 4 * 32,
        "2 N for the weights, 4 L H E T for queries, keys and values",
    )
    yield (
        "ten tokens: only attention grows",
        f(one, 10, training=False) - f(one, 1, training=False),
        4 * 32 * 9,
        "each query meets all T keys, and mixes all T values",
    )
    yield (
        "training",
        f(one, 10),
        3 * (2 * 4960 + 4 * 32 * 10),
        "forward, and twice as much backward, attention included",
    )
    yield (
        "three layers of other sizes, seven tokens",
        f(_sizes(), 7, training=False),
        2 * (3 * (2 * 576 + 2 * 192 + 3 * 480) + 264) + 4 * 3 * 24 * 7,
        "N counts key and value matrices of D x K E; attention counts query heads",
    )
    yield (
        "heads of size 10, which make more than the width",
        f(_sizes(head_size=10), 5, training=False),
        2 * (3 * (2 * 24 * 60 + 2 * 24 * 20 + 3 * 480) + 264) + 4 * 3 * 60 * 5,
        "H E is n_heads * head_dim, not always the width",
    )
    yield (
        "a tied output matrix",
        f(_sizes(tie_embeddings=True), 7) - f(_sizes(), 7),
        0,
        "it multiplies all the same",
    )


@check
def attainable(f):
    """Check `attainable(intensity, peak, bandwidth)`."""
    yield (
        "few FLOPs a byte: memory decides",
        f(2.0, 100.0, 20.0),
        40.0,
        "FLOPs a byte times bytes a second",
    )
    yield (
        "many FLOPs a byte: arithmetic decides",
        f(50.0, 100.0, 20.0),
        100.0,
        "no machine is faster than its peak",
    )
    yield (
        "at the ridge",
        f(5.0, 100.0, 20.0),
        100.0,
        "both sides meet at peak / bandwidth",
    )
    yield (
        "large numbers: an A100 on one text and on 1,024",
        [f(1.0, 312e12, 2.0e12), f(1024.0, 312e12, 2.0e12)],
        [2.0e12, 312e12],
        "the smaller of the two",
    )
    yield (
        "a slow machine with a fast memory",
        f(0.5, 3.0, 40.0),
        3.0,
        "the smaller of the two",
    )


@check
def saved_bytes(f):
    """Check `saved_bytes(config, batch, length)`."""
    one = tiny_config()  # D = H E = 32, K E = 16, F = 16, H = 2
    yield (
        "one layer, one text of one token",
        f(one, 1, 1),
        4 * (6 * 32 + 2 * 32 + 2 * 16 + 4 * 16 + 2 + 2 + 3 * 32 + 1 + 16),
        "4 bytes a number; the last norm and the angles, T E, come once",
    )
    yield (
        "a batch of five instead of one",
        f(one, 5, 1) - f(one, 1, 1),
        4 * 4 * (256 + 32 + 64 + 4 + 97),
        "everything but the angles",
    )
    yield (
        "four tokens: the softmax has T x T numbers a head",
        f(one, 1, 4),
        4 * (4 * (256 + 32 + 64 + 2 * 4 + 2 + 97) + 4 * 16),
        "H T numbers for each of B T tokens",
    )
    yield (
        "three layers of other sizes",
        f(_sizes(), 2, 7),
        4 * (14 * (3 * (6 * 24 + 2 * 24 + 2 * 8 + 4 * 20 + 6 * 7 + 2) + 73) + 7 * 4),
        "blocks count L times, the last norm and the angles once",
    )
    yield (
        "heads of size 10",
        f(_sizes(head_size=10), 2, 7),
        4 * (14 * (3 * (6 * 24 + 2 * 60 + 2 * 20 + 4 * 20 + 42 + 2) + 73) + 70),
        "queries and what they mix have H E numbers, keys and values K E",
    )
    yield (
        "a larger vocabulary",
        f(_sizes(vocab_size=500), 2, 7) - f(_sizes(), 2, 7),
        0,
        "logits are the result, weights are there anyway",
    )


@check
def state_bytes(f):
    """Check `state_bytes(parameters, processes, stage)`."""
    yield ("1,000 parameters, one process", f(1000), 16_000, "2 + 2 + 12 bytes each")
    yield (
        "four processes that share nothing",
        f(1000, 4, 0),
        16_000,
        "stage 0 copies everything to everybody",
    )
    yield (
        "stages 1, 2 and 3 on four processes",
        torch.tensor([float(f(1000, 4, stage)) for stage in (1, 2, 3)]),
        torch.tensor([7000.0, 5500.0, 4000.0]),
        "12, then 2 + 12, then 2 + 2 + 12 bytes are shared out",
    )
    yield (
        "the figure of ZeRO's paper: 7.5 billion on 64, in GB",
        torch.tensor([f(7_500_000_000, 64, stage) / 1e9 for stage in range(4)]),
        torch.tensor([120.0, 31.40625, 16.640625, 1.875]),
        "divide what is shared, leave what is copied",
    )
    yield (
        "one process, whatever the stage",
        [float(f(10, 1, stage)) for stage in range(4)],
        [160.0] * 4,
        "nobody to share with",
    )
    yield (
        "shares that do not come out even",
        torch.tensor(float(f(10, 3, 3))),
        torch.tensor(160 / 3),
        "a mean over processes: divide, without rounding",
    )
    yield (
        "a stage that does not exist",
        error_of(lambda: f(10, 2, 4)),
        ValueError,
        "the contract above the function says so: keep it",
    )
