"""What can be looked for, and how: `concepts`, `evaluations` and `presets`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from unerase._commands.connecting import connected
from unerase._commands.failing import ExitCode, fail, reported
from unerase._commands.options import Address, AsJson, RequestId, is_group
from unerase._commands.output import say, say_json, show_list, tell
from unerase._concept_file import ConceptFile, read_concept_file
from unerase._counting import count_of
from unerase._display import enum_name
from unerase._errors import FieldViolation, UneraseError
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.types_pb2 import EvaluationClass

concepts_app = typer.Typer(invoke_without_command=True, pretty_exceptions_enable=False)


@concepts_app.callback()
def concepts(context: typer.Context, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the concepts, or create and delete custom ones."""
    if is_group(context):
        return
    with connected(address) as client:
        show_list(
            client.concepts(),
            ["name", "words", "control", "pictures", "custom"],
            lambda concept: [
                concept.name,
                ", ".join(concept.names),
                concept.control,
                f"{len(concept.picture_digests)} + {len(concept.near_miss_digests)}",
                "custom" if concept.custom else "",
            ],
            as_json,
        )


@concepts_app.command("create")
def create_concept(
    file: Annotated[
        Path, typer.Argument(dir_okay=False, help="YAML file: a catalogue entry with a name and pictures.")
    ],
    request_id: RequestId = None,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Create a custom concept from a YAML file and the pictures that it names."""
    with reported():
        try:
            read = read_concept_file(file)
        except ValueError as error:
            fail(str(error), ExitCode.BAD_INPUT)
    for line in read.left_out():
        tell(line)
    with connected(address) as client, _naming_files(read):
        concept = client.create_concept(
            read.concept, read.pictures, read.near_misses, tile=read.tile, request_id=request_id
        )
    if as_json:
        say_json(concept)
    else:
        pictures = count_of(len(concept.picture_digests), "picture")
        near_misses = count_of(len(concept.near_miss_digests), "near miss", "near misses")
        say(f"{concept.name}: {pictures}, {near_misses}")


@contextmanager
def _naming_files(read: ConceptFile) -> Iterator[None]:
    """Name pictures by their files in an error of the backend, which knows only their numbers."""
    try:
        yield
    except UneraseError as error:
        error.violations = tuple(
            FieldViolation(read.named(each.field), read.named(each.description)) for each in error.violations
        )
        raise


@concepts_app.command("delete")
def delete_concept(
    name: Annotated[str, typer.Argument(help="Name of a custom concept.")], address: Address = DEFAULT_ADDRESS
) -> None:
    """Delete a custom concept; audits of it keep what they hold."""
    with connected(address) as client:
        client.delete_concept(name)


def evaluations(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the evaluations with their parameters."""
    with connected(address) as client:
        show_list(
            client.evaluations().evaluations,
            ["name", "class", "what it does", "parameters"],
            lambda evaluation: [
                evaluation.name,
                enum_name(EvaluationClass, evaluation.evaluation_class, "EVALUATION_CLASS_"),
                evaluation.summary,
                ", ".join(parameter.name for parameter in evaluation.parameters),
            ],
            as_json,
        )


def presets(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the presets: named batteries, with their cases and steps."""
    with connected(address) as client:
        show_list(
            client.evaluations().presets,
            ["name", "cases", "steps", "at real size", "what it holds", "evaluations"],
            lambda preset: [
                preset.name,
                str(preset.cases),
                str(preset.steps or "the reference's"),
                str(preset.real_size_steps or "the reference's"),
                preset.summary,
                ", ".join(evaluation.name for evaluation in preset.evaluations),
            ],
            as_json,
        )
