"""The ladder: counting by hand, networks that lack a piece, their loop and measure."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minillama import ladder, lm
from minillama.data import Example, pad, pad_examples
from minillama.ladder import (
    AttentionOnly,
    OneToken,
    bigram_logprobs,
    count_bigrams,
    held_out_nats,
    one_token_floor,
    table_nats,
    train_rung,
    unigram_logprobs,
)
from minillama.lm import LMSettings, lm_loss, train_lm
from minillama.model import FeedForward, Llama, LlamaConfig, RMSNorm
from minillama.optim import Stepper, TrainingDiverged, warmup_cosine

CONFIG = LlamaConfig(
    vocab_size=12,
    dim=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    ffn_dim=24,
    max_seq_len=16,
)
# 2 follows 1 in every text, and 0 ends the first kind.
EXAMPLES = [Example([1, 2, 3, 4, 5, 0], 1), Example([1, 2, 8, 9], 1)] * 4


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def loud(model, factor=12.0):
    """A model with large weights, so that every input moves every output."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model


# ----------------------------------------------------------------------------- counting


def test_counts_by_hand():
    # The loss counts tokens 1, 2 of the first text: pairs (0, 1) and (1, 1); from
    # token 2 on in the second: (1, 0) and (0, 1). A text of one token has no pair.
    examples = [Example([0, 1, 1], 1), Example([2, 1, 0, 1], 2), Example([2], 1)]
    counts = count_bigrams(examples, 3)
    assert counts.tolist() == [[0, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert counts.dtype == torch.float64
    assert count_bigrams([Example([2, 2, 2], 1)], 4)[2, 2] == 2
    # What stands before the loss begins is no pair, also when nothing is left.
    assert count_bigrams([Example([0, 1], 2)], 2).tolist() == [[0, 0], [0, 0]]


def test_counts_agree_with_a_loop_over_the_loss_mask():
    """Every counted token after the one before it, as `lm_loss` counts them."""
    examples = [Example([n % 5, *range(5)][:n], 1 + n % 3) for n in (2, 6, 4, 5, 3)]
    ids, _, loss_mask = pad_examples(examples)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for row, t in loss_mask.nonzero().tolist():
        expected[ids[row, t - 1], ids[row, t]] += 1
    assert torch.equal(count_bigrams(examples, 5), expected)


COUNTS = torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


def test_unigrams_by_hand():
    # 0 came once, 1 three times, 2 never: (1 + 1, 3 + 1, 0 + 1) / (4 + 3)
    found = unigram_logprobs(COUNTS)
    expected = torch.tensor([2 / 7, 4 / 7, 1 / 7]).log()
    torch.testing.assert_close(found, expected)
    assert unigram_logprobs(torch.zeros(4, 4)).tolist() == pytest.approx(
        [-math.log(4)] * 4
    )


def test_bigrams_by_hand():
    """Rows of counts with the unigram 2/7, 4/7, 1/7 as one more sighting of each."""
    found = bigram_logprobs(COUNTS).exp()
    expected = torch.tensor(
        [
            # 0 came twice: (0 + 2/7, 2 + 4/7, 0 + 1/7) / 3
            [2 / 21, 18 / 21, 1 / 21],
            # 1 came twice: (1 + 2/7, 1 + 4/7, 1/7) / 3
            [9 / 21, 11 / 21, 1 / 21],
            # 2 never came before another token: the unigram speaks
            [6 / 21, 12 / 21, 3 / 21],
        ]
    )
    torch.testing.assert_close(found, expected)
    # The strength 4 weighs the unigram as 4 sightings: (0 + 8/7, 2 + 16/7, 4/7) / 6
    found = bigram_logprobs(COUNTS, strength=4).exp()
    torch.testing.assert_close(found[0], torch.tensor([8 / 42, 30 / 42, 4 / 42]))
    torch.testing.assert_close(found[2], expected[2])
    # What was seen a thousand times speaks for itself.
    often = bigram_logprobs(1000 * COUNTS).exp()
    torch.testing.assert_close(
        often[1], torch.tensor([0.5, 0.5, 0.0]), atol=1e-3, rtol=0
    )


def test_a_table_against_a_loop_over_tokens():
    """The loss of a network whose logits are the table, token by token."""
    examples = [Example([0, 1, 1, 2], 1), Example([2, 1, 0, 1, 1], 2)]
    table = bigram_logprobs(COUNTS.double(), 0.5)
    nats = [
        -table[a, b].item()
        for example in examples
        for t, (a, b) in enumerate(itertools.pairwise(example.ids), start=1)
        if t >= example.loss_start
    ]
    assert len(nats) == 3 + 3
    counts = count_bigrams(examples, 3)
    assert table_nats(table, counts) == pytest.approx(sum(nats) / 6)
    ids, _, loss_mask = pad_examples(examples)
    logits = table[ids.clamp(max=2)]  # padding says nothing
    loss = lm_loss(logits, ids.clamp(max=2), loss_mask).item()
    assert table_nats(table, counts) == pytest.approx(loss)
    # By hand: of COUNTS, 2 pairs of ln 21/18, one of ln 21/9, one of ln 21/11.
    by_hand = (2 * math.log(21 / 18) + math.log(21 / 9) + math.log(21 / 11)) / 4
    assert table_nats(bigram_logprobs(COUNTS), COUNTS) == pytest.approx(by_hand)
    assert isinstance(table_nats(table, counts), float)


def test_what_a_table_holds_for_impossible():
    """Counts without smoothing: free where it never came, infinite where it did."""
    own = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log()
    assert table_nats(own, COUNTS) == pytest.approx(2 * math.log(2) / 4)
    assert table_nats(own, COUNTS + torch.eye(3)) == math.inf


def test_the_floor_by_hand():
    # After 0 always 1: nothing to learn. After 1 one of two: ln 2, for 2 pairs of 4.
    assert one_token_floor(COUNTS) == pytest.approx(math.log(2) / 2)
    # Of frequencies, which add up to 1 and not to a number of pairs, the same.
    assert one_token_floor(COUNTS / 4) == pytest.approx(math.log(2) / 2)
    assert one_token_floor(torch.eye(3)) == 0.0
    even = torch.full((4, 4), 0.01, dtype=torch.float64)
    assert one_token_floor(even) == pytest.approx(math.log(4))


@st.composite
def counts_and_table(draw):
    size = draw(st.integers(1, 4))
    numbers = st.lists(st.integers(0, 5), min_size=size**2, max_size=size**2)
    counts = torch.tensor(draw(numbers.filter(any))).double().view(size, size)
    logits = draw(st.lists(st.floats(-20, 20), min_size=size**2, max_size=size**2))
    scale = draw(st.sampled_from([0.01, 1.0, 1e6]))
    return counts * scale, torch.tensor(logits).double().view(size, size)


@settings(max_examples=200, deadline=None)
@given(counts_and_table(), st.floats(1e-3, 1e3))
def test_no_table_is_below_the_floor(drawn, strength):
    counts, logits = drawn
    floor = one_token_floor(counts)
    assert 0 <= floor <= math.log(len(counts)) + 1e-9
    tables = [
        logits.log_softmax(-1),
        bigram_logprobs(counts, strength),
        unigram_logprobs(counts).expand_as(counts),
    ]
    for table in tables:
        assert table.exp().sum(-1).tolist() == pytest.approx([1.0] * len(counts))
        assert table_nats(table, counts) >= floor - 1e-9
    # The floor is reached: the counts themselves, hardly smoothed.
    nearly = bigram_logprobs(counts / counts.sum() * 1e9, 1e-3)
    assert table_nats(nearly, counts) == pytest.approx(floor, abs=1e-4)


# ----------------------------------------------------------------------------- networks

IDS = torch.tensor([[1, 2, 3, 2, 5], [4, 4, 6, 2, 0]])


def reach(model, ids, at):
    """Which tokens move the logits at a place: the gradient of each embedding."""
    states = []
    model.embed_tokens.register_forward_hook(
        lambda module, given, out: (
            states.append(out.detach().requires_grad_()) or states[-1]
        )
    )
    model(ids)[0, at].square().sum().backward()
    return (states[-1].grad[0].abs().sum(-1) > 0).tolist()


def test_one_token_sees_one_token():
    model = loud(OneToken(CONFIG, rng()))
    for t in range(5):
        assert reach(model, IDS, t) == [i == t for i in range(5)]
    logits = model(IDS)
    assert logits.shape == (2, 5, 12)
    # The same token has the same logits wherever it stands: 2 stands four times.
    torch.testing.assert_close(logits[0, 1], logits[0, 3])
    torch.testing.assert_close(logits[0, 1], logits[1, 3])
    assert not torch.allclose(logits[0, 0], logits[0, 1])
    alone = model(torch.arange(12)[None])[0]  # the table that it is
    torch.testing.assert_close(logits, alone[IDS])
    # A mask changes nothing, since nothing else is looked at.
    assert torch.equal(model(IDS, IDS > 3), logits)


def test_one_token_by_its_formula():
    """lm_head(norm(x + mlp(norm(x)))), told with the state of its parts."""
    model = loud(OneToken(CONFIG, rng()))
    with torch.no_grad():
        model.mlp_norm.weight.uniform_(0.5, 2, generator=rng(1))
        model.norm.weight.uniform_(0.5, 2, generator=rng(2))
    w = dict(model.named_parameters())

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + CONFIG.norm_eps).sqrt() * weight

    x = w["embed_tokens.weight"][IDS]
    inner = norm(x, w["mlp_norm.weight"])
    gate = nn.functional.silu(inner @ w["mlp.gate_proj.weight"].T)
    wide = gate * (inner @ w["mlp.up_proj.weight"].T)
    x = x + wide @ w["mlp.down_proj.weight"].T
    expected = norm(x, w["norm.weight"]) @ w["lm_head.weight"].T
    torch.testing.assert_close(model(IDS), expected, atol=1e-4, rtol=1e-4)


def test_attention_is_causal():
    for positions in (True, False):
        model = loud(AttentionOnly(CONFIG, positions, rng()))
        for t in range(5):
            assert reach(model, IDS, t) == [i <= t for i in range(5)]
    # By values, too: another future, the same logits.
    other = IDS.clone()
    other[:, 3:] = 9
    torch.testing.assert_close(model(other)[:, :3], model(IDS)[:, :3])
    assert not torch.allclose(model(other)[:, 3:], model(IDS)[:, 3:])


def test_without_positions_attention_is_blind_to_order():
    """The past in another order: the same logits at the last token, or not."""
    mixed = torch.tensor([[3, 2, 1, 2, 5], [2, 6, 4, 4, 0]])
    blind = loud(AttentionOnly(CONFIG, False, rng()))
    torch.testing.assert_close(
        blind(mixed)[:, -1], blind(IDS)[:, -1], atol=1e-4, rtol=1e-4
    )
    # Where the past is another one, it does see that.
    assert not torch.allclose(blind(mixed)[:, 1], blind(IDS)[:, 1], atol=1e-2)
    for model in (
        AttentionOnly(CONFIG, True, rng()),
        AttentionOnly(CONFIG, generator=rng()),
    ):
        seeing = loud(model)
        assert not torch.allclose(seeing(mixed)[:, -1], seeing(IDS)[:, -1], atol=1e-2)
        # The same weights: nothing but the positions differs.
        seeing.positions = False
        assert torch.equal(seeing(IDS), blind(IDS))


@pytest.mark.parametrize("positions", [True, False])
def test_attention_is_a_block_of_llama_without_its_feed_forward(positions):
    """A `Llama` of one block whose feed-forward writes nothing, with the same weights.

    Without positions: a `Llama` that is told that each token stands at position 0.
    """
    model = loud(AttentionOnly(CONFIG, positions, rng()))
    llama = Llama(CONFIG, rng(1))
    with torch.no_grad():
        model.attention_norm.weight.uniform_(0.5, 2, generator=rng(1))
        model.norm.weight.uniform_(0.5, 2, generator=rng(2))
        llama.layers[0].mlp.down_proj.weight.zero_()
    block = llama.layers[0]
    block.self_attn, block.input_layernorm = model.attention, model.attention_norm
    llama.embed_tokens, llama.norm = model.embed_tokens, model.norm
    llama.lm_head = model.lm_head
    mask = torch.tensor([[False, True, True, True, True], [True] * 4 + [False]])
    with pytest.MonkeyPatch.context() as patch:
        if not positions:
            patch.setattr(
                "minillama.model.token_positions",
                lambda mask: torch.zeros_like(mask).long(),
            )
        expected, alone = llama(IDS, mask), llama(IDS)
    torch.testing.assert_close(model(IDS, mask)[mask], expected[mask])
    torch.testing.assert_close(model(IDS), alone)


MODELS = {
    "one token": lambda: OneToken(CONFIG, rng()),
    "attention, no positions": lambda: AttentionOnly(CONFIG, False, rng()),
    "attention with RoPE": lambda: AttentionOnly(CONFIG, True, rng()),
}


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_either_side_changes_nothing(name):
    model = loud(MODELS[name]())
    texts = [[1, 2, 3, 4, 5], [6, 2], [7, 8, 9]]
    for side in ("right", "left"):
        ids, mask = pad(texts, side)
        # What stands in the padding is not looked at either.
        for filling in (0, 11):
            logits = model(ids.masked_fill(~mask, filling), mask)
            assert logits.isfinite().all()
            for row, text in enumerate(texts):
                torch.testing.assert_close(
                    logits[row][mask[row]],
                    model(torch.tensor([text]))[0],
                    atol=1e-4,
                    rtol=1e-4,
                )


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_drawn_as_those_of_llama(name):
    """In order of their names, 0.02, and 0.02 / sqrt(2) back into the residual."""
    model, generator = MODELS[name](), rng()
    names = []
    for parameter_name, parameter in model.named_parameters():
        names.append(parameter_name.split(".")[0])
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones(16))
            continue
        back = parameter_name.endswith(("o_proj.weight", "down_proj.weight"))
        noise = torch.randn(parameter.shape, generator=generator)
        expected = noise * 0.02 / (math.sqrt(2) if back else 1)
        torch.testing.assert_close(parameter, expected)
    middle = (
        ["mlp_norm", "mlp"] if name == "one token" else ["attention_norm", "attention"]
    )
    assert list(dict.fromkeys(names)) == ["embed_tokens", *middle, "norm", "lm_head"]
    assert model.config is CONFIG and model.norm.eps == CONFIG.norm_eps
    torch.manual_seed(3)
    one = type(model)(CONFIG)
    torch.manual_seed(3)
    assert torch.equal(one.lm_head.weight, type(model)(CONFIG).lm_head.weight)


