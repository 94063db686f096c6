"""What the documentation names exists: commands and options, files and tests, settings, reasons, evaluations."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer

from docs.pages import ROOT, blocks, commands, inline_code, links, pages, text_of, words
from docs.rules import is_formula
from support.backend import own_evaluations
from support.command_tree import below, whole_command
from unerase_backend.coordinator.settings import CoordinatorSettings
from unerase_backend.serve_settings import ServeSettings

PACKAGE = ROOT / "services" / "unerase_backend"
# Written by a command that the same page shows, or by the reader.
MADE = re.compile(
    r"^(build|secrets|logs|pictures|unerase-data|artifacts|first|second|own|/|~|s3:|https?:|HEAD|<|\.venv|erased|mine|templates)"
)
# A path of ours, with a folder and an ending, or a file of the root.
PATH = re.compile(r"^[\w.*{}-]+(/[\w.*{}-]+)*/?$")
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".json", ".j2", ".toml", ".proto", ".png")
TOP = ("docs", "tests", "deploy", "services", "clients", "protos", "bench", "tools", "examples")
# Made on the reader's side, or names of files in general.
FILES = {
    "audit.json",
    "audit.html",
    "calibration.json",
    "MODEL.json",
    "tokens.json",
    "base/catalogue.yaml",
    "esd-hourglass.yaml",
    "campaign.yaml",
    "gate.yaml",
    # Of diffusers and PEFT.
    "diffusion_pytorch_model.safetensors.index.json",
    "adapter_config.json",
}
PROGRAMS = {
    "unerase",
    "make",
    "python",
    "pip",
    "serve",
    "ray",
    "buf",
    "grpcurl",
    "curl",
    "openssl",
    "docker",
    "kubectl",
} | {
    *("prometheus", "apt-get", "pg_ctlcluster", "runuser", "export", "mkdir", "chmod", "cp", "mv", "tee", "echo"),
    *("cd", "inspect", "node", "npm"),
}
# Words in capitals that are no reason and no status of ours.
CAPITALS = {"SIGTERM", "SIGKILL", "SIGHUP", "MODEL", "ID", "NAME"}


def _split(command: str) -> list[list[str]]:
    """The simple commands of a line, as words: what comes before `;`, `&&`, `|` and redirections apart."""
    lexer = shlex.shlex(words(command), posix=True, punctuation_chars=";&|<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    for word in lexer:
        if word and set(word) <= set(";&|()"):
            found.append([])
        else:
            found[-1].append(word)
    return [words_of[: words_of.index(">")] if ">" in words_of else words_of for words_of in found if words_of]


def _shell_commands() -> Iterator[tuple[str, list[str]]]:
    for page in pages():
        for block in blocks(page):
            if block.language == "sh":
                for command in commands(block.text):
                    for parts in _split(command):
                        yield f"{block}: {' '.join(parts)}", parts


def _command(arguments: list[str]) -> tuple[Any, list[str]]:
    """Return the command that arguments ask for, and what is left of them."""
    command = whole_command()
    while arguments and arguments[0] in below(command):
        command, arguments = below(command)[arguments[0]], arguments[1:]
    return command, arguments


TYPED = [(where, parts) for where, parts in _shell_commands() if parts[0].endswith("unerase")]
MODULES = [(where, parts) for where, parts in _shell_commands() if "python" in parts[0] and "-m" in parts]


@pytest.mark.parametrize(("where", "parts"), TYPED, ids=[where for where, _ in TYPED])
def test_a_command_line_is_understood(where: str, parts: list[str]) -> None:
    command, arguments = _command(parts[1:])
    # It raises for an option that is not there, an argument that is missing, a value of the wrong kind.
    try:
        command.make_context(where, list(arguments))
    except typer.Exit:
        # It has said what it was asked for, as its version.
        return
    except typer.BadParameter as error:
        # A file, or the folder of one, that an earlier command makes.
        if not re.search("does not exist|No such file or directory", str(error)):
            raise


@pytest.mark.parametrize(("where", "parts"), MODULES, ids=[where for where, _ in MODULES])
def test_a_module_that_is_run_is_there(where: str, parts: list[str]) -> None:
    at = parts.index("-m") + 1
    spec = importlib.util.find_spec(parts[at])
    assert spec is not None, where
    assert spec.origin is not None
    if parts[at] != "pytest":
        source = Path(spec.origin).read_text()
        options = [part.split("=")[0] for part in parts[at:] if part.startswith("--")]
        assert [option for option in options if f'"{option}"' not in source] == [], where


RAYS = [(where, parts) for where, parts in _shell_commands() if parts[:2] == ["ray", "start"]]


@pytest.mark.parametrize(("where", "parts"), RAYS, ids=[where for where, _ in RAYS])
def test_a_node_of_ray_is_started_with_options_that_ray_has(where: str, parts: list[str]) -> None:
    from ray.scripts.scripts import cli

    cli.commands["start"].make_context(where, parts[2:])


@pytest.mark.parametrize("page", pages())
def test_a_program_is_known(page: str) -> None:
    """A line that is copied begins with a program, and not with a word that was meant for something else."""
    typed = [(where, parts) for where, parts in _shell_commands() if where.startswith(f"{page}:")]
    assert [where for where, parts in typed if Path(parts[0]).name not in PROGRAMS and "=" not in parts[0]] == []


@cache
def _options() -> set[str]:
    """Every option of every command."""
    found: set[str] = {"--help"}
    pending = [whole_command()]
    while pending:
        command = pending.pop()
        pending += below(command).values()
        found |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return found


@pytest.mark.parametrize("page", pages())
def test_a_command_in_the_prose_is_there(page: str) -> None:
    assert [f"{page}:{line}: {code}" for line, code in inline_code(page) if not _is_known(code.split())] == []


def _is_known(parts: list[str]) -> bool:
    """Say whether a command of ours, or a part of one, names what there is; another's is taken as it is."""
    match parts:
        case ["unerase", *arguments]:
            command, rest = _command(arguments)
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            lost = below(command) and rest and not rest[0].startswith("-")
            return not lost and {part.split("=")[0] for part in rest if part.startswith("--")} <= known
        case ["make", target, *_]:
            return re.search(rf"^{re.escape(target)}:", text_of("Makefile"), re.MULTILINE) is not None
        case ["python", "-m", module, *_]:
            return importlib.util.find_spec(module) is not None
    return True


