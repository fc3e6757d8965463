"""examples/monitoring and docs/monitoring.md: rules that hold, and no metric that does not exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from tests.support.canary import secret
from tests.support.command import ROOT, secretfs
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.scrape import promtool, samples
from tests.support.vault_auth import approle, reading
from tests.support.vault_fixtures import Folder, kv, openbao_server

__all__ = ["kv", "openbao_server"]

EXAMPLES = ROOT / "examples/monitoring"
_METRIC = re.compile(r"\bsecretfs_[a-z_]+\b")
_DERIVED = re.compile(r"_(bucket|sum|count)$")

# What there is only at times: while a store is down, with leases.
RARE = {"secretfs_store_next_probe_timestamp_seconds", "secretfs_lease_expiry_timestamp_seconds"}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((EXAMPLES / "secretfs-alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / "secretfs-dashboard.json").read_text(encoding="utf-8"))
    return found


def queries() -> Iterator[str]:
    """Yield what the dashboard asks Prometheus."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def documented() -> set[str]:
    """Return the metrics in the table of the page."""
    text = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    table = text.partition("| Metric |")[2].partition("\n\n")[0]
    return {f"secretfs_{name}" for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.mark.mount
def test_every_metric_that_is_asked_for_exists(kv: Folder, tmp_path: Path) -> None:
    """A real page has what rules, dashboard and documentation name, and the documentation has all that is on it."""
    kv.put("db", {"password": secret("old")})
    metadata = kv.metadata(**approle(kv.server, reading(kv.server, kv.prefix)))
    del metadata["vaultToken"]
    component(tmp_path / "c", "vault", "hashicorp.vault", metadata)
    with mounted(tmp_path / "c", options=["--audit=observe", f"--audit-to={tmp_path / 'audit'}"]) as mount:
        assert (mount.path / "vault/db/password").read_text() == secret("old")
        kv.put("db", {"password": secret("new")})
        assert secretfs("refresh", mount.path).status == 0
        page = (mount.path / ".secretfs/metrics").read_text()
    found = {name.split()[0] for name in samples(page)}
    asked = {name for text in (*queries(), *(rule["expr"] for rule in rules())) for name in _METRIC.findall(text)}
    assert asked - RARE <= found
    plain = {_DERIVED.sub("", name) for name in found}
    assert documented() - RARE == plain
    assert not (RARE - documented())


def test_alert_rules() -> None:
    """promtool accepts them, and their tests pass."""
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", EXAMPLES / "secretfs-alerts.yaml")
    assert "SUCCESS" in promtool("test", "rules", "secretfs-alerts.test.yaml", cwd=EXAMPLES)
    assert "is valid prometheus config file" in promtool("check", "config", EXAMPLES / "prometheus.yaml")


def test_every_alert_is_tested_and_documented() -> None:
    names = {rule["alert"] for rule in rules()}
    tests = (EXAMPLES / "secretfs-alerts.test.yaml").read_text(encoding="utf-8")
    assert {name for name in names if name not in tests} == set()
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8").partition("| Alert |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(Secretfs\w+)`", page)) == names


def test_queries_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    """promtool reads each as the expression of a rule."""
    made = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "q", "rules": made}]}), encoding="utf-8")
    assert f"SUCCESS: {len(made)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


def test_the_picture_shows_charts_of_the_dashboard() -> None:
    text = "{http://www.w3.org/2000/svg}text"
    picture = ET.parse(ROOT / "docs/monitoring.svg")
    titles = {element.text for element in picture.iter(text) if element.get("font-weight") == "bold"}
    assert len(titles) == 6
    assert titles <= {panel["title"] for panel in dashboard()["panels"]}


def test_the_dashboard_is_whole() -> None:
    """Its panels have numbers of their own and do not overlap, and its variables are those that its queries use."""
    found = dashboard()
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(panels) + json.dumps(found["templating"])))
    assert used == {variable["name"] for variable in found["templating"]["list"]}
