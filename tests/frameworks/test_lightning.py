"""Lightning's Trainer with hubring's optimizer and loader: what works as with torch's own."""

import lightning
import pytest
import torch
from frameworks.sums import BATCHES, both, data, net, one_worker
from torch import nn
from torch.utils.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice, and its own deprecations


class Sums(lightning.LightningModule):
    """`interval` of the scheduler: "epoch" or "step"."""

    def __init__(self, run, interval="epoch"):
        super().__init__()
        self.hub, self.interval, self.net = run, interval, net()
        self.validated, self.rates = [], []

    def training_step(self, batch, _):
        x, y = batch
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return nn.functional.mse_loss(self.net(x), y)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x), y))

    def on_validation_epoch_end(self):
        self.validated.append(self.trainer.current_epoch)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        optimizer = self.hub.optimizer(optimizer, self)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": self.interval},
        }


class ByHand(Sums):
    """Manual optimization."""

    def __init__(self, run):
        super().__init__(run)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer, loss = self.optimizers(), super().training_step(batch, index)
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.3, gradient_clip_algorithm="norm")
        optimizer.step()


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 3, "enable_checkpointing": False, **quiet, **options}
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_clip_val": 0.3},
        {"accumulate_grad_batches": 3},
        {"accumulate_grad_batches": 5},  # the last step of an epoch has two batches
        {"precision": "bf16-mixed"},
        {"max_steps": 20, "max_epochs": -1},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_one_worker_trains_as_lightning_alone_does(tmp_path, options, interval):
    models = []

    def train(run):
        models.append(Sums(run, interval))
        trainer(tmp_path, **options).fit(models[-1], run.loader(data(), batch_size=8))
        return models[-1]

    plain, ours = both(tmp_path, train)
    assert models[0].rates == models[1].rates
    for ours_one, plain_one in zip(ours, plain, strict=True):
        torch.testing.assert_close(ours_one, plain_one, rtol=1e-6, atol=1e-7)


def test_manual_optimization(tmp_path):
    def train(run):
        model = ByHand(run)
        trainer(tmp_path).fit(model, run.loader(data(), batch_size=8))
        return model

    plain, ours = both(tmp_path, train)
    for ours_one, plain_one in zip(ours, plain, strict=True):
        torch.testing.assert_close(ours_one, plain_one, rtol=1e-6, atol=1e-7)


def test_validation_and_checkpoints_of_one_worker(tmp_path):
    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "kept", monitor="val_loss", save_top_k=-1
    )
    with one_worker(tmp_path) as run:
        model = Sums(run)
        chosen = trainer(
            tmp_path, enable_checkpointing=True, callbacks=[keep], num_sanity_val_steps=0
        )
        chosen.fit(model, run.loader(data(), batch_size=8), DataLoader(data(), batch_size=32))
        run.finish()
        assert model.validated == [0, 1, 2]
        last = max((tmp_path / "kept").glob("*.ckpt"))
        saved = torch.load(last, weights_only=True)
        assert saved["global_step"] == 3 * BATCHES
        again = Sums(None)
        again.load_state_dict(saved["state_dict"])
        assert saved["optimizer_states"][0]["hubring"] == {"steps": 3 * BATCHES}
        for name, value in again.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])
