"""What docs/metrics.md tells of, the dashboard asks for and alerts watch: all of it is exposed, and no more."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from support.serving import Running
from unerase import Client

from .conftest import Traced, small_spec

ROOT = Path(__file__).parents[2]
NAMES = re.compile(r"\b(?:ray|unerase|process)_\w+")
OURS = re.compile(r"(?:ray_)?unerase_\w+")
ROW = re.compile(r"\| `((?:ray_)?unerase_\w+)` \| (\w+) \| (.*?) \|")
# Of Ray's own what the dashboard and the alerts may use.
RAYS = {"ray_serve_deployment_replica_starts_total"}
# A series of the parts of a histogram, and the labels that Ray puts on everything.
PARTS = re.compile(r"_(bucket|count|sum)$")
RAYS_LABELS = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "le"}
FORBIDDEN = {"prompt", "seed", "audit", "audit_id", "tenant", "request", "trace"}


def _families(url: str) -> dict[str, Metric]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(url, timeout=10).read().decode()
    families = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        families[name] = family
    return families


def _documented() -> dict[str, tuple[str, set[str]]]:
    rows = ROW.findall((ROOT / "docs" / "metrics.md").read_text())
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


@pytest.fixture(scope="module")
def exposed(backend: Running, client: Client, traced: Traced) -> dict[str, Metric]:
    """Both expositions, once the rooms' has what the audit did: Ray sends it on from time to time."""
    # Asked for again, its units are kept.
    client.audit(small_spec(seed_base=traced.seed_base), timeout=120)
    missing: set[str] = set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        families = _families(backend.metrics_url) | _families(backend.rooms_metrics_url)
        missing = (_documented().keys() | RAYS) - families.keys()
        if not missing:
            return families
        time.sleep(1)
    pytest.fail(f"not exposed: {sorted(missing)}")


def test_the_tables_name_what_is_exposed_with_its_type_and_labels(exposed: dict[str, Metric]) -> None:
    ours = {name: family for name, family in exposed.items() if OURS.fullmatch(name)}
    assert ours.keys() == _documented().keys()
    for name, (kind, labels) in _documented().items():
        assert ours[name].type == kind, name
        there = {label for sample in ours[name].samples for label in sample.labels}
        there = {label for label in there - RAYS_LABELS if not label.startswith("otel_scope")}
        assert there == labels, name


def test_names_keep_to_the_conventions_and_labels_say_nothing_of_an_audit(exposed: dict[str, Metric]) -> None:
    for name, family in exposed.items():
        if OURS.fullmatch(name):
            assert (family.type == "counter") == name.endswith("_total"), name
            if family.type == "histogram":
                assert name.endswith("_seconds")
            assert not FORBIDDEN & {label for sample in family.samples for label in sample.labels}, name


def _expressions() -> list[str]:
    board = json.loads((ROOT / "deploy" / "grafana" / "unerase.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    return asked + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_the_dashboard_and_the_alerts_ask_for_what_is_exposed(exposed: dict[str, Metric]) -> None:
    named = {name for expression in _expressions() for name in NAMES.findall(expression)}
    assert named
    for name in named:
        assert name in exposed or exposed[PARTS.sub("", name)].type == "histogram", name


def test_every_metric_of_ours_is_on_the_dashboard_or_watched() -> None:
    asked = " ".join(_expressions())
    unused = {name for name in _documented() if not re.search(rf"\b{name}(_bucket|_count|_sum)?\b", asked)}
    assert unused == {"unerase_info"}


def test_an_attacks_steps_and_the_pictures_are_counted(backend: Running, exposed: dict[str, Metric]) -> None:
    def total(name: str, **labels: str) -> float:
        return sum(s.value for s in exposed[name].samples if labels.items() <= s.labels.items())

    # Three steps of each model: subject, reference and control. Ray sends on from time to time what was counted.
    deadline = time.monotonic() + 60
    while total("ray_unerase_attack_steps_total", evaluation="textual-inversion") < 9:
        assert time.monotonic() < deadline
        time.sleep(1)
        exposed |= _families(backend.rooms_metrics_url)
    rows, places = total("ray_unerase_generation_rows_total"), total("ray_unerase_generation_places_total")
    assert 0 < rows <= places
    assert total("ray_unerase_generation_trajectories_total", cached="false") > 0
    judged, calls = (total(f"ray_unerase_classification_{name}_total") for name in ("pictures", "judge_calls"))
    assert judged >= calls > 0
    assert total("unerase_room_up") == 4
