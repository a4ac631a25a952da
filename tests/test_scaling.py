"""The counts of scaling.py: by hand, on models that run, and as papers have them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from minillama import scaling as s
from minillama.model import KVCache, Llama, LlamaConfig

# 1 layer, D = 4, two heads of 2, one key/value head, F = 3, V = 5
TINY = LlamaConfig(5, 4, 1, 2, 1, 3, 16)
LLAMA_7B = LlamaConfig(32000, 4096, 32, 32, 32, 11008, 4096)
CONFIGS = [
    TINY,
    LlamaConfig(256, 64, 2, 4, 2, 172, 160),
    LlamaConfig(40, 24, 3, 2, 2, 20, 64, tie_embeddings=True),
    LlamaConfig(40, 24, 2, 4, 1, 20, 64, head_size=8),
]


def test_weights_by_hand():
    """Q and o 4 x 4 each, k and v 4 x 2 each, three of 4 x 3; the head 4 x 5."""
    assert s.matmul_weights(TINY) == 2 * 16 + 2 * 8 + 3 * 12 + 20 == 104
    assert s.matmul_weights(replace(TINY, n_layers=3)) == 3 * 84 + 20


@pytest.mark.parametrize("config", CONFIGS)
def test_weights_are_those_of_all_matrices_but_the_table(config):
    named = Llama(replace(config, tie_embeddings=False)).named_parameters()
    kept = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    assert s.matmul_weights(config) == sum(p.numel() for p in kept)


def test_llama_2_7b():
    """Without the table (32000 x 4096) and 65 norms of 4096, from the meta device."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Llama(LLAMA_7B).parameters())
    assert parameters == 6_738_415_616
    assert s.matmul_weights(LLAMA_7B) == parameters - 32000 * 4096 - 65 * 4096
    # 12 L D T = 12 * 32 * 4096 * 4096
    expected = 6 * 6_607_077_376 + 6_442_450_944
    assert s.flops_per_token(LLAMA_7B, 4096) == expected
    assert s.cache_bytes(LLAMA_7B, 2) == 2 * 32 * 4096 * 2 == 524_288


def test_flops_by_hand():
    """2 x 104; one layer, two heads of 2, 10 tokens: 4 x 4 x 10 = 160."""
    assert s.flops_per_token(TINY, 10, training=False) == 208 + 160
    assert s.flops_per_token(TINY, 10) == 3 * 368


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("batch, length", [(1, 1), (3, 16)])
def test_flops_are_those_that_pytorch_counts(config, batch, length):
    model, ids = Llama(config), torch.randint(config.vocab_size, (batch, length))
    tokens = batch * length
    with FlopCounterMode(display=False) as counted:
        logits = model(ids)
    forward = s.flops_per_token(config, length, training=False)
    assert counted.get_total_flops() == tokens * forward
    with FlopCounterMode(display=False) as counted:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    assert counted.get_total_flops() == tokens * s.flops_per_token(config, length)
    assert logits.shape == (batch, length, config.vocab_size)


def test_intensity_by_hand():
    """(2, 3) times (3, 4): 48 FLOPs; 6 + 12 + 8 numbers of 4 bytes."""
    assert s.matmul_intensity(2, 3, 4, 4) == 48 / 104
    assert s.matmul_intensity(1, 10_000, 10_000, 2) == pytest.approx(1, rel=1e-3)
    assert s.matmul_intensity(3000, 3000, 3000, 4) == 500  # n / 6 for a cube


def test_the_roof_has_two_sides():
    """The ridge of 100 FLOPs a second and 20 bytes a second is at 5."""
    found = [s.attainable(x, 100.0, 20.0) for x in (0.5, 5, 50)]
    assert found == [10, 100, 100]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_cache_has_so_many_bytes(config):
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        cache = KVCache(config, 3, 7, dtype=dtype)
        held = cache.keys.nbytes + cache.values.nbytes
        assert held == 21 * s.cache_bytes(config, size)


def kept(model, ids):
    """Bytes that autograd keeps in a forward pass, each storage once, no weights."""
    storages = {}

    def pack(tensor):
        if tensor.is_floating_point() and not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits = model(ids)
    assert logits.requires_grad
    return sum(x.nbytes() for at, x in storages.items() if at not in weights)


def test_activations_by_hand():
    """A token of TINY, T = 1: 6 x 4 + 2 x 4 + 2 x 2 + 4 x 3 + 2 x 1 + 2 = 52 numbers,
    then 3 x 4 + 1 = 13, and 2 for the angle: 67 of 4 bytes."""
    assert s.saved_bytes(TINY, 1, 1) == 4 * 67
    # two texts of three tokens: a block 56 a token; 6 (56 + 13) + 6
    assert s.saved_bytes(TINY, 2, 3) == 4 * (6 * 69 + 6)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("batch, length", [(2, 2), (3, 16)])
def test_activations_are_those_that_autograd_keeps(config, batch, length):
    model, ids = Llama(config), torch.randint(config.vocab_size, (batch, length))
    assert kept(model, ids) == s.saved_bytes(config, batch, length)


def test_states_are_those_of_the_zero_paper():
    """Figure 1: 7.5 billion parameters on 64 processes: 120, 31.4, 16.6, 1.9 GB."""
    found = [s.state_bytes(7_500_000_000, 64, stage) / 1e9 for stage in range(4)]
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)
    assert s.state_bytes(10) == s.state_bytes(10, 1, 3) == s.state_bytes(10, 8) == 160


def test_what_is_sent_by_hand():
    """Four processes: 3/4 of 10 numbers of 4 bytes are 30; two or three times."""
    assert s.bytes_sent(10, 4, "ddp", 4) == 60
    assert s.bytes_sent(10, 4, "fsdp", 4) == 90
    assert s.bytes_sent(10, 1, "fsdp", 4) == 0


@pytest.mark.parametrize("p", [2, 3, 5])
def test_a_ring_sends_what_the_formula_says(p):
    """Played: each of p processes has 30 numbers, cut into p pieces, and hands one on.

    First each piece goes round and is added to, then each sum goes round.
    """
    numbers = torch.arange(30.0 * p).view(p, 30)
    held, sent = [list(row.split(30 // p)) for row in numbers], 0
    for step in range(2 * (p - 1)):
        piece = [(rank - step) % p for rank in range(p)]  # which each hands on
        moving = [held[rank][piece[rank]] for rank in range(p)]
        for rank, said in enumerate(moving):
            to, at = (rank + 1) % p, piece[rank]
            held[to][at] = held[to][at] + said if step < p - 1 else said
            sent += len(said)
    for pieces in held:
        torch.testing.assert_close(torch.cat(pieces), numbers.sum(0))
    assert sent == pytest.approx(p * s.bytes_sent(30, p, "ddp", 1))
