"""Gradient descent on the cost of linear regression: how diabetes goes on, by ten measurements.

J(theta) = 1/(2m) sum (h - y)^2 over all m training samples: one batch an epoch, one step a batch.
Several workers share the iterations. Their gradients are some steps late, which a small eta bears.

Run it alone (`python examples/linear_regression.py`), or on a cluster
(`hubring run examples/linear_regression.py`).
"""

import argparse

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

import hubring


def data() -> tuple[TensorDataset, TensorDataset]:
    """(training set, test set): features [m, 10] standardised by the training set; targets [m]."""
    features, targets = load_diabetes(return_X_y=True, scaled=False)
    parts = train_test_split(features, targets, test_size=0.2, random_state=0)
    x_train, x_test, y_train, y_test = (torch.from_numpy(part) for part in parts)  # float64
    mean, deviation = x_train.mean(0), x_train.std(0, correction=0)

    def tensors(x, y):
        return TensorDataset((x - mean) / deviation, y)

    return tensors(x_train, y_train), tensors(x_test, y_test)


def linear(features: int) -> nn.Linear:
    """h(x) = weight x + bias, which begins at 0."""
    model = nn.Linear(features, 1, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def cost(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """J = 1/(2m) sum (h - y)^2."""
    return (model(x).squeeze(1) - y).square().sum() / (2 * len(y))


@torch.no_grad()
def r2(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of the targets' variance that the model explains."""
    return 1 - (cost(model, x, y) / ((y - y.mean()).square().mean() / 2)).item()


def descend(
    run: hubring.Run, model: nn.Module, train: TensorDataset, rate: float, iterations: int
) -> None:
    loader = run.loader(train, batch_size=len(train))
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=rate), model)
    for _ in range(iterations):
        for x, y in loader:
            optimizer.zero_grad()
            loss = cost(model, x, y)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--rate", type=float, default=0.05, help="eta; one worker bears up to 0.48")
    options = parser.parse_args()

    train, test = data()
    model = linear(features=10)

    run = hubring.init()
    descend(run, model, train, options.rate, options.iterations)

    run.finish()  # every worker's last step is in the weights now
    run.log(cost=cost(model, *train.tensors), test_r2=r2(model, *test.tensors))


if __name__ == "__main__":
    main()
