"""TRL as an oracle: its first loss and gradient on our export are ours.

TRL itself is asked where it is installed (`pip install -e '.[trl]'`); the formula that
its documentation states, with transformers' model, everywhere.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from minillama.data import PairExample
from minillama.hf import save_reward_model
from minillama.model import Llama, LlamaConfig
from minillama.preference_loss import bradley_terry_loss, pair_scores
from minillama.reward_model import RewardModel
from minillama.tokenizer import PAD_ID

PAIRS = [
    PairExample([1, 4, 9, 5, 30, 2], [1, 4, 9, 5, 31, 32, 33, 2], 0.0, None, None, 4),
    PairExample([1, 4, 8, 5, 11, 12, 2], [1, 4, 8, 5, 2], 0.0, None, None, 4),
    PairExample([1, 4, 7, 5, 21, 2], [1, 4, 7, 5, 22, 2], 0.0, None, None, 4),
]


@pytest.fixture
def ours(tmp_path):
    """A reward model of two blocks, whose export lies in tmp_path."""
    generator = torch.Generator().manual_seed(0)
    llama = Llama(LlamaConfig(40, 32, 2, 4, 2, 48, 64), generator)
    model = RewardModel(llama, generator=generator)
    save_reward_model(model, tmp_path)
    return model


def our_loss(model, pairs):
    loss = bradley_terry_loss(*pair_scores(model, pairs))
    loss.backward()
    return loss


def assert_equal_gradients(theirs, ours):
    ours = {name.removeprefix("llama."): x.grad for name, x in ours.named_parameters()}
    theirs = {
        name.removeprefix("model."): x.grad for name, x in theirs.named_parameters()
    }
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradient, ours[name], atol=1e-6, rtol=1e-4)


def test_the_documented_loss_on_the_export(ours, tmp_path):
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    sides = [x.chosen for x in PAIRS] + [x.rejected for x in PAIRS]
    width = max(map(len, sides))
    ids = torch.tensor([x + [PAD_ID] * (width - len(x)) for x in sides])
    rewards = theirs(ids, attention_mask=(ids != PAD_ID).long()).logits.squeeze(-1)
    chosen, rejected = rewards.chunk(2)
    loss = -F.logsigmoid(chosen - rejected).mean()
    loss.backward()
    torch.testing.assert_close(loss, our_loss(ours, PAIRS), atol=1e-6, rtol=0)
    assert_equal_gradients(theirs, ours)


def symbols():
    """A tokenizer of transformers that has a padding symbol, which is all TRL asks."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = {f"<{i}>": i for i in range(40)}
    words = Tokenizer(models.WordLevel(pieces, unk_token="<0>"))
    names = dict(unk_token="<0>", eos_token="<2>", pad_token=f"<{PAD_ID}>")
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


@pytest.mark.parametrize("margins", [None, [0.5, 0.0, 2.0]])
def test_trl_itself(ours, tmp_path, margins):
    trl = pytest.importorskip("trl", reason="only where TRL is installed")
    from datasets import Dataset, table

    columns = {
        "chosen_ids": [x.chosen for x in PAIRS],
        "rejected_ids": [x.rejected for x in PAIRS],
    }
    if margins:
        columns["margin"] = margins
    rows = table.InMemoryTable.from_pydict(columns)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    trainer = trl.RewardTrainer(
        theirs,
        trl.RewardConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=3,
            bf16=False,
            use_cpu=True,
            max_length=None,
            report_to=[],
        ),
        train_dataset=Dataset(rows, fingerprint="pairs"),
        processing_class=symbols(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    scores = pair_scores(ours, PAIRS)
    margin = None if margins is None else torch.tensor(margins)
    our_loss = bradley_terry_loss(*scores, margin)
    our_loss.backward()
    torch.testing.assert_close(loss, our_loss, atol=1e-6, rtol=0)
    assert_equal_gradients(trainer.model, ours)
