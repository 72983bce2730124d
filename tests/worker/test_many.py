"""Many workers at once, and many one after another: real gRPC, one process."""

import gc
import json
import threading
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset
from whole import cluster

DATA = TensorDataset(torch.randn(400, 2), torch.ones(400, 1))


def part(run, batch_size=2):
    model = nn.Linear(2, 1)
    loader = run.loader(DATA, batch_size=batch_size, shuffle=True)
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=1e-4), model)
    return model, loader, optimizer


def steps(model, loader, optimizer):
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        yield inputs


def summary(whole):
    return json.loads((whole.folder / "run" / "summary.json").read_text())


def test_sixty_four_workers_at_once(tmp_path):
    with cluster(tmp_path, timeout=10.0, workers=64) as whole:
        failures = []

        def work():
            try:
                run = whole.join()
                for _ in steps(*part(run)):
                    pass
                run.close()
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=work, daemon=True) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failures
        assert whole.end(30) == 0
    assert summary(whole)["ledger"] == "200 of 200 batches of 1 epochs counted, each once"


def die(run):
    """As by kill -9: its stream breaks, and nothing is said."""
    session = run._session
    session._attendance._closed.set()
    session._attendance._call.cancel()
    session._stock.close()
    session._settler.close()
    run._hub.close()
    session._channel.close()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_hundred_restarts_in_a_row_leave_everything_bounded(tmp_path):
    with cluster(tmp_path, servers=1, timeout=1.0) as whole:
        stayer = whole.join()
        model, loader, optimizer = part(stayer)
        training = steps(model, loader, optimizer)
        next(training)
        counts, sizes = [], []
        for number in range(100):
            run = whole.join()
            batches = steps(*part(run))
            next(batches, None)
            next(training, None)
            batches.close()
            die(run)
            whole.runs.remove(run)
            del run, batches
            if number % 20 == 19:
                gc.collect()
                counts.append(threading.active_count())
                sizes.append(resident())
        for _ in training:
            pass
        # Leases of the last few still run: each dead session may hold a few threads until then.
        assert counts[-1] <= counts[0] + 20, counts
        assert sizes[-1] - sizes[0] < 64 << 20, sizes
        (shard,) = (host for server in whole.servers for host in server._shards.values())
        stayer.close()
        assert whole.end(30) == 0
        assert len(shard._machine.windows) <= 10
    ended = summary(whole)
    assert ended["ledger"] == "200 of 200 batches of 1 epochs counted, each once"
    assert len(ended["members"]) <= 80
    assert len(ended["events"]) <= 201


def test_what_was_recalled_is_not_passed_over_while_the_news_of_it_is_on_its_way(tmp_path):
    """Many short epochs: batches go to and fro at each one's end."""
    with cluster(tmp_path, timeout=5.0, workers=2) as whole:

        def work():
            run = whole.join()
            send = run._session._settler._send

            def send_late(news):
                if news.returned:
                    time.sleep(0.05)
                send(news)

            run._session._settler._send = send_late
            model, loader, optimizer = part(run, batch_size=20)
            for _ in range(40):
                for _ in steps(model, loader, optimizer):
                    pass
            run.close()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert whole.end(30) == 0
    assert summary(whole)["ledger"] == "800 of 800 batches of 40 epochs counted, each once"
