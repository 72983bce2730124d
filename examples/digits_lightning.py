"""The digits of `digits.py`, trained by Lightning: its Trainer, hubring's optimizer and loader.

Needs `pip install 'hubring[lightning]'`. Run it alone (`python examples/digits_lightning.py`), or
on a cluster (`hubring run examples/digits_lightning.py`).
"""

import argparse

import lightning
import torch
from digits import accuracy, cnn, data
from torch import nn

import hubring


class Digits(lightning.LightningModule):
    def __init__(self, run: hubring.Run, lr: float) -> None:
        super().__init__()
        self.run, self.lr = run, lr
        self.net = cnn()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.run.log(loss=loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        optimizer = self.run.optimizer(optimizer, self)
        epochs = self.trainer.max_epochs
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = data()
    run = hubring.init()
    # The Trainer believes len(loader): with `even` each worker gets exactly so many batches.
    loader = run.loader(train, batch_size=options.batch_size, shuffle=True, even=True)
    module = Digits(run, options.lr)
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,  # each worker would write; the run's model is written once
        enable_progress_bar=False,  # the cluster has one
        enable_model_summary=False,
    )
    trainer.fit(module, loader)

    run.finish()  # every worker's last step is in the weights now
    run.log(test_accuracy=accuracy(module, test))


if __name__ == "__main__":
    main()
