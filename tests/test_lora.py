"""LoRA: nothing changes at first, few weights learn, and merging is exact."""

import copy

import pytest
import torch
from torch import nn

from minillama.data import PairExample
from minillama.lora import LoRALinear, add_lora, merge_lora
from minillama.model import Llama, LlamaConfig
from minillama.preference_loss import RewardSettings, train_reward_model
from minillama.reward_model import RewardModel

IDS = torch.tensor([[5, 9, 2, 30], [7, 7, 1, 0]])
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def llama():
    return Llama(LlamaConfig(40, 32, 2, 4, 2, 48, 16), seeded()).eval()


def learning(model):
    return {name for name, x in model.named_parameters() if x.requires_grad}


def test_a_change_of_rank_one_by_hand():
    # W x = (1 + 4, 2) = (5, 2); A x = 1 - 2 = -1; B A x = (-3, -1); 4/1 of it
    linear = nn.Linear(2, 2, bias=False)
    adapter = LoRALinear(linear, 1, 4.0)
    for tensor, values in (
        (linear.weight, [[1.0, 2.0], [0.0, 1.0]]),
        (adapter.A, [[1.0, -1.0]]),
        (adapter.B, [[3.0], [1.0]]),
    ):
        tensor.data.copy_(torch.tensor(values))
    x = torch.tensor([1.0, 2.0])
    assert adapter(x).tolist() == [5 - 12, 2 - 4]
    assert adapter.merged().weight.tolist() == [[1 + 12, 2 - 12], [4, 1 - 4]]


def test_nothing_changes_at_first_and_few_weights_learn(llama):
    before = llama(IDS)
    add_lora(llama, 4, 8.0, generator=seeded())
    assert torch.equal(llama(IDS), before)
    assert learning(llama) == {
        f"layers.{i}.self_attn.{name}.{matrix}"
        for i in (0, 1)
        for name in ("q_proj", "v_proj")
        for matrix in "AB"
    }
    # rank times (inputs + outputs): q 32 and 32, v 32 and 2 heads of 8
    count = sum(x.numel() for x in llama.parameters() if x.requires_grad)
    assert count == 2 * 4 * (32 + 32 + 32 + 16)


def test_other_layers_by_name(llama):
    add_lora(llama, 2, 2.0, SEVEN, seeded())
    kinds = [type(x) for x in llama.modules() if isinstance(x, LoRALinear)]
    assert len(kinds) == 2 * 7 and type(llama.lm_head) is nn.Linear


def test_one_seed_one_beginning(llama):
    other = copy.deepcopy(llama)
    add_lora(llama, 4, 8.0, generator=seeded())
    add_lora(other, 4, 8.0, generator=seeded())
    state = other.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in llama.state_dict().items())


def test_training_moves_adapters_and_head_alone(llama):
    model = RewardModel(llama, generator=seeded())
    add_lora(model, 4, 8.0, generator=seeded())
    model.score.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    pair = PairExample([1, 5, 2], [1, 6, 7, 2], 0.0, None, None, 1)
    settings = RewardSettings(epochs=3, batch_size=1, lr=0.01, warmup_steps=1)
    losses = train_reward_model(model, [[pair]], settings, seeded())
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == learning(model) and len(moved) == 2 * 2 * 2 + 1
    assert losses[-1] < losses[0]


def test_merged_it_is_the_old_layout_with_the_same_outputs(llama):
    names = list(llama.state_dict())
    first = llama(IDS)
    add_lora(llama, 4, 8.0, SEVEN, seeded())
    for module in llama.modules():
        if isinstance(module, LoRALinear):
            module.B.data.copy_(torch.randn(module.B.shape, generator=seeded(1)) / 9)
    adapted = llama(IDS)
    assert (adapted - first).abs().max() > 0.1
    merge_lora(llama)
    torch.testing.assert_close(llama(IDS), adapted, atol=1e-5, rtol=1e-5)
    assert list(llama.state_dict()) == names
    assert learning(llama) == set(names)


def test_what_cannot_be_adapted_is_refused(llama):
    with pytest.raises(ValueError, match=r"names must be .*, got \['qkv_proj'\]$"):
        add_lora(llama, 4, 8.0, ("q_proj", "qkv_proj"))
    assert learning(llama)
    add_lora(llama, 4, 8.0)
    with pytest.raises(ValueError, match="must be without adapters"):
        add_lora(llama, 4, 8.0)
