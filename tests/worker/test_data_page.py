"""Every block of Python on the page about data runs, on a cluster of its own."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset
from whole import cluster

from hubring_worker import sealed
from hubring_worker.loader import HubLoader

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
NEEDS_A_LOADER = "for step, "


@pytest.fixture
def script(tmp_path):
    """What a script has before the lines that the page shows."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (folder / name).write_text("1 2 3 4\n2 3 4 5\n3 4 5 6\n")
    sealed.seal(folder)
    with cluster(tmp_path / "cluster", servers=1) as whole:
        run, model = whole.join(), torch.nn.Linear(4, 1)
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=1e-3), model)
        dataset = TensorDataset(torch.rand(40, 4), torch.rand(40, 1))
        yield {
            "torch": torch,
            "run": run,
            "model": model,
            "optimizer": optimizer,
            "dataset": dataset,
            "folder": folder,
        }


def test_the_page_has_blocks():
    assert len(BLOCKS) >= 7


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_and_nothing_that_it_drew_is_left_open(script, block):
    run = script["run"]
    if block.startswith(NEEDS_A_LOADER):
        script["loader"] = run.loader(script["dataset"], batch_size=4)
    before = script["model"].weight.detach().clone()
    exec(compile(block, str(PAGE), "exec"), script)
    if "step()" in block:
        assert not torch.equal(before, script["model"].weight)
    run.finish()
    loader = script["loader"]
    assert loader.take_delivered() == ((), 0)
    assert not [key for key in run._session._leased if key.epoch < loader._next_epoch]


def test_the_loader_has_no_option_that_the_page_lacks():

    internal = {"self", "tasks", "dataset", "seed", "workers_hint", "dataloader_options"}
    options = inspect.signature(HubLoader.__init__).parameters.keys() - internal
    assert not [name for name in options if name not in PAGE.read_text()]
