"""What an audit of so many cases would be able to say: `power`."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from unerase._commands.backend import of_the_backend
from unerase._commands.failing import ExitCode, fail
from unerase._commands.options import UINT64, AsJson, finite
from unerase._commands.output import plain_table, say, say_json, stdout
from unerase._counting import count_of

CASES = (24, 30, 48, 96)
FALSE_POSITIVES = (0.005, 0.01)
SHARED_ERRORS = (0.0, 0.25)


def _all_finite(values: list[float] | None) -> list[float] | None:
    for value in values or ():
        finite(value)
    return values


Cases = Annotated[
    list[int] | None,
    typer.Option(help=f"Cases of an audit; may be repeated. {', '.join(map(str, CASES))} unless given."),
]
FalsePositives = Annotated[
    list[float] | None,
    typer.Option(
        help="Share of pictures without the concept in which a judge sees it; may be repeated. 0.005 and 0.01 unless "
        "given.",
        callback=_all_finite,
    ),
]
SharedErrors = Annotated[
    list[float] | None,
    typer.Option(
        help="Part of a judge's false positives that the second shares; may be repeated. 0 and 0.25 unless given.",
        callback=_all_finite,
    ),
]
Evaluations = Annotated[
    list[str] | None,
    typer.Option(
        "--evaluation",
        "--evaluations",
        help="An evaluation that runs; may be repeated. Every required one unless given.",
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="Tolerance of the excess; its default at each number of cases unless given.", callback=finite),
]
Chance = Annotated[float, typer.Option(help="Chance of `removed` for a removed model that is enough.", callback=finite)]


def power(
    cases: Cases = None,
    false_positives: FalsePositives = None,
    shared_errors: SharedErrors = None,
    evaluations: Evaluations = None,
    decided_by: Annotated[str, typer.Option(help="Who decides a case: judge or both.")] = "both",
    tolerance: Tolerance = None,
    audits: Annotated[int, typer.Option(help="Number of simulated audits behind each chance.")] = 1000,
    chance: Chance = 0.8,
    seed: Annotated[int, typer.Option(help="Seed base of the simulation.", min=0, max=UINT64)] = 0,
    as_json: AsJson = False,
) -> None:
    """Show how many cases an audit needs: the chance of each verdict on models whose truth is known, by simulation."""
    compute = of_the_backend("power")
    try:
        found: dict[str, Any] = compute(
            cases=cases or CASES,
            false_positives=false_positives or FALSE_POSITIVES,
            shared_errors=shared_errors or SHARED_ERRORS,
            evaluations=evaluations or (),
            decided_by=decided_by,
            tolerance=tolerance,
            audits=audits,
            chance=chance,
            seed_base=seed,
        )
    except ValueError as error:
        fail(str(error), ExitCode.BAD_INPUT)
    if as_json:
        say_json(found)
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    names = [model["model"] for model in found["rows"][0]["models"]]
    say(f"evaluations: {', '.join(found['evaluations'])}; decided by: {found['decided_by']}")
    say("shares of simulated audits in %: a model is called removed/avoided or not erased/neither")
    for letter, name in zip("ABCD", names, strict=True):
        say(f"{letter}: {name}")
    table = plain_table("cases", "tolerance", "false positives", "shared", *"ABCD")
    for row in found["rows"]:
        table.add_row(
            str(row["cases"]),
            "/".join(dict.fromkeys(f"{row[name]:.2f}" for name in ("tolerance", "tolerance_of_one_draw"))),
            _percent(row["false_positives"]),
            _percent(row["shared_errors"]),
            *(_chances(model) for model in row["models"]),
        )
    stdout.print(table)
    for enough in found["enough"]:
        judges = f"{_percent(enough['false_positives'])} false positives, {_percent(enough['shared_errors'])} shared"
        reached = count_of(enough["cases"], "case") if enough["cases"] else "none of these numbers of cases"
        reach = "reaches" if enough["cases"] == 1 else "reach"
        say(f"{judges}: {reached} {reach} {100 * found['chance']:.0f} % removed for model A")


def _chances(model: dict[str, Any]) -> str:
    found: Sequence[float] = (
        model["removed"],
        model["avoided"] + model["not_erased"],
        model["inconclusive"] + model["uninformative"],
    )
    return "/".join(f"{100 * each:.0f}" for each in found)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
