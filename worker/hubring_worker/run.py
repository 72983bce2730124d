"""The run as a training script holds it: what `hubring.init()` returns."""

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from hubring_common.carrier.grpc import GrpcCarrier
from hubring_common.errors import HubringError, UsageError, VersionMismatch
from hubring_common.layout import plan
from hubring_common.messages import Leave, ShardPlace, StopRule, WorkerProgress
from hubring_common.timing import Timing
from hubring_worker.adopt import adopt
from hubring_worker.evaluation import Evaluator, Measure
from hubring_worker.flat import FlatModel
from hubring_worker.hub import HubClient
from hubring_worker.link import ShardLink
from hubring_worker.loader import HubLoader
from hubring_worker.optimizer import wrap
from hubring_worker.progress import Progress
from hubring_worker.session import WorkerSession
from hubring_worker.still import Still
from hubring_worker.stopping import rules_of

log = logging.getLogger(__name__)


class Run:
    """One worker's part in a run. Make it with `hubring.init()`.

    The training thread alone calls it. Every call raises the run's error once the run is over.
    """

    def __init__(self, coordinator: str, token: str, timing: Timing) -> None:
        self._token = token
        self._progress = Progress()
        self._session = WorkerSession(coordinator, token, timing, self._report)
        self._hub: HubClient | None = None
        self._evaluator: Evaluator | None = None
        self._rules: tuple[StopRule, ...] = ()
        self._loader: HubLoader | None = None
        self._model: nn.Module | None = None
        self._metrics: dict[str, float] = {}
        self._closed = self._writes_model = False
        self._welcome = self._session.join(torch.__version__)

    @property
    def id(self) -> str:
        return self._welcome.run

    @property
    def worker(self) -> str:
        """The name of this worker, such as worker-0."""
        return self._welcome.name

    def loader(self, dataset: Any, **options: Any) -> HubLoader:
        """A DataLoader whose batches are leased, so that each is trained once a data epoch.

        Takes DataLoader's own options. Iterate it once an epoch, as ever. Raises UsageError for
        data that cannot be leased, SettingsMismatch where another worker's differ.
        """
        if self._loader is not None:
            fact = "this run has its training loader already"
            raise UsageError(fact, todo="evaluate on an ordinary torch DataLoader")
        self._loader = HubLoader(
            self._session,
            dataset,
            seed=self._welcome.seed,
            workers_hint=lambda: self._session.workers,
            **options,
        )
        if self._hub is not None:
            self._hub.drawn = self._loader
        return self._loader

    def optimizer(
        self, optimizer: torch.optim.Optimizer, model: nn.Module
    ) -> torch.optim.Optimizer:
        """`optimizer`, stepping on the hub; `model`'s parameters become the run's weights.

        What the optimizer does not step, frozen parameters and buffers, takes the values that
        the run's first worker began with, and is this worker's own from then on.

        Waits for the cluster to form. Raises UsageError for an optimizer that the hub cannot
        step, ModelMismatch where the model is not the run's.
        """
        if self._hub is not None:
            raise UsageError("this run has its optimizer already", todo="one model a run")
        adopted = adopt(model, optimizer)
        still = Still(model, adopted.params)
        spec = replace(adopted.spec, still=still.specs)
        self._session.declare_model(spec, {"mode": self._welcome.mode})
        formed = self._session.wait_formed()
        flat = FlatModel(plan(spec, len(formed.places)), model, adopted.params)
        links = [self._link(place, flat) for place in formed.places]
        self._hub, self._model = HubClient(self._session, flat, links, self._progress), model
        self._hub.drawn = self._loader
        self._hub.start(still, seed_them=formed.seed_them)
        self._evaluator = Evaluator(self._session, self._hub, model)
        wrapped = wrap(optimizer, flat, self._hub)
        if formed.seeded:
            # A joiner's scheduler passes over epochs that others stepped in; without this torch
            # would warn that the scheduler was stepped before the optimizer.
            vars(wrapped)["_opt_called"] = True
        return wrapped

    def evaluate(
        self, fn: Measure, dataset: Any, *, batch_size: int = 64, **options: Any
    ) -> dict[str, float]:
        """Measure the run's weights on `dataset`, every worker a part of it.

        `fn(batch)` returns {name: (sum, count)}; a metric is the sum of all sums divided by the
        sum of all counts, exactly, whoever measured what. The model is in evaluation mode
        meanwhile, without gradients, and its running statistics (BatchNorm's) are the mean of
        all workers'. `options` are DataLoader's: collate_fn, num_workers, ...

        Collective: the i-th call of every worker is one evaluation. It waits until all workers
        that train have come, so that no push is in flight, and returns the same on each; a
        worker that joined later gets the result at once. Raises UsageError for data without a
        length, SettingsMismatch where another worker's differs.
        """
        if self._evaluator is None:
            fact = "there are no weights to evaluate yet"
            raise UsageError(fact, todo="call run.optimizer(...) first")
        return self._evaluator.evaluate(fn, dataset, batch_size, **options)

    def stop_when(self, metric: str = "", **conditions: Any) -> None:
        """End the run, for all workers, when one of the conditions holds.

        Of `metric` (one that `evaluate` returns, or the logged "loss"): `at_least=`, `at_most=`,
        or `patience=` with `min_delta=` and `maximize=`: no improvement by more than `min_delta`
        in so many evaluations (for the logged loss: finished epochs). Of the run: `steps=`,
        `epochs=`, `seconds=`. The loader then ends, and `draining` is true.

        Raises UsageError for conditions that make no sense, SettingsMismatch where another
        worker gave others.
        """
        self._rules += rules_of(metric, **conditions)
        self._session.stop_when(self._rules)

    def drain(self, why: str = "asked to") -> None:
        """Leave the run, which goes on: the loader ends, and `close` waits for no others.

        Safe in a signal handler.
        """
        self._session.drain(why)

    @property
    def draining(self) -> bool:
        """The run, or this worker, was asked to stop, and the loader is empty from now on.

        A loop over epochs then ends by itself; one that goes on until a time or a number of
        steps is reached should also ask here.
        """
        return self._session.draining

    def log(self, **metrics: Any) -> None:
        """Report numbers: `loss` shows in the progress line, all of them in the run's summary."""
        for name, value in metrics.items():
            number = float(value.detach()) if isinstance(value, torch.Tensor) else float(value)
            self._metrics[name] = number
            if name == "loss":
                self._progress.logged(number)

    def finish(self) -> None:
        """Wait for every worker's last push, then take the final weights into the model.

        Call it before evaluating the trained model. No step may follow.
        """
        if self._hub is None or self._hub.is_final:
            return
        if self._loader is not None:
            self._loader.give_back()
        self._hub.flush()
        buffers = self._evaluator.buffers if self._evaluator else None
        quiet = self._session.finish(buffers.packed() if buffers else b"")
        self._writes_model = quiet.write_model
        self._hub.pull()
        if buffers:
            buffers.land(quiet.buffers)
        self._hub.is_final = True

    def close(self, error: BaseException | None = None, traceback: str = "") -> None:
        """Leave the run. Without an `error` this finishes it first, and the chief saves the model.

        Called for you at the end of the script.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._session.leave(self._failure(error, traceback) if error else self._good_end())
        finally:
            if self._hub is not None:
                self._hub.close()
            self._session.close()

    # --- parts ---

    def _good_end(self) -> Leave:
        self.finish()
        model = str(self._save()) if self._writes_model else ""
        return Leave(
            self._welcome.session, metrics=self._metrics, model=model, progress=self._report()
        )

    def _failure(self, error: BaseException, traceback: str) -> Leave:
        kind = type(error).__name__ if isinstance(error, HubringError) else "ScriptFailed"
        why = error.fact if isinstance(error, HubringError) else f"{type(error).__name__}: {error}"
        return Leave(self._welcome.session, kind, why, traceback, progress=self._report())

    def _save(self) -> Path:
        assert self._model is not None
        folder = Path(self._welcome.run_dir or Path("runs") / self.id)
        return save_model(self._model, folder / "model.safetensors")

    def _link(self, place: ShardPlace, flat: FlatModel) -> ShardLink:
        welcome = self._welcome
        carrier = GrpcCarrier(_address(place), self._token, place.server)
        return ShardLink(
            run=welcome.run,
            shard=place.shard,
            session=welcome.session,
            carrier=carrier,
            flat=flat,
            timing=self._session.timing,
            alive=self._session.raise_if_over,
        )

    def _report(self) -> WorkerProgress:
        return self._progress.report(self._session.waits.current, self._session.batch_seconds)


def save_model(model: nn.Module, path: Path) -> Path:
    """Write `model`'s weights and buffers whole, or not at all: a temporary name, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".model-")
    os.close(handle)
    try:
        safetensors.torch.save_model(model, temporary)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path.resolve()


def _address(place: ShardPlace) -> str:
    """The first endpoint that this worker knows how to use."""
    for endpoint in place.endpoints:
        kind, _, address = endpoint.partition(":")
        if kind == "grpc":
            return address
    fact = f"{place.server} offers {list(place.endpoints)}; this worker knows grpc"
    raise VersionMismatch(fact, who=place.server, todo="use the same hubring everywhere")