# Options of others' programs, which the pages name as theirs: Ray's, a container engine's, pytest's, buf's.
OTHERS = re.compile(
    r"--(publish|network|port|min-worker-port|max-worker-port|dashboard-\w[\w-]*|ray-client-server-port|metrics-export-port"
    r"|schema|cert|key|catalogue|build-arg|concepts|parts|pictures)\b"
)


@pytest.mark.parametrize("page", pages())
def test_an_option_in_the_prose_is_there(page: str) -> None:
    # Of a whole command that is not ours, options are its own.
    ours = [(line, code) for line, code in inline_code(page) if code.startswith(("--", "unerase"))]
    named = [(line, word) for line, code in ours for word in re.findall(r"(?:^|(?<=\s))--[a-z][\w-]*", code)]
    assert [f"{page}:{line}: {word}" for line, word in named if word not in _options() and not OTHERS.match(word)] == []


@cache
def _files() -> set[str]:
    ignored = {".venv", ".git", "build", "__pycache__"}
    return {
        str(path.relative_to(ROOT)) for top in TOP for path in (ROOT / top).rglob("*") if not ignored & set(path.parts)
    }


def _is_there(name: str) -> bool:
    name = name.rstrip("/")
    if (ROOT / name).exists() or (PACKAGE / name).exists() or name in FILES:
        return True
    # As `overlays/gpu` below a folder that the page has named, or a bare file's name.
    return any(path.endswith(f"/{name}") for path in _files())


@pytest.mark.parametrize("page", pages())
def test_a_file_that_is_named_is_there(page: str) -> None:
    wrong = []
    for line, code in inline_code(page):
        path, _, test = code.partition("::")
        if not PATH.match(path) or MADE.match(path) or "*" in path:
            continue
        # A bare ending, such as `.png`, names no file.
        is_file = (path.endswith(SUFFIXES) and path not in SUFFIXES) or (path.split("/")[0] in TOP and "/" in path)
        if not is_file:
            continue
        if not _is_there(path):
            wrong.append(f"{page}:{line}: {path}")
        elif test and test.split("[")[0] not in _functions(path):
            wrong.append(f"{page}:{line}: {code}")
    assert wrong == []


@pytest.mark.parametrize("page", pages())
def test_a_link_leads_somewhere(page: str) -> None:
    """Sphinx looks at the pages below docs/ alone."""
    wrong = []
    for line, target in links(page):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in _anchors(file.resolve().relative_to(ROOT))):
            wrong.append(f"{page}:{line}: {target}")
    assert wrong == []


def test_the_readme_links_every_page() -> None:
    linked = {target.partition("#")[0] for _, target in links("README.md")}
    records = re.compile(r"docs/index\.md|docs/decisions/\d.*")
    assert [page for page in pages() if page not in {*linked, "README.md"} and not records.fullmatch(page)] == []