def test_sizes():
    """Each has what its name says and nothing else."""
    one, attention = OneToken(CONFIG), AttentionOnly(CONFIG)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    ends = 2 * 12 * 16 + 16  # embedding, output, last norm
    assert count(one) == ends + 16 + 3 * 16 * 24
    # queries and output 16 x 16, keys and values 16 x 8 (one head of two)
    assert count(attention) == ends + 16 + 2 * 16 * 16 + 2 * 16 * 8
    assert isinstance(one.mlp, FeedForward) and isinstance(one.mlp_norm, RMSNorm)


def test_the_settings_of_a_config_are_heard():
    eps = LlamaConfig(**vars(CONFIG) | dict(norm_eps=0.5))
    for kind in (OneToken, AttentionOnly):
        plain, odd = (loud(kind(config, generator=rng())) for config in (CONFIG, eps))
        norms = [x.eps for x in odd.modules() if isinstance(x, RMSNorm)]
        assert norms == [0.5, 0.5]
        assert not torch.allclose(plain(IDS), odd(IDS), atol=1e-3)
    theta = LlamaConfig(**vars(CONFIG) | dict(rope_theta=3.0))
    turning = [loud(AttentionOnly(x, True, rng()))(IDS) for x in (CONFIG, theta)]
    assert not torch.allclose(*turning, atol=1e-3)
    standing = [loud(AttentionOnly(x, False, rng()))(IDS) for x in (CONFIG, theta)]
    assert torch.equal(*standing)


