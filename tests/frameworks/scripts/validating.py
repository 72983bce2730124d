"""`digits_lightning.py` with validation after each epoch; writes down how many there were."""

import json
import sys
from pathlib import Path

import lightning
from digits import data
from digits_lightning import Digits
from torch import nn
from torch.utils.data import DataLoader

import hubring


class Validated(Digits):
    validations = 0

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self(images), labels))

    def on_validation_epoch_end(self):
        self.validations += 1


def main():
    train, test = data()
    run = hubring.init()
    module = Validated(run, lr=3e-3)
    trainer = lightning.Trainer(
        max_epochs=int(sys.argv[1]),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    loader = run.loader(train, batch_size=32, shuffle=True, even=True)
    trainer.fit(module, loader, DataLoader(test, batch_size=100))
    counts = {"validations": module.validations, "steps": trainer.global_step}
    Path(f"{run.worker}.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
