"""The figures for Prometheus: right, readable by its own parser, and bounded."""

import json
import re
from pathlib import Path

import pytest
from coordinator.statuses import DEAD, eventful, server, shard, status, worker
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from hubring_coordinator.metrics import registry

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "hubring.json"


def scraped(given):
    text = generate_latest(registry(lambda: given)).decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, *sorted(s.labels.values())): s.value for s in samples}


def test_the_figures_are_the_runs():
    members = (
        server(0, heard=1.5),
        worker(0, steps=7, samples=70, loss=2.0, pushes=14, staleness=(4, 6, 4), staleness_sum=15),
        worker(1, steps=3, samples=30, loss=4.0, pushes=6, staleness=(6,), heard=2.5),
        worker(2, state=DEAD, steps=1, samples=10, heard=900.0, staleness=(1,)),
    )
    found = scraped(status(members=members, shards=(shard(0, duplicates=5, seconds=0.5),)))
    assert found["hubring_run_state", "training"] == 1 and found["hubring_run_state", "failed"] == 0
    assert found["hubring_steps_total",] == 11 and found["hubring_samples_total",] == 110
    assert found["hubring_loss",] == 3.0 and found["hubring_examples_per_second",] == 200
    assert found["hubring_members", "active", "worker"] == 2
    assert found["hubring_members", "dead", "worker"] == 1
    assert found["hubring_lease_age_seconds", "worker"] == 2.5
    assert found["hubring_staleness_bucket", "0"] == 11
    assert found["hubring_staleness_bucket", "1"] == 17
    assert found["hubring_staleness_bucket", "3"] == 21
    assert found["hubring_staleness_bucket", "+Inf"] == 21 == found["hubring_staleness_count",]
    assert found["hubring_staleness_sum",] == 15
    assert found["hubring_batches", "left"] == 52 and found["hubring_batches", "leased"] == 8
    assert found["hubring_shard_duplicates_total", "0"] == 5
    assert found["hubring_shard_apply_seconds_total", "0"] == 0.5
    assert found["hubring_boot_number",] == 1


def test_an_empty_run_can_be_scraped_and_before_the_first_look_there_is_nothing():
    assert scraped(status(members=(), shards=(), epochs=()))["hubring_steps_total",] == 0
    assert generate_latest(registry(lambda: None)) == b""


def test_labels_are_bounded_whatever_members_and_scripts_do():
    few = scraped(status(members=(worker(0),)))
    many = tuple(worker(n, state=DEAD) for n in range(500))
    assert set(scraped(status(members=many))) == set(few)
    metrics = {f"{n}" + "x" * 200: float(n) for n in range(300)}
    found = scraped(status(metrics=metrics))
    assert len([key for key in found if key[0] == "hubring_metric"]) == 50


def test_names_that_are_equal_once_cut_do_not_spoil_the_answer():
    metrics = {"x" * 100 + str(n): float(n) for n in range(9)}
    text = generate_latest(registry(lambda: status(metrics=metrics))).decode()
    lines = [line.split("}")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))


def test_a_name_cannot_break_out_of_its_label():
    name = 'a"} 1\nhubring_boot_number 99\n\\'
    found = scraped(status(metrics={name: 0.5}))
    assert found["hubring_metric", name] == 0.5 and found["hubring_boot_number",] == 1


def expressions(panels):
    for panel in panels:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def test_every_metric_of_the_dashboard_exists():
    board = json.loads(DASHBOARD.read_text())
    names = {key[0] for key in scraped(eventful())}
    used = [
        (title, re.findall(r"\bhubring_\w+", expr)) for title, expr in expressions(board["panels"])
    ]
    assert len(used) >= 12
    for title, found in used:
        assert found, f"{title} shows nothing of hubring"
        assert set(found) <= names, f"{title}: {set(found) - names}"
    labels = re.findall(r"hubring_run_info", json.dumps(board["templating"]))
    assert labels, "the run can be chosen"


def test_the_dashboard_lies_on_a_grid_and_no_panel_on_another():
    board = json.loads(DASHBOARD.read_text())
    cells = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        mine = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not mine & cells, panel["title"]
        cells |= mine
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("line", ["hubring_staleness_bucket", "hubring_shard_apply_seconds_total"])
def test_what_docs_name_is_there(line):
    assert line in {key[0] for key in scraped(eventful())}
