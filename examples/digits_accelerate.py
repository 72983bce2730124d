"""The digits of `digits.py`, trained by a loop for Hugging Face Accelerate.

Needs `pip install 'hubring[accelerate]'`. Run it alone (`python examples/digits_accelerate.py`),
or on a cluster (`hubring run examples/digits_accelerate.py`).
"""

import argparse

import torch
from accelerate import Accelerator
from digits import accuracy, cnn, data
from torch import nn

import hubring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--accumulate", type=int, default=1, help="batches a step")
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = data()
    model = cnn()

    run = hubring.init()
    loader = run.loader(train, batch_size=options.batch_size, shuffle=True)
    optimizer = run.optimizer(torch.optim.Adam(model.parameters(), lr=options.lr), model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=options.accumulate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    for _ in range(options.epochs):
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
            run.log(loss=loss)
        schedule.step()

    run.finish()  # every worker's last step is in the weights now
    run.log(test_accuracy=accuracy(model, test))


if __name__ == "__main__":
    main()
