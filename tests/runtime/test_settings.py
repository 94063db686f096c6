"""Every setting is written once: the rooms' classes, `unerase serve` and its options take it from one field."""

import inspect
from collections import defaultdict
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from support.command_tree import whole_command
from unerase._cli import app
from unerase._commands import operator
from unerase_backend import serve
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.coordinator.settings import CoordinatorSettings
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.probing.settings import ProbingSettings
from unerase_backend.serve import ServeSettings

ROOMS = (ClassificationSettings, GenerationSettings, AttackSettings, ProbingSettings, CoordinatorSettings)
# `unerase serve` may be left to choose them; a room is told.
CHOSEN = {"port", "metrics_port", "artifacts"} | {
    *("batch_rows", "decode_batch", "models_in_memory", "gradient_rows", "models_kept")
}


def test_a_setting_is_declared_in_one_class() -> None:
    declared = defaultdict(set)
    for settings in (*ROOMS, ServeSettings):
        for each in settings.__mro__:
            if issubclass(each, BaseModel) and each.__module__.startswith("unerase_backend"):
                for name in inspect.get_annotations(each):
                    declared[name].add(each)
    assert declared["lease_seconds"]
    assert {name for name, classes in declared.items() if len(classes) > 1} == CHOSEN


def test_the_client_declares_no_setting_of_the_backend() -> None:
    assert not set(ServeSettings.model_fields) & set(inspect.signature(operator.serve).parameters)


def test_an_option_says_what_its_field_says() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "400"})
    assert shown.exit_code == 0
    options = whole_command().commands["serve"].params
    # Eager ones, such as --help, are of the command itself.
    names = [option.name for option in options if not option.is_eager and option.name != "explain"]
    assert {"host", "port", "data_dir", "tls_certificate", "tokens"} <= set(names) <= set(ServeSettings.model_fields)
    for name in names:
        description = ServeSettings.model_fields[name].description
        assert description is not None
        assert description[1:] in shown.output, name


def test_explain_prints_the_plan_and_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "start", lambda _: pytest.fail("it was started"))
    shown = CliRunner().invoke(app, ["serve", "--explain", "--generation-replicas", "3"])
    assert shown.exit_code == 0
    for word in ("computing in float32 on cpu", "3 x 1 thread", "by affinity", "GB free", "3, as set"):
        assert word in shown.output


def test_explain_refuses_a_wrong_catalogue_as_the_start_does(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("models: {a/b: {base: no/such, method: UCE}}")
    ended = CliRunner().invoke(app, ["serve", "--explain", "--catalogue", str(tmp_path / "own.yaml")])
    assert ended.exit_code == 2
    assert "own.yaml: models.a/b.base: there is no model 'no/such'" in ended.stderr


def test_a_list_in_the_environment_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNERASE_SERVE_WEBHOOK_HOSTS", "hooks.example.com")
    ended = CliRunner().invoke(app, ["serve", "--explain"])
    assert ended.exit_code == 2
    assert ended.stderr.startswith("UNERASE_SERVE_WEBHOOK_HOSTS: must be JSON, in which a list of texts is written [")


def test_a_secret_is_no_option() -> None:
    secrets = [name for name, field in ServeSettings.model_fields.items() if not field.repr]
    assert secrets == ["database_url"]
    options = whole_command().commands["serve"].params
    assert not {option.name for option in options} & set(secrets)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], {}),
        (["--port", "0", "--generation-replicas=2"], {"port": 0, "generation_replicas": 2}),
        (["--allow-insecure-bind", "--host", "::"], {"allow_insecure_bind": True, "host": "::"}),
        (["--catalogue", "{file}", "--catalogue", "{file}"], {"catalogues": ("{file}", "{file}")}),
        (["--tokens", "{file}", "--data-dir", "{folder}"], {"tokens": "{file}", "data_dir": Path("{folder}")}),
    ],
)
def test_options_become_settings(
    arguments: list[str], given: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to where a backend would start; `start` itself is `tests/service`'s."""
    started: list[ServeSettings] = []

    def start(settings: ServeSettings) -> None:
        started.append(settings)
        raise RuntimeError("far enough")

    monkeypatch.setattr(serve, "start", start)
    # As a catalogue it is empty.
    (tmp_path / "file").write_text("{}")
    places = {"{file}": str(tmp_path / "file"), "{folder}": str(tmp_path)}

    def filled(value: object) -> object:
        match value:
            case tuple():
                return tuple(map(filled, value))
            case Path():
                return Path(places[str(value)])
            case str():
                return places.get(value, value)
        return value

    ended = CliRunner().invoke(app, ["serve", *(str(filled(each)) for each in arguments)])
    assert (ended.exit_code, ended.stderr) == (2, "far enough\n")
    (settings,) = started
    assert settings.model_dump(exclude_defaults=True) == {name: filled(value) for name, value in given.items()}


def test_what_is_wrong_with_a_setting_is_said_in_a_line() -> None:
    ended = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"], env={"UNERASE_SERVE_LEASE_SECONDS": "0"})
    assert ended.exit_code == 2
    assert ended.stderr == "lease_seconds: Input should be greater than or equal to 1\n"
    ended = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert ended.stderr.startswith("settings: host '0.0.0.0' is reachable from other machines")


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("models", "absolute path"),
        ("/srv/../etc", "must not lead over"),
        ("s3://", "absolute path, or a URL"),
        ("nothing://bucket", "needs a package that is not installed"),
        ("memory://..", "must not lead over"),
    ],
)
def test_a_place_of_models_is_absolute(root: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GenerationSettings(artifacts="a", model_roots=[root])
    roots = ["/srv/models/", "memory://bucket/models/"]
    assert GenerationSettings(artifacts="a", model_roots=roots).model_roots == tuple(each[:-1] for each in roots)


def test_serve_takes_places_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    # A link stays as it is written: that is how callers name what lies behind it.
    assert ServeSettings(model_roots=[f"{tmp_path}/link"]).model_roots == (f"{tmp_path}/link",)
    with pytest.raises(ValueError, match="there is no folder"):
        ServeSettings(model_roots=[f"{tmp_path}/nothing"])
    with pytest.raises(ValueError, match="names of organisations"):
        ServeSettings(model_organisations=["owner/name"])
