"""V(x) is read where the prompt ends, in the same pass, and trains nothing but itself."""

from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from preftune.data import TokenizedGroup
from preftune.data.packing import pack
from preftune.models import Policy, ValueHead
from preftune.models.value_head import load_value_head, save_value_head

CONFIG = transformers.LlamaConfig(
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=200,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
)


def awake(seed: int = 0) -> ValueHead:
    """A head whose last layer is no longer zero."""
    head = ValueHead(48, 16, seed)
    torch.manual_seed(1)
    torch.nn.init.normal_(head.layers[-1].weight)
    return head


def test_the_value_is_that_of_the_prompt_read_alone(tiny_model, token_groups: list[TokenizedGroup]) -> None:
    """Packed, every response gets the V that the head gives to a forward pass over its prompt and no more."""
    model, head = tiny_model(CONFIG), awake()
    policy = Policy(model, value_head=head)
    values = policy(pack(token_groups)).values
    policy.restore()
    expected = []
    for group in token_groups:
        ids = torch.tensor(group.prompt.astype("int64"))[None]
        last = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        expected += [head(last[None]).item()] * len(group.packed)
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert len({round(value, 4) for value in expected}) == len(token_groups)


def test_padded_rows_give_the_same_values(tiny_model, token_groups: list[TokenizedGroup]) -> None:
    """A model that cannot share prompts has the same V."""
    batch, head = pack(token_groups), awake()
    packed = Policy(tiny_model(CONFIG), value_head=head)(batch).values
    padded = Policy(tiny_model(CONFIG), share_prompts=False, value_head=head)(batch).values
    torch.testing.assert_close(padded, packed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_the_value_trains_the_head_alone(
    adapter: bool, tiny_model, token_groups: list[TokenizedGroup]
) -> None:
    """Through V no gradient reaches the language model or its adapter, and all of the head gets one."""
    model = tiny_model(CONFIG)
    if adapter:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    policy = Policy(model, value_head=awake())
    policy(pack(token_groups)).values.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in policy.value_head.parameters())


def test_the_head_starts_at_zero_and_leaves_the_random_state_alone() -> None:
    """V starts at the mean of a standardised reward; what is drawn next does not depend on the head."""
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    head = ValueHead(48, 16, seed=5)
    assert torch.equal(torch.rand(4), expected)
    assert head(torch.randn(3, 48)).tolist() == [0.0, 0.0, 0.0]
    same, other = ValueHead(48, 16, seed=5), ValueHead(48, 16, seed=6)
    assert torch.equal(same.layers[0].weight, head.layers[0].weight)
    assert not torch.equal(other.layers[0].weight, head.layers[0].weight)


def test_the_head_computes_in_float32_under_autocast() -> None:
    """Half precision around it changes nothing; a hidden state in half precision is widened first."""
    head, hidden = awake(), torch.randn(3, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(hidden), head(hidden.double().float()))
        assert head(hidden.bfloat16()).dtype == torch.float32


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """Weights survive the file, bit for bit."""
    head, other = awake(), ValueHead(48, 16, seed=9)
    save_value_head(head.state_dict(), tmp_path)
    other.load_state_dict(load_value_head(tmp_path))
    hidden = torch.randn(3, 48)
    assert torch.equal(other(hidden), head(hidden))


def test_the_head_of_halos_by_hand() -> None:
    """relu(W2 relu(W1 h)) times the last weights, of a hidden state as it is, without dropout in evaluation.

    On h = (3, -4) with identities, W1 h = (3, -4) becomes (3, 0), and 2 * 3 + 5 * 0 + 1 = 7. Ours would
    normalise h to (1, -1) first.
    """
    head = ValueHead(2, None, seed=0, architecture="halos", dropout=0.1).eval()
    first, second, last = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    assert (second.in_features, second.out_features) == (2, 2)  # as wide as the hidden state
    for layer in (first, second):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    last.weight.data, last.bias.data = torch.tensor([[2.0, 5.0]]), torch.tensor([1.0])
    assert head(torch.tensor([[3.0, -4.0]])).item() == 7.0


def test_the_head_of_halos_starts_at_random_weights_and_drops_units_in_training() -> None:
    """V is no constant at the start; in training half of its units are gone, in evaluation none."""
    hidden = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    head = ValueHead(48, None, seed=5, architecture="halos", dropout=0.5)
    assert head.eval()(hidden).std() > 0.01
    assert torch.equal(head(hidden), head(hidden))
    assert not torch.equal(head.train()(hidden), head(hidden))
    same = ValueHead(48, None, seed=5, architecture="halos").train()
    assert torch.equal(same(hidden), head.eval()(hidden))


def test_through_the_head_of_halos_no_gradient_reaches_the_model() -> None:
    """The hidden state is detached there too."""
    hidden = torch.randn(3, 8, requires_grad=True)
    head = ValueHead(8, None, seed=0, architecture="halos")
    head(hidden).sum().backward()
    assert hidden.grad is None
    assert all(weight.grad is not None for weight in head.parameters())
