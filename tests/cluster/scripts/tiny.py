"""A linear model on 240 samples; what the arguments ask for besides, it does."""

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import hubring


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds each step takes")
    parser.add_argument("--raise-at", type=int, default=-1)
    parser.add_argument("--exit-at", type=int, default=-1)
    parser.add_argument("--kill-once", type=Path, help="die by SIGKILL, unless this file exists")
    parser.add_argument("--mark", type=Path, help="made at the first step")
    parser.add_argument("--processes", type=int, default=0, help="of the data loader")
    options = parser.parse_args()

    torch.manual_seed(0)
    x = torch.randn(240, 4)
    data = TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]]))
    model = nn.Linear(4, 1)
    run = hubring.init()
    loader = run.loader(data, batch_size=8, shuffle=True, num_workers=options.processes)
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05), model)
    step = 0
    for _ in range(options.epochs):
        for inputs, targets in loader:
            if step == options.raise_at:
                raise ValueError(f"bad luck in step {step}")
            if step == options.exit_at:
                raise SystemExit(3)
            if step == 3 and options.kill_once and not options.kill_once.exists():
                options.kill_once.touch()
                os.kill(os.getpid(), 9)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
            time.sleep(options.pause)
            step += 1
            if options.mark:
                options.mark.touch()
    run.finish()
    run.log(mse=nn.functional.mse_loss(model(data.tensors[0]), data.tensors[1]))


if __name__ == "__main__":
    main()
