"""Fragments of files are loaded by what reads such files, with what they name made to exist."""

import ast
import json
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import torch
import trustme
import yaml
from safetensors.torch import save_file

from docs.files import WEIGHTS, give_pictures
from docs.pages import ROOT, Block, blocks
from docs.rules import How, tried
from docs.scraping import CONFIG, config_with_documented_lines
from support import example
from unerase import Conclusion, read_campaign
from unerase._concept_file import read_concept_file
from unerase._gate_file import KEYS, read_gate
from unerase._prompt_pack import read_pack
from unerase.v1.audits_pb2 import Audit
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.comparison import check_gate
from unerase_backend.coordinator.filtering import AUDIT_FIELDS, MODEL_FIELDS, read_filter
from unerase_backend.coordinator.storage.webhooks import audit_body
from unerase_backend.coordinator.webhooks.signing import Secrets, signed_headers
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.runtime.access import read_tokens


def _catalogue(text: str, folder: Path) -> None:
    """Load the entries with weights of the testbed under their names."""
    shutil.copytree(WEIGHTS / "reference", folder / "sd-1.4")
    (folder / "erased").mkdir()
    shutil.copyfile(WEIGHTS / "uce" / "unet.safetensors", folder / "erased" / "unet.safetensors")
    file = folder / "catalogue.yaml"
    file.write_text(text)
    assert yaml.safe_load(text)["models"].keys() <= Catalogue.load([str(file)]).models.keys()


def _hub_judge(text: str, folder: Path) -> None:
    """Load the entries; nothing is fetched until a judge is needed."""
    file = folder / "catalogue.yaml"
    file.write_text(text)
    read = Catalogue.load([str(file)])
    assert read.judge("own/vqa").options == {"threshold": 0.5}


def _adapted(text: str, folder: Path) -> None:
    """Load the entries beside the base that they change."""
    for name in ("unet", "lora", "style"):
        (folder / "erased").mkdir(exist_ok=True)
        shutil.copyfile(WEIGHTS / "uce" / "unet.safetensors", folder / "erased" / f"{name}.safetensors")
    base, file = folder / "base.yaml", folder / "catalogue.yaml"
    shutil.copytree(WEIGHTS / "reference", folder / "sd-1.4")
    base.write_text("models: {sd/base: {pipeline: sd-1.4, resolution: 32}}")
    file.write_text(text)
    read = Catalogue.load([str(base), str(file)])
    assert [each.scale for each in (*read.models["sd/adapted"].lora, *read.models["sd/both"].lora)] == [0.8, 0.5, 1.0]


def _worded(text: str, folder: Path) -> None:
    """Load the models beside the base that they change."""
    (folder / "words").mkdir()
    for name in ("toy.embedding", "ink"):
        save_file({"word": torch.ones(2, 64)}, folder / "words" / f"{name}.safetensors")
    base, file = folder / "base.yaml", folder / "catalogue.yaml"
    shutil.copytree(WEIGHTS / "reference", folder / "sd-1.4")
    base.write_text("models: {sd/base: {pipeline: sd-1.4, resolution: 32}}")
    file.write_text(text)
    read = Catalogue.load([str(base), str(file)])
    for name in ("sd/toy", "sd/words"):
        assert check_model(read, name).error is None


def _guards(text: str, folder: Path) -> None:
    """Load the entries, and each guard."""
    file = folder / "catalogue.yaml"
    file.write_text(text)
    read = Catalogue.load([str(file)])
    for name in yaml.safe_load(text)["models"]:
        assert Guards.load(read.guards(name), read.model_parts(name).folder, torch.device("cpu")).guards


def _concept(text: str, folder: Path) -> None:
    give_pictures(folder)
    file = folder / "my-hourglass.yaml"
    file.write_text(text)
    read = read_concept_file(file)
    assert read.pictures
    assert read.near_misses


def _pack(text: str, folder: Path) -> None:
    (folder / "pack.yaml").write_text(text)
    concept = folder / "concept.yaml"
    concept.write_text("{name: mine/hourglass, kind: object, names: [hourglass], pack: pack.yaml}")
    assert read_concept_file(concept).concept.pack == read_pack(folder / "pack.yaml")


