"""How each block of the documentation is tried: one rule a block, and no block without one.

A rule names its block by the page and the beginning of the block's first line. What a shell block's commands need
beyond running and ending with 0 stands in `CASES`, by the beginning of the command.
"""

import shutil
from dataclasses import dataclass
from enum import Enum

from docs.pages import Block, blocks, pages, words


class How(Enum):
    """What is done with a block."""

    ALONE = "run without a backend, in `make test`"
    SESSION = "run as it stands on the backend of `make test`, which port 50051 leads to"
    OWN = "run in the page's order on a machine of its own, in `make faults`"
    LOADED = "loaded by what reads it, in `make test` (test_data.py)"
    ELSEWHERE = "tried by the test or command that `why` names"
    READ = "nothing to run: `why` says what it is"


@dataclass(frozen=True)
class Rule:
    """How one block is tried."""

    page: str
    begins: str
    how: How
    why: str = ""


class Case(Enum):
    """What is expected of a command that does more than run and end with 0."""

    SERVES = "a backend: it must listen, and end well by Ctrl-C when another block starts one"
    BEGINS = "long audits: they must be accepted and run; then they are cancelled, and the command says so (3)"
    SKIPPED = "not run, for the reason that stands with it"


CASES: dict[str, tuple[Case, str]] = {
    "unerase serve": (Case.SERVES, ""),
    "unerase calibrate": (Case.BEGINS, "an audit of every model"),
    "unerase audit testbed/uce --concept hourglass --sequential": (Case.BEGINS, "the standard battery"),
    "unerase audit testbed/uce --concept hourglass --placebo": (Case.BEGINS, "the standard battery"),
    "unerase audit testbed/uce --concept hourglass --control-kind": (Case.BEGINS, "the standard battery"),
    "unerase audit testbed/uce --concept hourglass --guidance-scale": (Case.BEGINS, "the standard battery"),
    "unerase audit testbed/uce --concept hourglass --battery quick": (
        Case.BEGINS,
        "client.md's first snippet and `make audit` run the quick battery to its end",
    ),
    "unerase audit testbed/uce --concept mine/hourglass --battery quick": (Case.BEGINS, "the quick battery"),
    "apt-get install postgresql": (Case.SKIPPED, "needs root and the network; the tests' PostgreSQL is there instead"),
    "prometheus ": (Case.SKIPPED, "`make check-deploy` runs it with this file"),
    **(
        {} if shutil.which("grpcurl") else {"grpcurl ": (Case.SKIPPED, "not installed; test_grpc.py holds it to buf's")}
    ),
}

HOURS = "takes an hour or more; its command line is parsed, its modules are found"
CLUSTER = "needs machines of a cluster; tests/deploy/test_cluster.py runs the config, its command line is parsed"

OWN_FILES = "the files are the user's; `python -m tools.real_size` runs the same commands on files of that size"

EXPORTS = "tests/integrations/test_page.py::test_exports"

PROGRAMS = "tests/integrations/test_real_backend.py::test_the_page_is_followed"