def _anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and Sphinx make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(str(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def _functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", pages())
def test_a_test_that_is_named_is_there(page: str) -> None:
    named = [(line, code) for line, code in inline_code(page) if re.fullmatch(r"test_\w+", code)]
    assert [f"{page}:{line}: {code}" for line, code in named if f"def {code}(" not in _sources()] == []


@cache
def _sources() -> str:
    """All code of ours."""
    files = [path for top in ("services", "clients", "tests", "bench", "tools") for path in (ROOT / top).rglob("*.py")]
    ours = [path for path in files if (ROOT / "tests" / "docs") not in path.parents]
    texts = [path.read_text() for path in ours]
    others = [
        path for top in ("protos", "deploy") for path in (ROOT / top).rglob("*.*") if path.suffix in (".proto", ".yaml")
    ]
    return "\n".join([*texts, *(path.read_text() for path in others), text_of("Dockerfile")])


@cache
def _source_words() -> set[str]:
    return set(re.findall(r"\w+", _sources()))


@pytest.mark.parametrize("page", pages())
def test_a_variable_is_there(page: str) -> None:
    settings = {f"UNERASE_SERVE_{name.upper()}" for name in ServeSettings.model_fields}
    wrong = []
    for name in sorted(set(re.findall(r"\bUNERASE_[A-Z_]+[A-Z]", text_of(page)))):
        if name == "UNERASE_SERVE":
            continue
        if name.startswith("UNERASE_SERVE_"):
            known = name in settings
        else:
            # The client reads its own under a prefix; a deployment names one of its own.
            known = name in _sources() or f'"{name.removeprefix("UNERASE_")}"' in _sources()
        if not known:
            wrong.append(f"{page}: {name}")
    assert wrong == []


@pytest.mark.parametrize("page", pages())
def test_a_reason_is_there(page: str) -> None:
    codes = {code.name for code in grpc.StatusCode}
    named = {(line, code) for line, code in inline_code(page) if re.fullmatch(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)*", code)}
    wrong = [
        f"{page}:{line}: {code}"
        for line, code in sorted(named)
        # Variables have a test of their own; others' are theirs.
        if code not in codes | CAPITALS
        and not code.startswith(("UNERASE_", "RAY_", "OTEL_", "OMP_", "GOMP_"))
        and code not in _source_words()
    ]
    assert wrong == []


def test_every_evaluation_is_described() -> None:
    described = {code for _, code in inline_code("docs/evaluations.md")}
    assert sorted(own_evaluations().keys() - described) == []
    needs = {code for _, code in inline_code("docs/concepts.md")}
    assert sorted(own_evaluations().keys() - needs) == []


def test_every_preset_is_named_where_presets_are() -> None:
    """`full` is named wherever `standard` is named beside `quick` as the choice."""
    wrong = []
    for source in (*(ROOT / "protos").rglob("*.proto"), *(ROOT / "clients").rglob("_*.py"), *PACKAGE.rglob("*.py")):
        for number, line in enumerate(source.read_text().splitlines(), 1):
            if re.search(r"\bquick\b.{0,4}, .{0,4}\bstandard\b", line) and "full" not in line:
                wrong.append(f"{source.relative_to(ROOT)}:{number}")
    for page in pages():
        for number, line in enumerate(text_of(page).splitlines(), 1):
            if re.search(r"\bquick\b.{0,4}, .{0,4}\bstandard\b", line) and "full" not in line:
                wrong.append(f"{page}:{number}")
    assert wrong == []


def test_every_scope_stands_in_the_table() -> None:
    from unerase_backend.runtime.access import SCOPES

    described = {code for _, code in inline_code("docs/operations.md")}
    assert sorted(set(SCOPES) - described) == []


def test_every_variable_of_the_client_stands_in_the_table() -> None:
    from unerase._environment import _NAMES

    assert [name for name in _NAMES if f"`UNERASE_{name}" not in text_of("docs/operations.md")] == []


def test_the_settings_of_a_deployment_are_there() -> None:
    """What docs/deployment.md calls a key of the coordinator's arguments is one."""
    for name in ("database_url_variable", "database_url", "artifacts", "catalogues", "digests"):
        assert f"`{name}`" in text_of("docs/deployment.md")
        assert name in CoordinatorSettings.model_fields


def test_formulas_apart_every_page_is_read() -> None:
    assert sum(not is_formula(block) for page in pages() for block in blocks(page)) > 30
