"""Strict checking of a Serve config: `unerase deploy check FILE`.

`serve deploy` ignores unknown keys, checks some values only when a replica starts, and resolves import paths only on
the cluster. Here each such problem is an error before deployment, named by its place in the file. The known keys come
from Serve's own models, so that they match the installed version.
"""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import ServeDeploySchema
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from unerase_backend.runtime.validation import problem_text

APPLICATIONS = ("classification", "generation", "attack", "probing", "coordinator")
"""The rooms find each other by these names."""


def check_file(path: Path) -> list[str]:
    """Return what is wrong with a Serve config, one line for each problem; empty if nothing is.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        config = yaml.load(path.read_text(), _UniqueKeys)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [f"is not valid YAML: {' '.join(str(error).split())}"]
    return list(check(config))


def check(config: Any) -> Iterator[str]:
    """Yield what is wrong with a Serve config, as `PLACE: PROBLEM`."""
    if not isinstance(config, Mapping):
        yield "the file must hold a mapping with `applications`"
        return
    unknown = list(_unknown_keys(config, ServeDeploySchema, ""))
    yield from unknown
    try:
        ServeDeploySchema.model_validate(_without_imports(config))
    except ValidationError as error:
        yield from _violations(error, "")
        return
    names = [application.get("name") for application in config["applications"]]
    for name in APPLICATIONS:
        if name not in names:
            yield f"applications: {name!r} is missing"
    for index, application in enumerate(config["applications"]):
        yield from _check_application(application, f"applications[{index}]")
    yield from _check_stores(config["applications"])


def _check_application(application: Mapping[str, Any], place: str) -> Iterator[str]:
    if (name := application.get("name", "default")) not in APPLICATIONS:
        yield f"{place}.name: no room looks for {name!r}, only for {', '.join(APPLICATIONS)}"
    if application.get("route_prefix", "/") is not None:
        yield f"{place}.route_prefix: must be null, or Serve's HTTP proxy serves the room to anybody"
    for index, deployment in enumerate(application.get("deployments", ())):
        yield from _check_deployment(deployment, f"{place}.deployments[{index}]")
    try:
        build = _imported(application["import_path"])
    except ValueError as error:
        yield f"{place}.import_path: {error}"
        return
    settings = _settings_type(build)
    if settings is None:
        yield f"{place}.import_path: must name a function of one argument, its settings"
        return
    try:
        args = settings.model_validate(application.get("args", {}))
    except ValidationError as error:
        yield from _violations(error, f"{place}.args")
        return
    yield from _check_secrets(application.get("args", {}), f"{place}.args")
    there = set(_deployments(build(args)))
    for index, deployment in enumerate(application.get("deployments", ())):
        if deployment["name"] not in there:
            yield (
                f"{place}.deployments[{index}].name: the application has no deployment {deployment['name']!r}, "
                f"but {', '.join(sorted(there))}"
            )


def _check_deployment(deployment: Mapping[str, Any], place: str) -> Iterator[str]:
    """Check the parts that Serve's schema accepts as any mapping; their models import what they name when created."""
    scaling, routing = deployment.get("autoscaling_config") or {}, deployment.get("request_router_config") or {}
    policy = scaling.get("policy") or {}
    paths = (
        (policy.get("policy_function"), f"{place}.autoscaling_config.policy.policy_function"),
        (routing.get("request_router_class"), f"{place}.request_router_config.request_router_class"),
    )
    named = {}
    for path, at in paths:
        if path is not None:
            try:
                named[path] = _imported(path)
            except ValueError as error:
                yield f"{at}: {error}"
                return
    if "policy_function" in policy:
        policy_place = f"{place}.autoscaling_config.policy.policy_kwargs"
        yield from _called(named[policy["policy_function"]], policy.get("policy_kwargs") or {}, policy_place)
    if scaling:
        yield from _called(AutoscalingConfig, scaling, f"{place}.autoscaling_config")
    if routing:
        yield from _called(RequestRouterConfig, routing, f"{place}.request_router_config")