RULES: tuple[Rule, ...] = (
    Rule("README.md", "make audit", How.OWN),
    Rule("README.md", "testbed/uce: hourglass is", How.ELSEWHERE, "tests/docs/test_own_machine.py::test_readme"),
    Rule("README.md", "unerase serve", How.OWN),
    Rule("SECURITY.md", "table inet unerase", How.READ, "nftables' language; it needs root and a kernel's tables"),
    Rule("SECURITY.md", "apiVersion", How.LOADED),
    Rule("docs/add-a-backbone.md", '"""AuraFlow', How.ELSEWHERE, "tests/third_parties/test_example.py"),
    Rule("docs/add-a-backbone.md", "make install-dev", How.ELSEWHERE, "tests/diffusion/backbones/test_conformance.py"),
    Rule("docs/add-a-backbone.md", "[project.entry-points", How.LOADED),
    Rule("docs/add-a-probe.md", '"""Doubled guidance', How.ELSEWHERE, "tests/docs/test_data.py::test_the_probe"),
    Rule("docs/add-a-probe.md", "make install-dev", How.ELSEWHERE, "tests/third_parties/test_example.py"),
    Rule("docs/add-a-probe.md", ".venv/bin/unerase audit", How.ELSEWHERE, "tests/third_parties/test_example.py"),
    Rule("docs/add-a-probe.md", '[project.entry-points."unerase.probes"]', How.LOADED),
    Rule(
        "docs/add-a-probe.md", "pip install --editable my-package", How.ELSEWHERE, "tests/third_parties/test_example.py"
    ),
    Rule("docs/architecture.md", "client / command", How.READ, "a drawing"),
    Rule("docs/calibration.md", "unerase calibrate --out", How.READ, HOURS),
    Rule("docs/calibration.md", "unerase calibrate --concept", How.READ, HOURS),
    Rule("docs/campaigns.md", "mkdir -p models", How.OWN),
    Rule("docs/campaigns.md", "tee models.yaml", How.OWN),
    Rule("docs/campaigns.md", "# campaign.yaml", How.LOADED),
    Rule("docs/campaigns.md", "# gate.yaml", How.LOADED),
    Rule("docs/campaigns.md", "unerase campaign create campaign.yaml --gate", How.OWN),
    Rule("docs/campaigns.md", "tee models-2.yaml", How.OWN),
    Rule("docs/campaigns.md", "unerase models register release.yaml", How.READ, "the file is anybody's"),
    Rule("docs/campaigns.md", "from unerase import CampaignReportFormat", How.OWN),
    Rule("docs/client.md", "from unerase import AuditSpec, AuditState", How.OWN),
    Rule("docs/client.md", "import asyncio", How.SESSION),
    Rule("docs/client.md", "from pathlib import Path", How.SESSION),
    Rule("docs/client.md", "from unerase import AuditSpec, Client, UneraseError", How.SESSION),
    Rule("docs/client.md", "from unerase import Client, ClientSettings", How.ALONE),
    Rule("docs/client.md", "unerase serve", How.OWN),
    Rule("docs/client.md", "unerase --version", How.OWN),
    Rule(
        "docs/client.md", "unerase audit testbed/uce --concept hourglass --prompts", How.READ, "the file is anybody's"
    ),
    Rule("docs/comparison.md", "# gate.yaml", How.LOADED),
    Rule("docs/concepts.md", "# my-hourglass.yaml", How.LOADED),
    Rule("docs/concepts.md", "unerase concepts create", How.OWN),
    Rule("docs/concepts.md", "# pack.yaml", How.LOADED),
    Rule(
        "docs/concepts.md",
        "labels: {sd/clip",
        How.READ,
        "two keys of a concept; tests/catalogue/test_kinds.py reads such",
    ),
    Rule("docs/decisions/index.md", ":maxdepth", How.READ, "Sphinx builds it: `make docs`"),
    Rule("docs/deployment.md", "unerase deploy check", How.ALONE),
    Rule("docs/deployment.md", "# on every node", How.READ, CLUSTER),
    Rule("docs/deployment.md", "docker build", How.READ, "needs a container engine and Kubernetes"),
    Rule("docs/deployment.md", "docker run", How.READ, "needs a container engine; its variables are checked"),
    Rule("docs/evaluations.md", "unerase audit", How.READ, "minutes each; the command line is parsed"),
    Rule("docs/grpc.md", "buf curl --schema", How.SESSION),
    Rule("docs/grpc.md", "buf curl --protocol", How.SESSION),
    Rule("docs/grpc.md", "grpcurl -plaintext", How.SESSION),
    Rule("docs/grpc.md", "buf curl --cacert", How.OWN),
    Rule("docs/grpc.md", "state = FAILED", How.LOADED),
    Rule("docs/grpc.md", "grpcurl -cacert", How.OWN),
    Rule("docs/webhooks.md", '{"secrets"', How.LOADED),
    Rule("docs/webhooks.md", "python -c", How.ALONE),
    Rule("docs/webhooks.md", '{"type"', How.ELSEWHERE, "tests/docs/test_data.py::test_the_webhook"),
    Rule("docs/webhooks.md", "import base64", How.ELSEWHERE, "tests/docs/test_data.py::test_the_receiver"),
    Rule("docs/index.md", ":maxdepth", How.READ, "Sphinx builds it: `make docs`"),
    Rule("docs/integrations.md", 'unerase report "$AUDIT"', How.ELSEWHERE, EXPORTS),
    Rule("docs/integrations.md", "unerase export every-eval-ever", How.ELSEWHERE, EXPORTS),
    Rule("docs/integrations.md", "openssl genpkey", How.ELSEWHERE, EXPORTS),
    Rule("docs/integrations.md", "import json", How.ELSEWHERE, EXPORTS),
    Rule("docs/integrations.md", "unerase export mlflow", How.ELSEWHERE, EXPORTS),
    Rule("docs/integrations.md", "export UNERASE_ADDRESS", How.ELSEWHERE, PROGRAMS),
    Rule("docs/integrations.md", "from pathlib import Path", How.ELSEWHERE, PROGRAMS),
    Rule("docs/integrations.md", "import asyncio", How.ELSEWHERE, PROGRAMS),
    Rule("docs/integrations.md", "cd examples/javascript", How.ELSEWHERE, PROGRAMS),
    Rule("docs/judges.md", "pip download", How.READ, "needs a registry; `make integrations` takes the same file"),
    Rule("docs/judges.md", "judges:", How.ELSEWHERE, "tests/integrations/test_nudenet.py::catalogue"),
    Rule("docs/judges.md", "pip install ./examples", How.ELSEWHERE, "tests/third_parties/test_vqa.py"),
    Rule("docs/judges.md", "hub_organisations", How.LOADED),
    Rule("docs/operations.md", "unerase serve --port 50051", How.OWN),
    Rule("docs/operations.md", "mkdir -p secrets", How.OWN),
    Rule("docs/operations.md", "export UNERASE_TLS_CA", How.OWN),
    Rule("docs/operations.md", "apt-get install postgresql", How.OWN),
    Rule("docs/operations.md", '"quotas"', How.LOADED),
    Rule("docs/operations.md", "models:", How.LOADED),
    Rule(
        "docs/operations.md",
        "# published-models.yaml",
        How.ELSEWHERE,
        "tests/tools/test_family_memory.py::test_catalogue",
    ),
    Rule("docs/operations.md", "unerase serve --metrics-port 9464 --rooms", How.OWN),
    Rule("docs/operations.md", "scheme: https", How.LOADED),
    Rule("docs/operations.md", "(the caller's span)", How.READ, "a drawing; tests/service/test_traces.py has it"),
    Rule(
        "docs/real-models.md",
        "unerase import",
        How.ELSEWHERE,
        "tests/importing/test_import.py::test_an_erased_checkpoint_becomes_a_model",
    ),
    Rule("docs/real-models.md", "models:", How.LOADED),
    Rule("docs/real-models.md", "from pathlib import Path", How.READ, OWN_FILES),
    Rule("docs/real-models.md", "# catalogue.yaml", How.READ, OWN_FILES),
    Rule("docs/real-models.md", "mkdir -p imported", How.READ, OWN_FILES),
    Rule("docs/real-models.md", "unerase audit sd/esd-church", How.READ, OWN_FILES),
    Rule("docs/architectures.md", "unerase serve", How.READ, HOURS),
    Rule("docs/results.md", "python -m tools.results build/unets", How.READ, HOURS),
    Rule("docs/results.md", "unerase calibrate --battery full", How.READ, HOURS),
    Rule("docs/results.md", "unerase calibrate --concept", How.READ, HOURS),
    Rule("docs/results.md", "unerase serve", How.READ, HOURS),
    Rule("docs/results.md", "python -m tools.truths", How.READ, HOURS),
    Rule("docs/testbed.md", "make testbed", How.READ, HOURS),
    Rule("docs/testbed.md", "unerase serve", How.READ, HOURS),
    Rule("docs/testbed.md", "mkdir -p build", How.READ, HOURS),
    Rule(
        "docs/testbed.md",
        "python -m unerase_backend.testbed.train --out build/testbed --parts latents",
        How.READ,
        HOURS,
    ),
    Rule(
        "docs/testbed.md", "python -m unerase_backend.testbed.train --out build/testbed --parts conc", How.READ, HOURS
    ),
    Rule(
        "docs/testbed.md",
        "from pathlib",
        How.ELSEWHERE,
        "tests/testbed/test_erasers.py::test_a_concept_is_erased_towards_any_anchor",
    ),
    Rule(
        "docs/testbed.md",
        "from diffusers import",
        How.ELSEWHERE,
        "tests/testbed/flow/test_shipped_flows.py::test_diffusers_loads_the_folder_and_draws_the_same_pictures",
    ),
    Rule("docs/testbed.md", "python -m tools.context", How.READ, HOURS),
    Rule("docs/guards.md", "models:", How.LOADED),
    Rule("docs/guards.md", '"""Flat pictures', How.ELSEWHERE, "tests/docs/test_data.py::test_the_guard"),
    Rule("examples/README.md", "make install", How.ELSEWHERE, "tests/third_parties/test_example.py"),
    Rule("examples/README.md", "python examples/audit.py", How.ELSEWHERE, "tests/service/test_examples.py"),
)


def rules_of(block: Block) -> list[Rule]:
    """Return the rules that name a block: one, unless the table is wrong."""
    first = block.text.lstrip()
    return [rule for rule in RULES if rule.page == block.page and first.startswith(rule.begins)]


def is_formula(block: Block) -> bool:
    """Say whether a block is indented text: a formula, which nobody runs; what is run is fenced, with its language."""
    return block.language == ""


def tried(how: How, page: str = "") -> list[Block]:
    """Return the blocks that are tried in this way, of one page or of all, in their order."""
    return [
        block
        for each in ([page] if page else pages())
        for block in blocks(each)
        if not is_formula(block) and [rule.how for rule in rules_of(block)] == [how]
    ]


def case_of(command: str) -> tuple[Case | None, str]:
    """Return what is expected of a command; the longest beginning that is known counts."""
    if {"--dry-run", "--detach"} & set(words(command).split()):
        # It is done at once, however long the audit is.
        return None, ""
    found = max((begins for begins in CASES if words(command).startswith(begins)), key=len, default=None)
    return CASES[found] if found is not None else (None, "")