# --------------------------------------------------------------- training and measuring


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss_again_and_again_alike(name):
    model, other = MODELS[name](), MODELS[name]()
    losses = train_rung(model, EXAMPLES, rng(5), steps=100, batch_size=8)
    assert len(losses) == 100
    assert losses[0] == pytest.approx(math.log(12), abs=0.1) and losses[-1] < 0.7
    assert train_rung(other, EXAMPLES, rng(5), steps=100, batch_size=8) == losses
    for mine, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, same)
    third = MODELS[name]()
    train_rung(third, EXAMPLES, rng(6), steps=100, batch_size=2)
    assert not torch.equal(third.lm_head.weight, model.lm_head.weight)


def test_one_token_learns_what_counting_knows_and_attention_more():
    """A text in which 3 and then 4 come after 2: who looks back can tell."""
    examples = [Example([1, 2, 3, 2, 4, 0], 1)] * 8
    counts = count_bigrams(examples, 12)
    floor = one_token_floor(counts)
    assert floor == pytest.approx(2 / 5 * math.log(2))  # 2 of 5 tokens
    nats = {}
    for name, make in MODELS.items():
        model = make()
        train_rung(model, examples, rng(), steps=300, batch_size=8)
        nats[name] = held_out_nats(model, examples)
        if name == "one token":
            table = model(torch.arange(12)[None])[0].log_softmax(-1).double()
            assert nats[name] == pytest.approx(table_nats(table, counts), abs=1e-5)
    assert floor <= nats["one token"] < floor + 0.01
    assert nats["attention, no positions"] < floor - 0.2
    assert nats["attention with RoPE"] < floor - 0.2


