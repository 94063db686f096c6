"""Checks Prometheus' files against the real thing: `make check-deploy`.

promtool checks the configuration and the rules and runs their tests. Then a backend with TLS and tokens runs an audit,
a Prometheus scrapes it as prometheus.yml and docs/operations.md say, and every query of the dashboard and every
expression of an alert is evaluated there: none may fail, all metrics they name must exist, and a dashboard that an
audit has filled must show something on every panel. Everything listens on loopback and is ended by its process id.

Needs `prometheus` and `promtool`, which are Debian's package `prometheus`; root installs it where it is missing.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme
import yaml

from docs.scraping import config_with_documented_lines
from support.serving import Running, serving
from unerase import Client, ClientSettings, TLSConfig
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, AuditSpec, Battery
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend.runtime import tokens

HERE = Path(__file__).parent
DASHBOARD = HERE.parent / "grafana" / "unerase.json"
METRIC = re.compile(r"\b(?:unerase|ray|process)_\w+")
PATIENCE_SECONDS = 120.0

Answer = dict[str, Any]


def main() -> None:
    """Check everything, or end with what is wrong."""
    _install()
    for command in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        subprocess.run(["promtool", *command], cwd=HERE, check=True)
    with (
        tempfile.TemporaryDirectory(prefix="unerase-check-") as folder,
        _backend(Path(folder)) as (backend, token),
        _prometheus(Path(folder), backend) as url,
    ):
        _scraped(url)
        _audits(backend, Path(folder), token)
        _rules(url)
        _queries(url)


def _install() -> None:
    if shutil.which("promtool") and shutil.which("prometheus"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit("prometheus and promtool are missing: install Debian's package `prometheus`, or run this as root")
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "prometheus"], check=True)


@contextmanager
def _backend(folder: Path) -> Iterator[tuple[Running, str]]:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    # The files of docs/operations.md, where its commands put them.
    secrets = folder / "secrets"
    secrets.mkdir()
    authority.cert_pem.write_to_path(str(secrets / "certificate.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "certificate.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    token = tokens.create(folder / "tokens.json", "check", tenant="operations", scopes=["admin"], days=1)
    (secrets / "prometheus.token").write_text(
        tokens.create(folder / "tokens.json", "scrape", "operations", ["metrics"], 1)
    )
    (folder / "data").mkdir()
    with serving(
        folder / "data",
        tls_certificate=folder / "certificate.pem",
        tls_key=folder / "key.pem",
        tokens=folder / "tokens.json",
        ray_auth="token",
    ) as running:
        yield running, token


def _audits(backend: Running, folder: Path, token: str) -> None:
    """Run a small audit with an attack twice: every room has something to tell, and what is kept is found again."""
    attack = EvaluationRequest(name="textual-inversion")
    attack.parameters.update({"steps": 3})
    battery = Battery(evaluations=[EvaluationRequest(name="standard-prompt"), attack], allow_incomplete=True)
    spec = AuditSpec(subject="testbed/uce", concept="hourglass", cases=4, steps=4, seed_base=1, battery=battery)
    tls = TLSConfig(root_certificates=(folder / "secrets" / "certificate.pem").read_bytes())
    with Client(backend.address, settings=ClientSettings(tls=tls, token=token)) as client:
        for _ in range(2):
            ended = client.audit(spec, timeout=300)
            if ended.state != AUDIT_STATE_SUCCEEDED:
                sys.exit(f"the audit did not succeed: {ended.error_message}")


@contextmanager
def _prometheus(folder: Path, backend: Running) -> Iterator[str]:
    """Run a Prometheus as prometheus.yml says, with this backend's ports, TLS and token, and in seconds for minutes."""
    # Where a clone has it: Prometheus reads paths from the folder of its configuration.
    place = folder / "deploy" / "prometheus"
    place.mkdir(parents=True)
    config = yaml.safe_load(config_with_documented_lines())
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(HERE / "alerts.yml")]
    coordinator, rooms = config["scrape_configs"]
    for job, url in ((coordinator, backend.metrics_url), (rooms, backend.rooms_metrics_url)):
        job["static_configs"] = [{"targets": [urllib.parse.urlsplit(url).netloc]}]
    (place / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={place / 'prometheus.yml'}", f"--web.listen-address={address}"]
    log = folder / "prometheus.log"
    with log.open("w") as out:
        process = subprocess.Popen([*command, f"--storage.tsdb.path={folder / 'tsdb'}"], stdout=out, stderr=out)
    try:
        yield f"http://{address}"
    except BaseException:
        print(log.read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _ask(url: str, path: str, **query: str) -> Answer:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as response:
        answer: Answer = json.load(response)
    if answer["status"] != "success" or answer.get("warnings"):
        raise ValueError(f"{path} {query}: {answer}")
    return answer


def _until(what: str, look: Callable[[], str]) -> None:
    """Look again until nothing is left to complain of."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (problem := _looked(look)) and time.monotonic() < deadline:
        time.sleep(1)
    if problem:
        sys.exit(f"{what}: {problem}")
    print(f"ok: {what}")


def _looked(look: Callable[[], str]) -> str:
    try:
        return look()
    except (OSError, ValueError) as error:
        return str(error)


def _scraped(url: str) -> None:
    def down() -> str:
        targets = _ask(url, "targets")["data"]["activeTargets"]
        ailing = [f"{t['labels']['job']}: {t['health']} {t['lastError']}" for t in targets if t["health"] != "up"]
        return "; ".join(ailing) if targets else "no targets yet"

    _until("both are scraped, the coordinator over TLS with a token", down)


def _rules(url: str) -> None:
    def ailing() -> str:
        rules = [rule for group in _ask(url, "rules")["data"]["groups"] for rule in group["rules"]]
        return "; ".join(f"{r['name']}: {r['health']} {r.get('lastError', '')}" for r in rules if r["health"] != "ok")

    _until("every alert is evaluated", ailing)

    def firing() -> str:
        alerts = _ask(url, "alerts")["data"]["alerts"]
        return ", ".join(alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing")

    _until("none of them fires", firing)


def _queries(url: str) -> None:
    rules = yaml.safe_load((HERE / "alerts.yml").read_text())["groups"]
    watched = [rule["expr"] for group in rules for rule in group["rules"]]
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    # Everything has happened within the last minutes.
    asked = {
        f"{panel['title']}, {target['legendFormat']}": target["expr"].replace("$__rate_interval", "5m")
        for panel in panels
        for target in panel["targets"]
    }

    def unknown() -> str:
        known = set(_ask(url, "label/__name__/values")["data"])
        named = {name for expression in (*watched, *asked.values()) for name in METRIC.findall(expression)}
        return ", ".join(sorted(named - known))

    _until("every metric that is asked for is there", unknown)

    def empty() -> str:
        silent = [title for title, query in asked.items() if not _ask(url, "query", query=query)["data"]["result"]]
        return "; ".join(silent)

    _until(f"all {len(asked)} queries of the dashboard have an answer", empty)
    for expression in watched:
        _ask(url, "query", query=expression)
    print(f"ok: all {len(watched)} expressions of alerts can be asked")


if __name__ == "__main__":
    main()
