"""Reward models as judges: ours, transformers', with a chat template or without."""

import json

import pytest
import torch
from safetensors.torch import save_file
from sentences import TEXTS, llama_layout
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from minillama import any_reward_model as arm
from minillama.chat_format import chat_format
from minillama.hf import save_reward_model
from minillama.llama_tokenizer import Llama2Tokenizer
from minillama.model import Llama, LlamaConfig
from minillama.preference_file import Comparison, Fault, Tally
from minillama.reward_model import RewardModel
from minillama.tokenizer import train_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system message here') }}{% endif %}"
    "< {{ m.role }} > {{ m.content }} {% endfor %}"
)
WORDS = "< > user assistant Human Assistant : How many eggs ? Two One . Three".split()


def pair(chosen="Two .", rejected="One .", asked="How many ?", system=()):
    return Comparison((*system, ("user", asked)), chosen, rejected, None, None, "x")


PAIRS = [
    pair(),
    pair("Three .", "Two eggs .", "How many eggs ?"),
    pair("One One .", "One ."),
]


def foreign(folder, kind="gpt2", template=None, labels=1, pad=None):
    """Write a tiny reward model of another architecture, with a tokenizer of words."""
    words = {word: i for i, word in enumerate(["<unk>", "<pad>", *WORDS])}
    fast = FastTokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = dict(n_positions=24, n_embd=16, n_layer=1, n_head=2)
        config = GPT2Config(
            vocab_size=len(words), **sizes, num_labels=labels, pad_token_id=pad
        )
        model = GPT2ForSequenceClassification(config)
    else:
        sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        config = BertConfig(
            vocab_size=len(words),
            **sizes,
            intermediate_size=16,
            num_labels=labels,
            pad_token_id=pad,
        )
        model = BertForSequenceClassification(config)
    model.eval().save_pretrained(folder)
    return tokenizer, model


def read(judge, comparisons=PAIRS, tally=None):
    return arm.read_pairs(judge, comparisons, tally)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize("pad", [None, 1])
def test_other_architectures_score_as_one_text_at_a_time(tmp_path, kind, pad):
    tokenizer, model = foreign(tmp_path, kind, pad=pad)
    judge = arm.load_judge(tmp_path)
    assert type(model).__name__ in judge.about and "Human" in judge.about
    found = read(judge)
    texts = [f"\n\nHuman: {c.prompt[0][1]}\n\nAssistant: {c.chosen}" for c in PAIRS]
    assert [p.chosen for _, p in found] == [tokenizer(x)["input_ids"] for x in texts]
    with torch.no_grad():
        alone = [model(torch.tensor([p.chosen])).logits.item() for _, p in found]
    scores = judge.score([p.chosen for _, p in found])
    torch.testing.assert_close(scores, torch.tensor(alone), atol=1e-6, rtol=1e-5)


def test_a_chat_template_is_used_and_what_it_refuses_is_a_fault(tmp_path):
    tokenizer, _ = foreign(tmp_path, template=TEMPLATE)
    judge, tally = arm.load_judge(tmp_path), Tally()
    assert "its own chat template" in judge.about
    with_system = pair(system=[("system", "Be kind.")])
    found = read(judge, [with_system, *PAIRS], tally)
    expected = tokenizer("< user > How many ? < assistant > Two .")["input_ids"]
    assert found[0][1].chosen == expected and [c for c, _ in found] == PAIRS
    assert "no system message here" in tally.first["not encodable"]
    with pytest.raises(Fault, match="no system message here"):
        read(judge, [with_system])


def test_long_dialogues_are_cut_to_what_the_model_reads(tmp_path):
    foreign(tmp_path)
    judge, tally = arm.load_judge(tmp_path), Tally()
    assert judge.max_tokens == 24
    long = pair("One " * 30, "Two " * 30), pair(asked="How " * 30)
    [(_, found)] = read(judge, long, tally)
    assert len(found.chosen) == 24 and tally.cut == 1
    assert tally.skipped == {"identical after truncation": 1}
    arm.judge_pairs(judge, [(long[0], found)])


