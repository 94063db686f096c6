"""Which families of models can be audited, and by which evaluations: `backbones`."""

from collections.abc import Sequence

from unerase._commands.connecting import connected
from unerase._commands.options import Address, AsJson
from unerase._commands.output import plain_table, say, say_json, stdout
from unerase._display import enum_name
from unerase._settings import DEFAULT_ADDRESS
from unerase.v1.models_pb2 import FamilyPart, GuidanceKind, ModelFamily, NoisePath

_NOT_LOADED = "not loaded yet"


def backbones(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False) -> None:
    """List the families of models, and which evaluations apply to each; below the tables, why others do not."""
    with connected(address) as client:
        families = client.backbones()
    if as_json:
        say_json(families)
        return
    _show_families(families)
    say("")
    _show_evaluations(families)
    if reasons := _reasons(families):
        say("")
        for line in reasons:
            say(line)


def _show_families(families: Sequence[ModelFamily]) -> None:
    table = plain_table("name", "title", "pipelines", "parts", "path", "predicts", "guidance")
    for family in families:
        table.add_row(
            family.name,
            family.title,
            ", ".join(family.pipelines),
            ", ".join(map(_part, family.parts)) if family.loaded else _NOT_LOADED,
            enum_name(NoisePath, family.path, "NOISE_PATH_") if family.path else "as its scheduler says",
            " or ".join(family.prediction_types),
            enum_name(GuidanceKind, family.guidance, "GUIDANCE_KIND_"),
        )
    stdout.print(table)


def _show_evaluations(families: Sequence[ModelFamily]) -> None:
    table = plain_table("evaluation", *(family.name for family in families))
    names = dict.fromkeys(each.name for family in families for each in family.evaluations)
    applies = [
        {each.name: "no" if each.HasField("not_applicable") else "yes" for each in family.evaluations}
        for family in families
    ]
    for name in names:
        table.add_row(name, *(of_family.get(name, "") for of_family in applies))
    stdout.print(table)


def _reasons(families: Sequence[ModelFamily]) -> list[str]:
    """Return why evaluations do not apply, a line for each family and reason."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for family in families:
        for each in family.evaluations:
            if each.HasField("not_applicable"):
                lacking.setdefault((family.name, each.not_applicable.reason), []).append(each.name)
    return [f"not applicable to {family}: {', '.join(names)}: {reason}" for (family, reason), names in lacking.items()]


def _part(part: FamilyPart) -> str:
    return f"{part.name} ({part.class_name})" if not part.optional else f"{part.name} ({part.class_name}, optional)"
