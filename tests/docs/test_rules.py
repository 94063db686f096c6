"""No block of the documentation goes untried without a reason."""

import subprocess
from pathlib import Path

import pytest

from docs.pages import LANGUAGES, ROOT, Block, blocks, commands, pages, words
from docs.rules import CASES, RULES, Case, How, Rule, case_of, is_formula, rules_of, tried

ALL = [block for page in pages() for block in blocks(page)]
FENCED = [block for block in ALL if not is_formula(block)]
# The first word of what somebody would type.
PROGRAMS = ("unerase", "make", "python", "pip", ".venv/bin/", "export", "docker", "kubectl", "curl", "$ ", "serve ")


@pytest.mark.parametrize("block", FENCED, ids=str)
def test_a_block_is_of_a_known_language_and_has_one_rule(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block}: fenced as {block.language!r}, which nothing here can try"
    found = rules_of(block)
    assert found, f"{block}: no rule in tests/docs/rules.py says how it is tried: {block.text.splitlines()[0]}"
    assert len(found) == 1, f"{block}: several rules name it: {[rule.begins for rule in found]}"


def test_every_rule_has_its_block() -> None:
    used = {rule for block in FENCED for rule in rules_of(block)}
    assert [f"{rule.page}: {rule.begins}" for rule in RULES if rule not in used] == []


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.how in (How.ELSEWHERE, How.READ)], ids=str)
def test_what_is_not_run_says_why(rule: Rule) -> None:
    assert rule.why
    if rule.how is How.ELSEWHERE:
        file, _, name = rule.why.partition("::")
        assert (ROOT / file).is_file()
        assert f"def {name}" in (ROOT / file).read_text()


@pytest.mark.parametrize("block", [block for block in ALL if is_formula(block)], ids=str)
def test_a_command_is_fenced(block: Block) -> None:
    assert not block.text.lstrip().startswith(PROGRAMS), f"{block}: write it between ```sh and ```"


@pytest.mark.parametrize("block", [block for block in FENCED if block.language == "python"], ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [block for block in FENCED if block.language == "sh"], ids=str)
def test_a_script_is_one(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text(block.text)
    ended = subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{block}: {ended.stderr}"
    assert "$ " not in {line[:2] for line in block.text.splitlines()}, f"{block}: a prompt is copied with the command"


def test_every_page_that_needs_a_machine_is_followed() -> None:
    followed = {
        "README.md",
        "docs/campaigns.md",
        "docs/client.md",
        "docs/concepts.md",
        "docs/operations.md",
        "docs/grpc.md",
    }
    assert {block.page for block in tried(How.OWN)} == followed, "tests/docs/test_own_machine.py has a test for each"


def test_every_case_has_its_command() -> None:
    typed = [words(command) for block in FENCED if block.language == "sh" for command in commands(block.text)]
    assert [begins for begins in CASES if not any(command.startswith(begins) for command in typed)] == []


def test_what_is_run_alone_or_on_a_shared_backend_starts_none() -> None:
    typed = [
        command
        for how in (How.ALONE, How.SESSION)
        for block in tried(how)
        if block.language == "sh"
        for command in commands(block.text)
    ]
    assert [command for command in typed if case_of(command)[0] not in (None, Case.SKIPPED)] == []
