"""The example `char_gpt.py`: what its model sees, and its measure."""

import math

import pytest
import torch
from examples.char_gpt import CharGPT, perplexity


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CharGPT(7, window=16, width=64, blocks=2).eval()


def test_no_score_depends_on_a_later_character(model):
    codes = torch.randint(7, (1, 16))
    changed = codes.clone()
    changed[0, 9] = (codes[0, 9] + 1) % 7
    before, after = model(codes), model(changed)
    assert before.shape == (1, 7, 16)
    assert torch.allclose(before[:, :, :9], after[:, :, :9], atol=1e-6)
    assert not torch.allclose(before[:, :, 9:], after[:, :, 9:], atol=1e-3)


def test_places_and_earlier_characters_count(model):
    first, second = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 1, 3]])
    assert not torch.allclose(model(first)[..., -1], model(second)[..., -1], atol=1e-3)
    same = model(torch.zeros(1, 4, dtype=torch.long))
    assert not torch.allclose(same[..., 0], same[..., 3], atol=1e-3)


def test_attention_is_that_of_the_formula(model):
    x, block = torch.randn(2, 5, 64), model.blocks[0]
    query, key, value = block.attend(x).split(64, dim=-1)
    expected = []
    for head in (slice(0, 32), slice(32, 64)):
        weights = query[..., head] @ key[..., head].transpose(1, 2) / math.sqrt(32)
        weights = weights.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        expected.append(weights.softmax(-1) @ value[..., head])
    assert torch.allclose(block.heads(x), torch.cat(expected, -1), atol=1e-5)


def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_characters(model):
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert perplexity(model, torch.randint(7, (500,))) == pytest.approx(7, rel=1e-5)


@torch.no_grad()
def test_perplexity_is_of_characters_with_half_a_window_before_them(model):
    """Each beside the model's answer to the 16 characters that its window has."""
    codes = torch.randint(7, (16 + 3 * 8 + 1 + 5,))
    losses = []
    for start in (0, 8, 16, 24):
        scores = model(codes[None, start : start + 16])[0].log_softmax(0)
        losses += [-scores[codes[start + t + 1], t].item() for t in range(8, 16)]
    assert len(losses) == 32
    assert perplexity(model, codes) == pytest.approx(math.exp(sum(losses) / 32))
