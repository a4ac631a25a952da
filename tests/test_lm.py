"""The next-token loss and the loop of language modelling."""

import itertools
import math

import pytest
import torch

from minillama import lm
from minillama.data import Example, endless_batches, pad_examples
from minillama.lm import (
    LMSettings,
    evaluate_lm,
    lm_loss,
    response_logprobs,
    token_logprobs,
    train_lm,
)
from minillama.model import Llama, LlamaConfig
from minillama.optim import Stepper, TrainingDiverged, warmup_cosine

EXAMPLES = [Example([1, 2, 3, 4, 5, 6], 1), Example([1, 7, 8, 9], 1)] * 4


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0):
    return Llama(LlamaConfig(12, 16, 1, 2, 1, 24, 16), rng(seed))


# Position 0 gives token 1 a probability of 3/4: logits (0, ln 3); position 1 gives
# token 0 a half; what the last position says is about no token.
LOGITS = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [9.0, -9.0]]])
IDS = torch.tensor([[0, 1, 0]])


def test_logprobs_by_hand():
    logprobs = token_logprobs(LOGITS, IDS)
    expected = [[0.0, math.log(3 / 4), math.log(1 / 2)]]
    torch.testing.assert_close(logprobs, torch.tensor(expected))
    half = token_logprobs(LOGITS.bfloat16(), IDS)
    assert half.dtype == torch.float32  # the softmax is not taken in half precision
    torch.testing.assert_close(half, torch.tensor(expected), atol=1e-3, rtol=0)
    assert token_logprobs(LOGITS[:, :1], IDS[:, :1]).tolist() == [[0.0]]


