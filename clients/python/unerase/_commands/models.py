"""What can be audited: `models`, and the models that are registered through the API."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import grpc
import typer

from unerase._client import Client
from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail, lines_of, reported
from unerase._commands.following import may_be_lost
from unerase._commands.options import Address, AsJson, FilterOption, OrderOption, RequestId, Timeout, is_group
from unerase._commands.output import plain_table, say, say_json, show_list, stdout, tell
from unerase._errors import UneraseError
from unerase._model_file import read_models
from unerase._repeating import new_id
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.models_pb2 import Model, ModelRegistration, RegistrationState

models_app = typer.Typer(invoke_without_command=True, pretty_exceptions_enable=False)

# What is wrong with one model of a file, and says nothing of the next.
_OF_THE_MODEL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)

_EXISTS = "MODEL_EXISTS"

ModelName = Annotated[str, typer.Argument(help="The model's name.")]


@models_app.callback()
def models(
    context: typer.Context,
    filter: FilterOption = "",
    order_by: OrderOption = "",
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """List the models, or register and delete your own; below the table, those that cannot be audited, with reasons."""
    if is_group(context):
        return
    with connected(address) as client:
        listed = client.models(filter=filter, order_by=order_by)
    show_list(
        listed,
        ["name", "base", "method", "erased", "digest", "registered"],
        lambda model: [
            model.name,
            model.base,
            model.method,
            ", ".join(model.erased),
            "cannot be audited" if model.problem else model.digest[:12],
            "registered" if model.registered else "",
        ],
        as_json,
    )
    if not as_json:
        for model in listed:
            if model.problem:
                _tell_problem(model)


@models_app.command("show")
def show_model(name: ModelName, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """Show a model, and for one that was refused or is still checked how far its registration is."""
    with connected(address) as client:
        try:
            model = client.model(name)
        except UneraseError as error:
            if error.reason != "MODEL_NOT_FOUND":
                raise
            _show_registration(_registration(client, name, error), as_json)
            return
    if as_json:
        say_json(model)
    else:
        _show(model)


@models_app.command("register")
def register_models(
    file: Annotated[
        Path, typer.Argument(dir_okay=False, help="YAML file: models as in a catalogue, and their labels.")
    ],
    request_id: RequestId = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Take the place of your model of the same name; campaigns in flight keep that one."
        ),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the checks.")] = False,
    timeout: Timeout = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Register the models of a YAML file, one after the other, and wait until each was checked and hashed.

    Exit code 0 if all of them exist then, 2 if one is refused; the others are tried all the same. A model that takes
    the place of another with --replace and is refused leaves none of its name.
    """
    with reported():
        try:
            described = read_models(file)
        except ValueError as error:
            fail(str(error), ExitCode.BAD_INPUT)
    if request_id is not None and len(described) > 1:
        fail(f"--request-id: {file} has {len(described)} models; it needs one each", ExitCode.BAD_INPUT)
    refused = False
    with connected(address) as client:
        for model in described:
            chosen = new_id(request_id)
            register = partial(
                client.register_model,
                model.name,
                model.entry,
                labels=model.labels,
                request_id=chosen,
                wait=not detach,
                timeout=timeout,
            )
            try:
                with may_be_lost("model", chosen):
                    registration = _replacing(client, model.name, register) if replace else register()
            except UneraseError as error:
                if error.code not in _OF_THE_MODEL:
                    raise
                refused = True
                for line in lines_of(error, _advice(error)):
                    tell(f"{model.name}: {line}")
                continue
            _show_registration(registration, as_json, ends=False)
            refused |= registration.state == RegistrationState.REGISTRATION_STATE_REFUSED
    if refused:
        raise typer.Exit(int(ExitCode.BAD_INPUT))


@models_app.command("delete")
def delete_model(name: ModelName, address: Address = DEFAULT_ADDRESS) -> None:
    """Delete a registered model, or the record of a refused one; its files stay, and audits keep what they need."""
    with connected(address) as client:
        client.delete_model(name)


def _replacing(client: Client, name: str, register: Callable[[], ModelRegistration]) -> ModelRegistration:
    """Register a model; if there is one of its name, in its place."""
    try:
        return register()
    except UneraseError as error:
        if error.reason != _EXISTS:
            raise
    # Only now: an entry that breaks a rule was refused before this, and leaves the earlier model as it is.
    client.delete_model(name)
    return register()


def _advice(error: UneraseError) -> str:
    return "--replace puts the new one in its place." if error.reason == _EXISTS else ""


def _registration(client: Client, name: str, missing: UneraseError) -> ModelRegistration:
    """Return a registration; the error of the missing model if there is none."""
    try:
        return client.import_status(name)
    except UneraseError:
        raise missing from None


def _show_registration(registration: ModelRegistration, as_json: bool, *, ends: bool = True) -> None:
    """Print how far a registration is; a refused one goes to stderr, and ends the command if it `ends`."""
    if as_json:
        say_json(registration)
        return
    if registration.state == RegistrationState.REGISTRATION_STATE_REFUSED:
        reason = f"{registration.error_reason} {registration.error_message}".strip()
        problems = [f"  {each.description}" for each in registration.check.problems]
        message = "\n".join([f"{registration.name} is refused: {reason}", *problems])
        if ends:
            fail(message, ExitCode.BAD_INPUT)
        for line in message.split("\n"):
            tell(line)
    elif registration.state == RegistrationState.REGISTRATION_STATE_REGISTERED:
        say(f"{registration.name}: {registration.model.digest}")
    else:
        say(f"{registration.name} is being checked; `unerase models show {registration.name}` says how far it is")


def _show(model: Model) -> None:
    table = plain_table("", "")
    labels = ", ".join(f"{key}={model.labels[key]}" for key in sorted(model.labels))
    for name, value in (
        ("name", model.name),
        ("base", model.base),
        ("method", model.method),
        ("erased", ", ".join(model.erased)),
        ("digest", model.digest),
        ("registered", "through the API" if model.registered else "in the operator's catalogue"),
        ("labels", labels),
    ):
        if value:
            table.add_row(name, value)
    table.show_header = False
    stdout.print(table)
    if model.problem:
        _tell_problem(model)


def _tell_problem(model: Model) -> None:
    named = model.name in model.problem
    say(model.problem if named else f"{model.name} cannot be audited: {model.problem}")