def _gate(text: str, folder: Path) -> None:
    """Read the gate, which has every key."""
    file = folder / "gate.yaml"
    file.write_text(text)
    gate = read_gate(file)
    assert {field.name for field, _ in gate.ListFields()} == set(KEYS)
    check_gate(gate)


def _campaign(text: str, folder: Path) -> None:
    (folder / "campaign.yaml").write_text(text)
    assert read_campaign(folder / "campaign.yaml").spec.concepts == ["hourglass"]


def _small_gate(text: str, folder: Path) -> None:
    (folder / "gate.yaml").write_text(text)
    assert read_gate(folder / "gate.yaml").worst_conclusion == Conclusion.CONCLUSION_REMOVED


def _quotas(text: str, folder: Path) -> None:
    file = folder / "tokens.json"
    file.write_text(f'{{"tokens": [], {text}}}')
    assert read_tokens(file).quotas.keys() == json.loads(f"{{{text}}}")["quotas"].keys()


def _labelled(text: str, folder: Path) -> None:
    """Load the entry beside the base that it changes."""
    (folder / "erased").mkdir()
    shutil.copyfile(WEIGHTS / "uce" / "unet.safetensors", folder / "erased" / "unet.safetensors")
    base, file = folder / "base.yaml", folder / "catalogue.yaml"
    shutil.copytree(WEIGHTS / "reference", folder / "sd-1.4")
    base.write_text("models: {sd/base: {pipeline: sd-1.4, resolution: 32}}")
    file.write_text(text)
    assert Catalogue.load([str(base), str(file)]).models["sd/edited"].labels["release"] == "2026-12"


def _flux(text: str, folder: Path) -> None:
    """Load the entries with the testbed's pipeline in the place of each."""
    for name in ("FLUX.1-dev", "FLUX.1-schnell"):
        shutil.copytree(WEIGHTS / "reference", folder / name)
    file = folder / "catalogue.yaml"
    file.write_text(text)
    assert yaml.safe_load(text)["models"].keys() <= Catalogue.load([str(file)]).models.keys()


def _filters(text: str, folder: Path) -> None:
    """Each is a filter of audits or, the last, of models."""
    *of_audits, of_models = text.splitlines()
    for each in of_audits:
        read_filter(each, AUDIT_FIELDS)
    read_filter(of_models, MODEL_FIELDS)


def _secrets(text: str, folder: Path) -> None:
    file = folder / "secrets.json"
    file.write_text(text)
    assert Secrets(file).of("acme") != Secrets(file).of("")


