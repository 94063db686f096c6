"""The options of `audit` that name files of prompts: `--prompts` and `--pack`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from unerase._commands.failing import ExitCode, fail
from unerase._commands.output import tell
from unerase._counting import count_of
from unerase._prompt_list import PromptList, read_prompts, taken
from unerase._prompt_pack import read_described_pack
from unerase.v1.audits_pb2 import AuditSpec

MOST_CASES = 512
"""The most cases of an audit."""

Read = TypeVar("Read")

PromptsFile = Annotated[
    Path | None,
    typer.Option(
        dir_okay=False,
        help="CSV or YAML file of prompts with their seeds, as I2P and others are published: they are the cases, the "
        "first --cases of them if that is given.",
    ),
]
PackFile = Annotated[
    Path | None,
    typer.Option(dir_okay=False, help="YAML file of prompts in other words, by kind, for the evaluation paraphrase."),
]


def spec_of_files(
    concept: str, prompts: Path | None, pack: Path | None, cases: int, guidance_scale: float | None
) -> AuditSpec:
    """Return the part of a request that stands in files, with the number of cases.

    A guidance scale on the command line replaces those of the list.
    """
    spec = AuditSpec(cases=cases)
    if pack is not None:
        brought, of = _read(read_described_pack, pack)
        spec.pack.CopyFrom(brought)
        # "mine/hourglass" and "hourglass" are often one concept.
        if of and of.rpartition("/")[2] != concept.rpartition("/")[2]:
            tell(f"--pack: {pack} says that it is of the concept {of!r}, and this audit is of {concept!r}")
    if prompts is None:
        return spec
    listed = _read(read_prompts, prompts)
    count = len(listed.prompts)
    if not cases and count > MOST_CASES:
        fail(
            f"--prompts: {prompts} holds {count} prompts, and an audit takes at most {MOST_CASES} cases; say with "
            "--cases how many of the first to take",
            ExitCode.BAD_INPUT,
        )
    if cases > count:
        taken_all = "which is taken" if count == 1 else "which are all taken"
        tell(f"--cases {cases}: {prompts} holds {count_of(count, 'prompt')}, {taken_all}")
        spec.cases = count
    spec.fixed_prompts.extend(taken(listed.prompts, spec.cases or count))
    spec.fixed_prompts_source.CopyFrom(listed.source)
    if guidance_scale is not None and any(fixed.HasField("guidance_scale") for fixed in spec.fixed_prompts):
        for fixed in spec.fixed_prompts:
            fixed.ClearField("guidance_scale")
        tell(f"--guidance-scale {guidance_scale:g} replaces the guidance scales of {prompts}")
    tell(_summary(listed, spec))
    return spec


def _read(read: Callable[[Path], Read], path: Path) -> Read:
    try:
        return read(path)
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)


def _summary(listed: PromptList, spec: AuditSpec) -> str:
    taken = spec.cases or len(listed.prompts)
    read_from = ", ".join(
        f"{field.replace('_', ' ')} from {column or 'the first column'!r}"
        for field, column in listed.columns.items()
        if field != "prompt"
    )
    there = len(listed.prompts)
    those = "the one prompt" if there == 1 else f"{taken} of the {there} prompts"
    said = f"{those} of {listed.source.name} {'is the case' if taken == 1 else 'are the cases'}"
    return f"{said}; {read_from}" if read_from else said
