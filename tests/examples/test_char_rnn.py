"""The example `char_rnn.py`: its text, its windows, its measure."""

import math

import pytest
import torch
from examples.char_rnn import CharRNN, Windows, data, perplexity


def test_the_texts_share_no_paragraph():
    train, test, characters = data()
    assert len(train) > 300_000
    assert 9 * len(test) == pytest.approx(len(train), rel=0.01)
    text, whole = ("".join(characters[code] for code in codes) for codes in (test, train))
    paragraphs = [p for p in text.split("\n\n")[1:-1] if len(p) > 40]
    assert len(paragraphs) > 100
    assert not [p for p in paragraphs if f"\n\n{p}\n\n" in whole]


def test_the_codes_spell_english():
    train, _, characters = data()
    assert len(set(characters)) == len(characters) < 128
    assert train.min() >= 0 and train.max() < len(characters)
    assert " statement" in "".join(characters[code] for code in train)


@pytest.mark.parametrize("characters", [65, 128, 129, 192])
def test_windows_lie_end_to_end(characters):
    codes = torch.arange(characters)
    windows = Windows(codes, 64)
    read = [windows[index] for index in range(len(windows))]
    assert torch.equal(torch.cat([before for before, _ in read]), codes[: 64 * len(read)])
    assert all(torch.equal(after, before + 1) and len(after) == 64 for before, after in read)
    assert len(read) == (characters - 1) // 64


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_characters(cell):
    model = CharRNN(30, cell, hidden=8)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert perplexity(model, torch.randint(30, (500,))) == pytest.approx(30, rel=1e-5)


def test_perplexity_is_of_each_next_character():
    """Two streams of a text of its own, beside a loop."""
    torch.manual_seed(0)
    model, codes = CharRNN(5, "gru", hidden=8).eval(), torch.randint(5, (41,))
    losses = []
    with torch.no_grad():
        for stream in (codes[:21], codes[20:]):
            scores = model(stream[None, :-1])[0].log_softmax(0)
            losses += [-scores[code, time].item() for time, code in enumerate(stream[1:])]
    assert len(losses) == 40
    assert perplexity(model, codes, streams=2) == pytest.approx(math.exp(sum(losses) / 40))
