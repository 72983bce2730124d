"""A recurrent network learns to predict the next character of Python's reference manual.

The text comes with Python: `pydoc_data.topics`, what `help("for")` shows. Run it alone
(`python examples/char_rnn.py`), or on a cluster (`hubring run examples/char_rnn.py`).
"""

import argparse
import time
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.utils.data import Dataset

import hubring

MOST_EPOCHS = 1000  # the clock ends the training long before


class Windows(Dataset):
    """Windows of `length` characters, end to end, each with the characters that follow them."""

    def __init__(self, codes: torch.Tensor, length: int) -> None:
        self.codes, self.length = codes, length

    def __len__(self) -> int:
        return (len(self.codes) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.codes[index * self.length : (index + 1) * self.length + 1]
        return window[:-1], window[1:]


class CharRNN(nn.Module):
    def __init__(self, characters: int, cell: str, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, 64)
        self.rnn = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](64, hidden, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(hidden, characters)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [batch, time] to scores of the next character [batch, character, time]."""
        return self.head(self.drop(self.rnn(self.embed(codes))[0])).transpose(1, 2)


def data() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(training text, test text, characters): a text is int64 [n] that indexes `characters`.

    Topics share paragraphs. Each is kept once, so that none is in both texts.
    """
    pages = (topics[topic] for topic in sorted(topics))
    paragraphs = [part.strip("\n") for page in pages for part in page.split("\n\n")]
    text = "\n\n".join(dict.fromkeys(paragraphs))
    characters = sorted(set(text))
    index = {character: code for code, character in enumerate(characters)}
    codes = torch.tensor([index[character] for character in text])
    split = len(codes) * 9 // 10
    return codes[:split], codes[split:], characters


@torch.no_grad()
def perplexity(model: nn.Module, codes: torch.Tensor, streams: int = 16) -> float:
    """Exp of the mean negative log-likelihood of a character; `streams` parts read side by side."""
    model.eval()
    length = (len(codes) - 1) // streams
    before, after = (codes[shift : shift + streams * length] for shift in (0, 1))
    scores = model(before.view(streams, length))
    return nn.functional.cross_entropy(scores, after.view(streams, length)).exp().item()


def train(
    model: nn.Module, run: hubring.Run, options: argparse.Namespace, windows: Windows
) -> None:
    """Train until the time is up, at a rate that falls to 0 by then."""
    loader = run.loader(windows, batch_size=options.batch_size, shuffle=True)
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=options.lr), model)
    began = time.monotonic()
    for _ in range(MOST_EPOCHS):
        for before, after in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(before), after)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.log(loss=loss)
            left = 1 - (time.monotonic() - began) / (60 * options.minutes)
            if left <= 0:
                return
            optimizer.param_groups[0]["lr"] = options.lr * left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", choices=["gru", "lstm"], default="gru")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to train")
    parser.add_argument("--window", type=int, default=64, help="characters a sample")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    text, test, characters = data()
    model = CharRNN(len(characters), options.cell, options.hidden)

    run = hubring.init()
    train(model, run, options, Windows(text, options.window))
    run.finish()  # every worker's last step is in the weights now
    run.log(test_perplexity=perplexity(model, test))


if __name__ == "__main__":
    main()