def _scrape_job(text: str, folder: Path) -> None:
    """Prometheus resolves what a config names from the config's own folder: there it must find the secrets."""
    job = yaml.safe_load(config_with_documented_lines())["scrape_configs"][0]
    assert job["scheme"] == "https"
    for named in (job["tls_config"]["ca_file"], job["authorization"]["credentials_file"]):
        assert (CONFIG.parent / named).resolve().parent == ROOT / "secrets", named
    # promtool comes with Debian's package prometheus; `make check-deploy` has it, and a Prometheus that scrapes so.
    if shutil.which("promtool"):
        place = folder / "deploy" / "prometheus"
        shutil.copytree(CONFIG.parent, place)
        (place / CONFIG.name).write_text(config_with_documented_lines())
        (folder / "secrets").mkdir()
        (folder / "secrets" / "certificate.pem").write_bytes(trustme.CA().cert_pem.bytes())
        (folder / "secrets" / "prometheus.token").write_text("unerase_token")
        checked = subprocess.run(
            ["promtool", "check", "config", place / CONFIG.name], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def _network_policy(text: str, folder: Path) -> None:
    kubernetes_validate.validate(yaml.safe_load(text), "1.31", strict=True)


def _entry_points(text: str, folder: Path) -> None:
    """The page shows the example package's own."""
    shown = tomllib.loads(text)["project"]["entry-points"]
    assert shown == tomllib.loads((example.PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]


def _own_families(text: str, folder: Path) -> None:
    """The page shows the example package's own."""
    shown = tomllib.loads(text)["project"]["entry-points"]
    whole = tomllib.loads((example.PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    assert shown == {group: whole[group] for group in ("unerase.backbones",)}


LOADERS: dict[tuple[str, str], Callable[[str, Path], Any]] = {
    ("SECURITY.md", "apiVersion"): _network_policy,
    ("docs/add-a-backbone.md", "[project.entry-points"): _own_families,
    ("docs/add-a-probe.md", "[project.entry-points"): _entry_points,
    ("docs/campaigns.md", "# campaign.yaml"): _campaign,
    ("docs/campaigns.md", "# gate.yaml"): _small_gate,
    ("docs/comparison.md", "# gate.yaml"): _gate,
    ("docs/concepts.md", "# my-hourglass.yaml"): _concept,
    ("docs/concepts.md", "# pack.yaml"): _pack,
    ("docs/operations.md", '"quotas"'): _quotas,
    ("docs/judges.md", "hub_organisations"): _hub_judge,
    ("docs/guards.md", "models:"): _guards,
    ("docs/operations.md", "models:"): _catalogue,
    ("docs/real-models.md", "models:\n  flux/dev"): _flux,
    ("docs/real-models.md", "models:\n  sd/adapted"): _adapted,
    ("docs/real-models.md", "models:\n  sd/toy"): _worded,
    ("docs/real-models.md", "models:\n  sd/edited: {base: sd/base, unet: erased/unet.safetensors, labels"): _labelled,
    ("docs/grpc.md", "state = FAILED"): _filters,
    ("docs/webhooks.md", '{"secrets"'): _secrets,
    ("docs/operations.md", "    scheme: https"): _scrape_job,
}


@pytest.mark.parametrize("block", tried(How.LOADED), ids=str)
def test_a_fragment_is_loaded(block: Block, tmp_path: Path) -> None:
    [load] = [each for (page, begins), each in LOADERS.items() if page == block.page and block.text.startswith(begins)]
    load(block.text, tmp_path)


def test_the_guard() -> None:
    """The page's guard is the example package's."""
    [shown] = [block for block in blocks("docs/guards.md") if block.language == "python"]
    module = example.PACKAGE / "src" / "unerase_example" / "flat_pictures.py"
    assert ast.dump(ast.parse(shown.text)) == ast.dump(ast.parse(module.read_text()))


def test_the_probe() -> None:
    """The page's probe is the example package's, which is installed, audited with and held to the conformance suite."""
    [shown] = [block for block in blocks("docs/add-a-probe.md") if block.language == "python"]
    module = example.PACKAGE / "src" / "unerase_example" / "doubled_guidance.py"
    assert ast.dump(ast.parse(shown.text)) == ast.dump(ast.parse(module.read_text()))


def test_the_webhook() -> None:
    """The page shows what is sent, field by field."""
    [shown] = [json.loads(block.text) for block in blocks("docs/webhooks.md") if block.text.startswith('{"type"')]
    sent = json.loads(audit_body(Audit()))
    assert (shown.keys(), shown["data"].keys()) == (sent.keys(), sent["data"].keys())
    assert shown["type"] == sent["type"]


def test_the_receiver() -> None:
    """The page's receiver takes what the backend signs, by any of its secrets, and nothing else."""
    [shown] = [block for block in blocks("docs/webhooks.md") if block.language == "python"]
    page: dict[str, Any] = {}
    exec(shown.text, page)
    first, second = (f"whsec_{letter * 32}" for letter in "AB")
    now = int(time.time())
    headers = signed_headers("msg_1", now, b"{}", [first, second])
    assert page["verified"](headers, b"{}", first)
    assert page["verified"](headers, b"{}", second)
    assert not page["verified"](headers, b"{ }", first)
    assert not page["verified"](headers, b"{}", f"whsec_{'C' * 32}")
    assert not page["verified"](signed_headers("msg_1", now - 3600, b"{}", [first]), b"{}", first)
