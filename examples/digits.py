"""A convolutional network learns scikit-learn's 1,797 handwritten digits (8 x 8 pixels).

Run it alone (`python examples/digits.py`), or on a cluster (`hubring run examples/digits.py`).
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

import hubring


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64 * 4 * 4, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def data() -> tuple[TensorDataset, TensorDataset]:
    """(training set, test set): images as float32 [n, 1, 8, 8], 0 to 1; labels as int64 [n]."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    x_train, x_test, y_train, y_test = (torch.from_numpy(part) for part in parts)

    def tensors(x, y):
        return TensorDataset(x.float().div(16).view(-1, 1, 8, 8), y.long())

    return tensors(x_train, y_train), tensors(x_test, y_test)


@torch.no_grad()
def accuracy(model: nn.Module, dataset: TensorDataset) -> float:
    model.eval()
    images, labels = dataset.tensors
    return (model(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["cnn", "mlp"], default="cnn")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = data()
    model = {"cnn": cnn, "mlp": mlp}[options.model]()

    run = hubring.init()
    loader = run.loader(train, batch_size=options.batch_size, shuffle=True)
    optimizer = run.optimizer(torch.optim.Adam(model.parameters(), lr=options.lr), model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)

    for _ in range(options.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
        schedule.step()

    run.finish()  # every worker's last step is in the weights now
    run.log(test_accuracy=accuracy(model, test))


if __name__ == "__main__":
    main()