def _called(made: Callable[..., Any], arguments: Mapping[str, Any], place: str) -> Iterator[str]:
    if not inspect.isclass(made):
        return
    try:
        made(**arguments)
    except ValidationError as error:
        yield from _violations(error, place)
    except (TypeError, ValueError) as error:
        yield f"{place}: {error}"


def _check_stores(applications: list[Mapping[str, Any]]) -> Iterator[str]:
    """Check that all rooms have the same artefact store and models, without which they cannot work together."""
    for key in ("artifacts", "catalogues", "model_roots", "model_organisations"):
        said = [(index, one.get("args", {}).get(key)) for index, one in enumerate(applications)]
        for index, value in said:
            if value != said[0][1]:
                yield f"applications[{index}].args.{key}: must be the same as in applications[{said[0][0]}]"


def _check_secrets(args: Mapping[str, Any], place: str) -> Iterator[str]:
    try:
        held = bool(args.get("database_url")) and make_url(args["database_url"]).password is not None
    except (ArgumentError, ValueError):
        # Without SQLAlchemy's message, which may contain the password.
        yield f"{place}.database_url: is not the URL of a database"
        return
    if held:
        yield (
            f"{place}.database_url: holds a password, which everybody who can read Serve's status would see; "
            "name an environment variable in database_url_variable instead"
        )


def _without_imports(value: Any) -> Any:
    """Return `value` without the keys that make Serve's models import something, which may raise any error."""
    if isinstance(value, Mapping):
        return {
            key: _without_imports(below)
            for key, below in value.items()
            if key not in ("policy", "request_router_class")
        }
    return [_without_imports(below) for below in value] if isinstance(value, list) else value


def _unknown_keys(value: Any, annotation: Any, place: str) -> Iterator[str]:
    """Yield each key below `value` for which the models in its type have no field."""
    model = _model_in(annotation)
    if isinstance(value, Mapping) and model is not None:
        known: dict[str, Any] = {}
        for name, field in model.model_fields.items():
            known[field.alias or name] = known[name] = field.annotation
        for key, below in value.items():
            at = f"{place}.{key}" if place else str(key)
            if key not in known:
                yield f"{at}: there is no such key{_suggestion(key, known)}"
            elif key == "runtime_env":
                yield from _unknown_in_runtime_env(below, at)
            else:
                yield from _unknown_keys(below, known[key], at)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _unknown_keys(below, annotation, f"{place}[{index}]")


def _unknown_in_runtime_env(value: Any, place: str) -> Iterator[str]:
    known = {name for name in RuntimeEnv.known_fields if not name.startswith("_")}
    for key in value if isinstance(value, Mapping) else ():
        if key not in known:
            yield f"{place}.{key}: there is no such key{_suggestion(key, known)}"


def _suggestion(key: Any, known: Any) -> str:
    from difflib import get_close_matches

    close = get_close_matches(str(key), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation, as in `Optional[Union[Dict, Model]]` or `list[Model]`."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)
    return None


def _imported(path: str) -> Any:
    """Return the object that an import path names.

    Raises:
        ValueError: the path cannot be imported, or names nothing.
    """
    module, separator, name = path.partition(":")
    if not separator:
        module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot be imported: {error}") from None
    except AttributeError:
        raise ValueError(f"the module {module} has no {name}") from None


def _settings_type(build: Callable[..., Any]) -> type[BaseModel] | None:
    if not inspect.isfunction(build):
        return None
    arguments = [hint for name, hint in get_type_hints(build).items() if name != "return"]
    return _model_in(arguments[0]) if len(arguments) == 1 else None


def _deployments(application: Application) -> Iterator[str]:
    """Yield the names of the deployments in an application that has been bound."""
    deployment = application._bound_deployment
    yield deployment.name
    for bound in [*deployment.init_args, *deployment.init_kwargs.values()]:
        if isinstance(bound, Application):
            yield from _deployments(bound)


def _violations(error: ValidationError, place: str) -> Iterator[str]:
    for violation in error.errors(include_url=False, include_context=False, include_input=False):
        at = place
        for part in violation["loc"]:
            at += f"[{part}]" if isinstance(part, int) else f".{part}" if at else str(part)
        yield f"{at}: {problem_text(violation)}"


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice in one mapping; YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
