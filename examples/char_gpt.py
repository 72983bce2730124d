"""A small transformer learns to predict the next character of Python's reference manual.

GPT's blocks, causal self-attention and a feed-forward layer, each behind a norm, on the text of
`char_rnn.py`. Run it alone (`python examples/char_gpt.py`), or on a cluster
(`hubring run examples/char_gpt.py`).
"""

import argparse
import time

import torch
from char_rnn import MOST_EPOCHS, Windows, data
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

import hubring

HEAD = 32  # channels of one head
WARMUP = 0.05  # of the time, in which the rate rises


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attend, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] to the same; no time sees a later one."""
        x = x + self.join(self.heads(self.norms[0](x)))
        return x + self.down(gelu(self.up(self.norms[1](x))))

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """What each head gathers, side by side."""
        parts = self.attend(x).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)


class CharGPT(nn.Module):
    def __init__(self, characters: int, window: int, width: int, blocks: int) -> None:
        super().__init__()
        self.window = window
        self.embed, self.place = nn.Embedding(characters, width), nn.Embedding(window, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        for table in (self.embed, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [batch, time] to scores of the next character [batch, character, time]."""
        x = self.embed(codes) + self.place.weight[: codes.shape[1]]
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


@torch.no_grad()
def perplexity(model: CharGPT, codes: torch.Tensor) -> float:
    """Exp of the mean negative log-likelihood of a character.

    Windows overlap by half. What counts is their second half, so that each character is judged
    with at least half a window before it; a rest that fills no window is left out.
    """
    model.eval()
    half = model.window // 2
    windows = codes[: (len(codes) - 1) // half * half + 1].unfold(0, 2 * half + 1, half)
    total, count = 0.0, 0
    for part in windows.split(64):
        scores = model(part[:, :-1])[:, :, half:]
        total += cross_entropy(scores, part[:, half + 1 :], reduction="sum").item()
        count += part.shape[0] * half
    return torch.tensor(total / count).exp().item()


def train(
    model: nn.Module, run: hubring.Run, options: argparse.Namespace, windows: Windows
) -> None:
    """Train until the time is up, at a rate that rises first, then falls to 0 by then."""
    loader = run.loader(windows, batch_size=options.batch_size, shuffle=True)
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=options.lr), model)
    began = time.monotonic()
    for _ in range(MOST_EPOCHS):
        for before, after in loader:
            spent = (time.monotonic() - began) / (60 * options.minutes)
            if spent >= 1:
                return
            optimizer.param_groups[0]["lr"] = options.lr * min(spent / WARMUP, 1 - spent)
            optimizer.zero_grad()
            loss = cross_entropy(model(before), after)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.log(loss=loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--width", type=int, default=128, help=f"a multiple of {HEAD}")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to train")
    parser.add_argument("--window", type=int, default=64, help="characters a sample")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    text, test, characters = data()
    model = CharGPT(len(characters), options.window, options.width, options.blocks)

    run = hubring.init()
    train(model, run, options, Windows(text, options.window))
    run.finish()  # every worker's last step is in the weights now
    run.log(test_perplexity=perplexity(model, test))


if __name__ == "__main__":
    main()