def test_the_loop_is_the_plain_one():
    """A rate of 6e-3 after 10 steps of warm-up, then a cosine to the end.

    Each pass is a fresh order of the texts; the seventh of 7 fills no batch of 3.
    """
    examples = [Example(list(range(1, n)), 1 + n % 2) for n in (4, 9, 6, 12, 5, 8, 7)]
    ours, plain = MODELS["attention with RoPE"](), MODELS["attention with RoPE"]()
    losses = train_rung(ours, examples, rng(5), steps=25, batch_size=3)
    generator, expected = rng(5), []
    orders = [torch.randperm(7, generator=generator).tolist() for _ in range(13)]
    batches = [half for order in orders for half in (order[:3], order[3:6])]
    stepper = Stepper(plain, 6e-3, lambda step: warmup_cosine(step, 25, 10))
    for batch in batches[:25]:
        ids, mask, loss_mask = pad_examples([examples[i] for i in batch])
        loss = lm_loss(plain(ids, mask), ids, loss_mask)
        stepper.step(loss, batch)
        expected.append(loss.item())
    assert losses == expected
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_llama_learns_as_in_train_lm():
    """The same loop as the course's base model, where a batch holds all texts."""
    ours, theirs = Llama(CONFIG, rng()), Llama(CONFIG, rng())
    losses = train_rung(ours, EXAMPLES, rng(1), steps=30, batch_size=8)
    how = LMSettings(steps=30, batch_size=8, lr=6e-3, warmup_steps=10)
    assert losses == pytest.approx(train_lm(theirs, EXAMPLES, how, rng(1)), abs=1e-4)
    assert held_out_nats(ours, EXAMPLES) == pytest.approx(
        lm.evaluate_lm(theirs, EXAMPLES)[0], abs=1e-3
    )