def test_loss_by_hand():
    loss = lm_loss(LOGITS, IDS, torch.tensor([[False, True, True]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    first = lm_loss(LOGITS, IDS, torch.tensor([[False, True, False]]))
    assert first.item() == pytest.approx(math.log(4 / 3))


def test_the_mean_is_over_tokens_not_over_texts():
    """Text 0 counts two tokens of ln 4/3 and ln 2, text 1 one of ln 2."""
    logits, ids = LOGITS.repeat(2, 1, 1), IDS.repeat(2, 1)
    counted = torch.tensor([[False, True, True], [False, False, True]])
    mean = (math.log(4 / 3) + 2 * math.log(2)) / 3
    assert lm_loss(logits, ids, counted).item() == pytest.approx(mean)


def test_response_logprobs_by_the_chain_of_prefixes():
    """Each response token's probability, from the model on the prefix alone."""
    model = tiny()
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    mask = torch.tensor(
        [[False, True, True, True, True], [True, True, True, True, False]]
    )
    counted = torch.tensor(
        [[False, False, False, True, True], [False, True, True] + [False] * 2]
    )
    expected = torch.zeros(2, 5)
    for row, t in counted.nonzero().tolist():
        prefix = ids[row, :t][mask[row, :t]]
        expected[row, t] = model(prefix[None])[0, -1].log_softmax(-1)[ids[row, t]]
    logprobs = response_logprobs(model, ids, mask, counted)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    assert logprobs.requires_grad


YES, NO = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)
LAST = torch.tensor([[False, False, True]])
HOLE = torch.tensor([[True, False, True]])


@pytest.mark.parametrize(
    "call, error, words",
    [
        (
            lambda: lm_loss(LOGITS, IDS, YES),
            ValueError,
            "lm_loss: loss_mask .* column 0",
        ),
        (lambda: lm_loss(LOGITS, IDS, NO), ValueError, "lm_loss: loss_mask .* no True"),
        (
            lambda: lm_loss(LOGITS, IDS, LAST[:, 1:]),
            ValueError,
            "lm_loss: loss_mask must",
        ),
        (
            lambda: lm_loss(LOGITS, IDS, IDS),
            TypeError,
            "lm_loss: loss_mask must be a boo",
        ),
        (
            lambda: lm_loss(LOGITS[0], IDS, LAST),
            ValueError,
            "lm_loss: logits must be a fl",
        ),
        (
            lambda: token_logprobs(LOGITS, IDS[0]),
            ValueError,
            "token_logprobs: ids must be",
        ),
        (
            lambda: token_logprobs(LOGITS, LOGITS),
            TypeError,
            "token_logprobs: ids must be",
        ),
        (
            lambda: token_logprobs(IDS, IDS),
            TypeError,
            "token_logprobs: logits must be a f",
        ),
        (
            lambda: response_logprobs(tiny(), IDS, YES, YES),
            ValueError,
            r"response_logprobs: response_mask must .* got True at \[0, 0\]",
        ),
        (
            lambda: response_logprobs(tiny(), IDS, HOLE, LAST),
            ValueError,
            r"response_logprobs: response_mask must .* got True at \[0, 2\]",
        ),
        (
            lambda: response_logprobs(tiny(), IDS, YES, LAST.long()),
            TypeError,
            "response_logprobs: response_mask must be a bool",
        ),
        (
            lambda: LMSettings(steps=0),
            ValueError,
            "LMSettings: steps must be an int >= 1",
        ),
        (lambda: LMSettings(steps=-3), ValueError, "LMSettings: steps must .* got -3"),
        (lambda: LMSettings(steps=2.5), TypeError, "LMSettings: steps must be an int"),
        (
            lambda: LMSettings(batch_size=0),
            ValueError,
            "LMSettings: batch_size must be",
        ),
        (lambda: LMSettings(lr=-1.0), ValueError, "LMSettings: lr must .* got -1.0"),
        (lambda: LMSettings(lr=math.nan), ValueError, "LMSettings: lr must .* got nan"),
        (
            lambda: LMSettings(warmup_steps=-1),
            ValueError,
            "LMSettings: warmup_steps must",
        ),
        (
            lambda: evaluate_lm(tiny(), []),
            ValueError,
            "evaluate_lm: examples must be a l",
        ),
        (
            lambda: evaluate_lm(tiny(), EXAMPLES, 0),
            ValueError,
            "evaluate_lm: batch_size",
        ),
        (
            lambda: evaluate_lm(None, EXAMPLES),
            TypeError,
            "evaluate_lm: model must be a L",
        ),
        (
            lambda: train_lm(tiny(), EXAMPLES, LMSettings(batch_size=9), rng()),
            ValueError,
            "train_lm: examples must be at least settings.batch_size = 9, got 8",
        ),
        (
            lambda: train_lm(tiny(), [[1, 2]], LMSettings(batch_size=1), rng()),
            TypeError,
            "train_lm: examples must be a list of Example",
        ),
        (
            lambda: train_lm(tiny(), EXAMPLES, dict(steps=1), rng()),
            TypeError,
            "train_lm: settings must be a LMSettings, got a dict",
        ),
        (
            lambda: train_lm(tiny(), EXAMPLES, LMSettings(batch_size=8), 0),
            TypeError,
            "train_lm: generator must be a Generator, got 0",
        ),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


def test_the_defaults_pretrain_the_base_model():
    settings = LMSettings()
    assert (settings.steps, settings.batch_size) == (1500, 24)
    assert (settings.lr, settings.warmup_steps) == (2e-3, 30)


def test_training_lowers_the_loss_and_evaluation_agrees():
    model = tiny()
    settings = LMSettings(steps=60, batch_size=8, lr=1e-2)
    losses = train_lm(model, EXAMPLES, settings, rng())
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(12), abs=0.1) and losses[-1] < 0.6
    loss, tokens = evaluate_lm(model, EXAMPLES)
    assert tokens == 4 * (5 + 3) and loss < 0.6


def test_the_loop_is_the_plain_one():
    """The same batches, losses and steps, spelled out with the plain loss."""
    settings = LMSettings(steps=5, batch_size=3, lr=1e-2, warmup_steps=2)
    examples = [Example(list(range(1, n)), 1 + n % 2) for n in (4, 9, 6, 12, 5, 8, 7)]
    ours, plain = tiny(), tiny()
    losses = train_lm(ours, examples, settings, rng(5))
    stepper = Stepper(plain, 1e-2, lambda step: warmup_cosine(step, 5, 2))
    expected = []
    for batch in itertools.islice(endless_batches(7, 3, rng(5)), 5):
        ids, mask, loss_mask = pad_examples([examples[i] for i in batch])
        loss = lm_loss(plain(ids, mask), ids, loss_mask)
        stepper.step(loss, batch)
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)


def test_training_runs_in_train_mode_and_leaves_eval_mode():
    model, modes = tiny().eval(), []
    model.norm.register_forward_hook(lambda *call: modes.append(model.training))
    train_lm(model, EXAMPLES, LMSettings(steps=2, batch_size=8), rng())
    assert modes == [True, True] and not model.training


def test_a_progress_bar_only_if_it_has_a_name(capsys):
    settings = LMSettings(steps=2, batch_size=8)
    train_lm(tiny(), EXAMPLES, settings, rng())
    assert capsys.readouterr().err == ""
    train_lm(tiny(), EXAMPLES, settings, rng(), desc="reading")
    assert "reading: 100%" in capsys.readouterr().err


def test_evaluation_is_the_mean_over_all_tokens_whatever_the_batches():
    """Texts that count 5, 2 and 3 tokens: a mean over batches would differ."""
    model = tiny(3)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    examples = [Example([1, 2, 3, 4, 5, 6], 1), Example([1, 7, 8], 1)] + EXAMPLES[1:2]
    ids, mask, loss_mask = pad_examples(examples)
    plain = lm_loss(model(ids, mask), ids, loss_mask).item()
    for batch_size in (1, 2, 128):
        loss, tokens = evaluate_lm(model, examples, batch_size)
        assert tokens == 10 and loss == pytest.approx(plain, abs=1e-5)
    sizes = []
    model.norm.register_forward_hook(lambda *call: sizes.append(1))
    evaluate_lm(model, examples * 50)
    assert len(sizes) == 2  # 150 texts in batches of 128


def test_evaluation_reads_texts_of_similar_length_together(monkeypatch):
    widths = []
    plain = lm.pad_examples
    monkeypatch.setattr(
        lm, "pad_examples", lambda x: widths.append([len(e.ids) for e in x]) or plain(x)
    )
    evaluate_lm(tiny(), EXAMPLES, 4)
    assert widths == [[4] * 4, [6] * 4]


def test_broken_weights_stop_the_loop():
    model = tiny()
    model.norm.weight.data[0] = math.nan
    with pytest.raises(TrainingDiverged, match=r"step 0: loss .* examples \[\d"):
        train_lm(model, EXAMPLES, LMSettings(steps=2, batch_size=4), rng())


def test_a_last_step_that_breaks_the_weights_is_no_success():
    model = tiny()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    settings = LMSettings(steps=1, batch_size=8, lr=math.inf)
    with pytest.raises(TrainingDiverged, match="step 0: weights are not finite"):
        train_lm(model, EXAMPLES, settings, rng())
    for parameter, good in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, good)