def test_other_models_are_refused_in_words(tmp_path, monkeypatch):
    foreign(tmp_path / "two", labels=2)
    with pytest.raises(ValueError, match="of 1 label, got 2 labels"):
        arm.load_judge(tmp_path / "two")
    with pytest.raises(FileNotFoundError):
        arm.load_judge(tmp_path / "nothing")
    _, model = foreign(tmp_path / "headless")
    kept = {k: v for k, v in model.state_dict().items() if k != "score.weight"}
    save_file(kept, tmp_path / "headless/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="all of its weights, got none for score.weig"):
        arm.load_judge(tmp_path / "headless")
    foreign(tmp_path / "gpt")
    monkeypatch.setattr(arm, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'transformers>=5'"):
        arm.load_judge(tmp_path / "gpt")


def test_nothing_pickled_is_read(tmp_path):
    _, model = foreign(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        arm.load_judge(tmp_path)


def ours(folder, tokenizer, dtype=torch.float32):
    """Write a tiny reward model of our own, and its tokenizer."""
    generator = torch.Generator().manual_seed(0)
    llama = Llama(LlamaConfig(340, 16, 1, 2, 1, 24, 60), generator).to(dtype)
    model = RewardModel(llama, generator=generator).eval()
    save_reward_model(model, folder, chat_format(tokenizer).special_ids)
    (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    return model


@pytest.mark.parametrize(
    "tokenizer", [train_tokenizer(TEXTS, 300), Llama2Tokenizer(llama_layout())]
)
def test_our_export_is_read_without_transformers_and_scores_as_there(
    tmp_path, tokenizer, monkeypatch
):
    ours(tmp_path, tokenizer)
    monkeypatch.setattr(arm, "find_spec", lambda name: None)
    judge = arm.load_judge(tmp_path)
    texts = [p.chosen for _, p in read(judge)]
    theirs = LlamaForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        alone = [theirs(torch.tensor([ids])).logits.item() for ids in texts]
    scores = judge.score(texts)
    torch.testing.assert_close(scores, torch.tensor(alone), atol=1e-5, rtol=1e-4)


def test_our_export_without_a_tokenizer_or_with_a_larger_one_is_refused(tmp_path):
    ours(tmp_path, train_tokenizer(TEXTS, 300))
    larger = train_tokenizer(["".join(map(chr, range(200, 400)))], 600)
    (tmp_path / "tokenizer.model").write_bytes(larger.model_bytes)
    with pytest.raises(ValueError, match="at most vocab_size = 340 pieces, got"):
        arm.load_judge(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        arm.load_judge(tmp_path)


def fixed(score):
    """A judge whose ids are the characters of a dialogue, and its scores a rule's."""

    def encode(turns):
        return [ord(c) for c in arm.as_plain_text(turns)]

    def score_all(texts):
        return torch.tensor([float(score("".join(map(chr, ids)))) for ids in texts])

    return arm.Judge("a rule", 999, arm.as_dialogues, lambda _: [], encode, score_all)


def test_a_judge_that_reads_the_question_gets_worse_without_it():
    numbers = ["One", "Two", "Three"]
    asked = [
        pair(f"{a} .", f"{numbers[(i + 1) % 3]} .", f"Say {a} ?")
        for i, a in enumerate(numbers)
    ]

    def repeats(text):
        asked, answer = text.split("Assistant: ")
        return answer.split()[0] in asked

    judge = fixed(repeats)
    audited = arm.judge_pairs(judge, read(judge, asked))
    assert audited["accuracy"] == 1.0 and audited["other_prompt"]["pairs"] == 3
    # Under the prompt before it the rejected answer is never asked for, nor is the
    # chosen one: "Say One ?" precedes Two against Three.
    assert audited["other_prompt"]["accuracy"] == 0.5
    blind = fixed(len)
    longer = [pair("Two .", "No .", "Say Two ?"), pair("Three .", "Go .", "Three ?")]
    found = arm.judge_pairs(blind, read(blind, longer))
    assert found["other_prompt"]["accuracy"] == 1.0 == found["accuracy"]
    assert json.loads(json.dumps(found)) == found


def test_no_pairs_and_one_prompt():
    judge = fixed(len)
    assert arm.judge_pairs(judge, []) == {"pairs": 0}
    alone = arm.judge_pairs(judge, read(judge, PAIRS[:1]))
    assert alone["other_prompt"] == {"pairs": 0} and alone["pairs"] == 1