def test_the_defaults_are_the_budget_of_a_rung(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ladder, "pad_examples", lambda x: seen.append(len(x)) or pad_examples(x)
    )
    model = OneToken(LlamaConfig(10, 4, 1, 1, 1, 4, 8), rng())
    losses = train_rung(model, [Example([1, 2], 1)] * 64, rng())
    assert len(losses) == 200 and set(seen) == {32}
    seen.clear()
    held_out_nats(model, [Example([1, 2], 1)] * 130)
    assert seen == [64, 64, 2]


def test_training_runs_in_train_mode_and_leaves_eval_mode():
    model, modes = MODELS["one token"]().eval(), []
    model.norm.register_forward_hook(lambda *call: modes.append(model.training))
    train_rung(model, EXAMPLES, rng(), steps=2, batch_size=8)
    assert modes == [True, True] and not model.training


def test_a_progress_bar_only_if_it_has_a_name(capsys):
    train_rung(MODELS["one token"](), EXAMPLES, rng(), steps=2, batch_size=8)
    assert capsys.readouterr().err == ""
    train_rung(MODELS["one token"](), EXAMPLES, rng(), 2, 8, desc="a rung")
    assert "a rung: 100%" in capsys.readouterr().err


def test_broken_weights_stop_the_loop():
    model = MODELS["one token"]()
    model.norm.weight.data[0] = math.nan
    with pytest.raises(TrainingDiverged, match=r"step 0: loss .* examples \[\d"):
        train_rung(model, EXAMPLES, rng(), steps=2, batch_size=4)


@pytest.mark.parametrize("name", MODELS)
def test_the_measure_is_a_plain_loop_over_tokens(name):
    """Texts that count 5, 1 and 3 tokens: a mean over batches would differ."""
    model = loud(MODELS[name]())
    examples = [Example([1, 2, 3, 4, 5, 6], 1), Example([1, 7, 8], 2), EXAMPLES[1]]
    nats = []
    for example in examples:
        logprobs = model(torch.tensor([example.ids]))[0].double().log_softmax(-1)
        nats += [
            -logprobs[t - 1, example.ids[t]].item()
            for t in range(example.loss_start, len(example.ids))
        ]
    assert len(nats) == 5 + 1 + 3
    for batch_size in (1, 2, 64):
        found = held_out_nats(model, examples, batch_size)
        assert found == pytest.approx(sum(nats) / 9, abs=1e-4)


def test_the_measure_reads_texts_of_similar_length_together(monkeypatch):
    widths = []
    monkeypatch.setattr(
        ladder,
        "pad_examples",
        lambda x: widths.append([len(e.ids) for e in x]) or pad_examples(x),
    )
    held_out_nats(MODELS["one token"](), EXAMPLES, 4)
    assert widths == [[4] * 4, [6] * 4]


def test_the_measure_keeps_no_graph():
    model, graphs = MODELS["one token"](), []
    model.norm.register_forward_hook(lambda m, x, out: graphs.append(out.requires_grad))
    assert isinstance(held_out_nats(model, EXAMPLES), float) and graphs == [False]
    assert torch.is_grad_enabled()
