"""The options `--prompts` and `--pack`: what reaches the backend of the files that they name."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from support.scripted_server import Script
from unerase import read_pack
from unerase._cli import app
from unerase._commands.failing import ExitCode
from unerase.v1.audits_pb2 import AuditSpec, CreateAuditRequest

LIST = "prompt,sd_seed,sd_guidance_scale\n" + "".join(f"prompt {n},{n},7\n" for n in range(5))
PACK = "concept: hourglass\nkinds: {synonym: [a sandglass, a clepsydra], language-de: [eine Sanduhr]}\n"


def audit(address: str, *arguments: str) -> Result:
    named = ("audit", "testbed/uce", "--concept", "hourglass", "--dry-run", "--address", address)
    return CliRunner().invoke(app, [*named, *arguments], env={"COLUMNS": "200"})


def sent(script: Script) -> AuditSpec:
    return next(request for request in script.requests if isinstance(request, CreateAuditRequest)).spec


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "list.csv"
    path.write_text(LIST)
    return str(path)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "pack.yaml"
    path.write_text(PACK)
    return path


def test_the_list_is_sent_with_its_source(address: str, script: Script, prompts: str) -> None:
    ended = audit(address, "--prompts", prompts)
    assert ended.exit_code == 0, ended.output
    spec = sent(script)
    assert [fixed.latent_seed for fixed in spec.fixed_prompts] == [0, 1, 2, 3, 4]
    assert (spec.cases, spec.fixed_prompts_source.name) == (0, "list.csv")
    assert "5 of the 5 prompts of list.csv are the cases; latent seed from 'sd_seed'" in ended.stderr


def test_a_list_of_one_prompt_is_one_case(address: str, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("prompt\na prompt\n")
    ended = audit(address, "--prompts", str(tmp_path / "one.csv"), "--cases", "2")
    assert "one.csv holds 1 prompt, which is taken" in ended.stderr
    assert "the one prompt of one.csv is the case" in ended.stderr


def test_cases_beyond_those_asked_for_are_held_out(address: str, script: Script, prompts: str) -> None:
    assert audit(address, "--prompts", prompts, "--cases", "3").exit_code == 0
    assert (sent(script).cases, len(sent(script).fixed_prompts)) == (3, 5)


def test_a_short_list_is_taken_whole_and_said(address: str, script: Script, prompts: str) -> None:
    ended = audit(address, "--prompts", prompts, "--cases", "24")
    assert sent(script).cases == 5
    assert re.search(r"--cases 24: .*list\.csv holds 5 prompts, which are all taken", ended.stderr)


def test_a_guidance_scale_of_the_command_replaces_the_lists(address: str, script: Script, prompts: str) -> None:
    ended = audit(address, "--prompts", prompts, "--guidance-scale", "3")
    assert not any(fixed.HasField("guidance_scale") for fixed in sent(script).fixed_prompts)
    assert "--guidance-scale 3 replaces the guidance scales of" in ended.stderr


def test_a_list_that_is_too_long_needs_a_number(address: str, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("prompt\n" + "".join(f"prompt {n}\n" for n in range(4703)))
    refused = audit(address, "--prompts", str(path))
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert "holds 4703 prompts, and an audit takes at most 512 cases; say with --cases" in refused.stderr
    assert audit(address, "--prompts", str(path), "--cases", "100").exit_code == 0
    assert (sent(script).cases, len(sent(script).fixed_prompts)) == (100, 1024)


@pytest.mark.parametrize("option", ["--prompts", "--pack"])
def test_a_bad_file_is_refused_before_the_backend_is_asked(address: str, tmp_path: Path, option: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("kinds: {synonym: []}\n")
    refused = audit(address, option, str(path))
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert "bad.yaml" in refused.stderr
    assert audit(address, option, str(tmp_path / "missing.yaml")).exit_code == ExitCode.BAD_INPUT


def test_a_pack_is_sent(address: str, script: Script, pack: Path) -> None:
    assert audit(address, "--pack", str(pack)).exit_code == 0
    assert sent(script).pack == read_pack(pack)
    assert {kind.name: list(kind.prompts) for kind in sent(script).pack.kinds} == {
        "synonym": ["a sandglass", "a clepsydra"],
        "language-de": ["eine Sanduhr"],
    }


@pytest.mark.parametrize(("of", "noted"), [("mine/hourglass", False), ("heart", True), ("''", False)])
def test_the_pack_of_another_concept_is_noted(address: str, pack: Path, of: str, noted: bool) -> None:
    pack.write_text(PACK.replace("concept: hourglass", f"concept: {of}"))
    ended = audit(address, "--pack", str(pack))
    assert ended.exit_code == 0
    assert ("says that it is of the concept" in ended.stderr) == noted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]", "must be a mapping whose key 'kinds' maps each kind to a list of prompts"),
        ("concept: [a]\nkinds: {a: [b]}", "concept: must be a concept's name"),
        ("kinds: {}", "must be a mapping whose key 'kinds'"),
        ("kinds: {a: [b]}\nname: c", "there is no key 'name'"),
        ("kinds: {German prompts: [b]}", "'German prompts' must be lower-case words"),
        ("kinds: {no: [b]}", "False must be lower-case words"),
        ("kinds: {a: []}", "kinds.a: must be a list of 1 to 256 prompts"),
        ("kinds: {a: [b, ' ']}", "kinds.a[1]: must be a prompt, not ' '"),
        ("kinds: {a: [b, 7]}", "kinds.a[1]: must be a prompt, not 7"),
        ("kinds: {a: ['a {concept}']}", "kinds.a[0]: must be at most 4096 bytes, and hold no {concept}"),
        ("kinds: {a: [b, b]}", "kinds.a: holds a prompt twice"),
        ("kinds: {a: [b}", "line 1: not valid YAML"),
    ],
)
def test_what_is_wrong_with_a_pack_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "pack.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"pack\.yaml") as error:
        read_pack(path)
    assert said in str(error.value)
