"""Our Serve configs are right, and whatever is wrong in one is found, by its place."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.serve_config import APPLICATIONS, check, check_file

SERVE = Path(__file__).parents[2] / "deploy" / "serve"
# Through JSON: what an alias names in YAML is one and the same object.
CONFIGS = {
    name: json.loads(json.dumps(yaml.safe_load((SERVE / name).read_text())))
    for name in ("local.yaml", "cluster.yaml", "cpu.yaml")
}

# What a name may be freely: the resources of a cluster, and no key of anybody's.
_FREE = ("resources",)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shipped_config_is_right(name: str) -> None:
    assert check_file(SERVE / name) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_the_rooms_of_a_node_keep_digests_in_one_folder(name: str) -> None:
    folders = {application["args"].get("digests", "") for application in CONFIGS[name]["applications"]}
    assert folders == {"/var/lib/unerase/digests"}


def _keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key below `value` by its path."""
    if isinstance(value, dict):
        for key, below in value.items():
            if path[-1:] and path[-1] in _FREE:
                continue
            yield (*path, key)
            yield from _keys(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _keys(below, (*path, index))


def _at(config: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        config = config[part]
    return config


def _place(path: tuple[Any, ...]) -> str:
    place = ""
    for part in path:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    return place


PLACES = [(name, path) for name, config in CONFIGS.items() for path in _keys(config)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PLACES), st.data())
def test_a_misspelt_key_is_found_at_any_level(place: tuple[str, tuple[Any, ...]], data: st.DataObject) -> None:
    name, path = place
    *above, key = path
    at = data.draw(st.integers(0, len(key) - 1))
    misspelt = data.draw(
        st.sampled_from([key[:at] + "q" + key[at:], key[:at] + key[at + 1 :], key[:at] + "q" + key[at + 1 :]])
    )
    siblings = _at(CONFIGS[name], tuple(above))
    if not misspelt or misspelt in siblings:
        return
    config = copy.deepcopy(CONFIGS[name])
    mapping = _at(config, tuple(above))
    mapping[misspelt] = mapping.pop(key)
    problems = list(check(config))
    assert problems, misspelt
    if "policy_kwargs" in above:
        assert any("policy_kwargs" in problem and misspelt in problem for problem in problems)
    else:
        assert any(problem.startswith(f"{_place((*above, misspelt))}: ") for problem in problems), problems


@pytest.mark.parametrize("path", [("applications", 1, "args", "wrong"), ("applications", 1, "wrong"), ("wrong",)])
def test_a_key_too_many_is_found(path: tuple[Any, ...]) -> None:
    config = copy.deepcopy(CONFIGS["local.yaml"])
    _at(config, path[:-1])[path[-1]] = 1
    (problem,) = check(config)
    assert problem.startswith(f"{_place(path)}: ")


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in config["applications"] if one["name"] == "generation")
    return found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda one: one["args"].update(batch_rows=1),
            "applications[1].args.batch_rows: Input should be greater than or equal to 2",
        ),
        (lambda one: one["args"].pop("artifacts"), "applications[1].args.artifacts: Field required"),
        (
            lambda one: one.update(import_path="unerase_backend.generation.deploiment:build"),
            "applications[1].import_path: cannot be imported",
        ),
        (
            lambda one: one.update(import_path="unerase_backend.generation.deployment:built"),
            "applications[1].import_path: the module unerase_backend.generation.deployment has no built",
        ),
        (
            lambda one: one.update(import_path="unerase_backend.generation.routing:ModelRouter"),
            "applications[1].import_path: must name a function of one argument",
        ),
        (
            lambda one: one["deployments"][0].update(name="generations"),
            "applications[1].deployments[0].name: the application has no deployment 'generations', but generation",
        ),
        (lambda one: one.update(route_prefix="/g"), "applications[1].route_prefix: must be null"),
        (lambda one: one.pop("route_prefix"), "applications[1].route_prefix: must be null"),
        (lambda one: one.update(name="generator"), "applications[1].name: no room looks for 'generator'"),
        (
            lambda one: one["deployments"][0]["autoscaling_config"].update(min_replicas=9),
            "applications[1].deployments[0].autoscaling_config: max_replicas (8) must be greater",
        ),
        (
            lambda one: one["deployments"][0]["autoscaling_config"]["policy"].update(policy_function="nowhere:at_all"),
            "applications[1].deployments[0].autoscaling_config.policy.policy_function: cannot be imported",
        ),
        (
            lambda one: one["deployments"][0]["autoscaling_config"]["policy"]["policy_kwargs"].update(slack=2),
            "applications[1].deployments[0].autoscaling_config.policy.policy_kwargs: slack must be",
        ),
        (
            lambda one: one["deployments"][0]["ray_actor_options"].update(num_gpus=-1),
            "applications[1].deployments[0].ray_actor_options.num_gpus: Input should be greater than or equal to 0",
        ),
        (
            lambda one: one["deployments"][0].update(request_router_config={"request_router_class": "no.Router"}),
            "applications[1].deployments[0].request_router_config.request_router_class: cannot be imported",
        ),
        (
            lambda one: one.update(runtime_env={"env_var": {}}),
            "applications[1].runtime_env.env_var: there is no such key; did you mean env_vars?",
        ),
        (lambda one: one["args"].update(artifacts="/elsewhere"), "applications[1].args.artifacts: must be the same"),
    ],
)
def test_a_wrong_value_is_found_at_its_place(change: Any, expected: str) -> None:
    config = copy.deepcopy(CONFIGS["cluster.yaml"])
    change(_generation(config))
    problems = list(check(config))
    assert any(problem.startswith(expected) for problem in problems), problems


@pytest.mark.parametrize("name", APPLICATIONS)
def test_a_missing_application_is_found(name: str) -> None:
    config = copy.deepcopy(CONFIGS["local.yaml"])
    config["applications"] = [one for one in config["applications"] if one["name"] != name]
    assert list(check(config)) == [f"applications: {name!r} is missing"]


def test_a_password_in_the_file_is_refused_without_being_shown() -> None:
    config = copy.deepcopy(CONFIGS["local.yaml"])
    config["applications"][4]["args"]["database_url"] = "postgresql://unerase:sesame@db/unerase"
    (problem,) = check(config)
    assert problem.startswith("applications[4].args.database_url: holds a password")
    assert "sesame" not in problem


def test_a_database_that_is_no_url_is_refused_without_being_shown() -> None:
    config = copy.deepcopy(CONFIGS["local.yaml"])
    config["applications"][4]["args"]["database_url"] = "postgresql://unerase:sesame"
    assert list(check(config)) == ["applications[4].args.database_url: is not the URL of a database"]


@pytest.mark.parametrize("text", ["[", "[1]", "applications: 1", "proxy_location: x\napplications: []", "\x00"])
def test_what_is_no_config_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert check_file(file)


def test_a_key_that_stands_twice_is_found(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("proxy_location: Disabled\nproxy_location: EveryNode\napplications: []\n")
    (problem,) = check_file(file)
    assert "'proxy_location' occurs twice" in problem


def test_the_command_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    config = copy.deepcopy(CONFIGS["local.yaml"])
    config["aplications"] = []
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "unerase", "deploy", "check", str(SERVE / "local.yaml"), str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout.splitlines() == ["local.yaml: right"]
    assert " ".join(ended.stderr.split()) == "wrong.yaml: aplications: there is no such key; did you mean applications?"
