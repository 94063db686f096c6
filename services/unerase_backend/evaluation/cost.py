"""The cost of a unit, counted before it runs: its pictures, and its rows of the denoising network.

An evaluation declares both as formulas in its description, so that an audit can be planned without a call to the room.
A formula is arithmetic (`+ - * /`, numbers, lists) over the evaluation's parameters by name and

    unit.cases            cases of the unit
    unit.steps            denoising steps of a picture
    unit.guided           rows of one guided step: 2 and those of guards, or 1 if every case has guidance scale 1 or
                          the guidance is in the network
    unit.placebo          1 in a unit of a placebo, 0 in the others
    unit.first            1 in the unit that holds the audit's first case, 0 in the others
    unit.searches         1, or 0 where another unit of the audit makes the same search (that of the open weights)
    unit.pack_kinds       kinds of prompts in the concept's prompt pack
    unit.others_drawn     other concepts that are objects or of the concept's kind, and have prompts
    unit.others_learned   other concepts of the concept's kind with at least two pictures
    held_out(n, m)        held-out pictures: at most n of the concept, and m of each other concept of its kind
    len, set, min, max    as in Python; ceil rounds up
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import CONTROL_KIND_PLACEBO, EvaluationDescription
from unerase_backend.catalogue.kinds import alike, bystanders
from unerase_backend.evaluation.models import UNGUIDED
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.prompts import guidance_of

MAX_FORMULA = 500
ASSUMED_PICTURES = 64
"""Pictures for each case that are assumed of an evaluation without formulas."""
ASSUMED_ATTACK_ROWS = 100_000
"""Rows for each unit that are assumed of an attack without formulas, in addition to those of its pictures."""
# The largest number that the messages and the database can hold.
_MOST = 2**63 - 1

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"len": len, "set": set, "min": min, "max": max, "ceil": math.ceil}


class FormulaError(ValueError):
    """A formula cannot be read or computed; the message says why."""


@dataclass(frozen=True)
class Surroundings:
    """What a formula needs to know about a unit's concepts; the same for many units."""

    others_drawn: int
    others_learned: int
    held_out: tuple[int, ...]
    """Numbers of held-out pictures: the concept's first, then those of each other concept of its kind."""
    pack_kinds: int = 0

    @classmethod
    def of(cls, target: Target, others: Sequence[Target]) -> "Surroundings":
        """Count the pictures and prompts of the target and the other concepts."""
        of_kind = [len(other.concept.picture_digests) for other in alike(target.concept, others)]
        drawn = bystanders(target.concept, others)
        return cls(
            others_drawn=sum(bool(other.concept.prompts) for other in drawn),
            others_learned=sum(pictures > 1 for pictures in of_kind),
            held_out=tuple(pictures - pictures // 2 for pictures in (len(target.concept.picture_digests), *of_kind)),
            pack_kinds=len(target.concept.pack.kinds),
        )


@dataclass(frozen=True)
class Work:
    """The most that a unit makes and computes; `assumed` if its evaluation has no usable formulas."""

    pictures: int
    rows: int
    assumed: bool = False


def work_of(unit: Unit, description: EvaluationDescription, parameters: Parameters, surroundings: Surroundings) -> Work:
    """Count a unit's work; an evaluation without usable formulas gets a high estimate."""
    guided = max(rows_of_step(unit, scale) for scale in _guidance_scales(unit))
    if description.pictures and description.rows:
        known = {
            "cases": len(unit.cases),
            "steps": unit.steps,
            "guided": guided,
            "placebo": int(unit.control_kind == CONTROL_KIND_PLACEBO),
            "first": int(any(case.index == 0 for case in unit.cases)),
            "searches": int(not unit.search_shared),
            "pack_kinds": surroundings.pack_kinds,
            "others_drawn": surroundings.others_drawn,
            "others_learned": surroundings.others_learned,
        }
        try:
            pictures, rows = (
                _compute(formula, known, parameters, surroundings.held_out)
                for formula in (description.pictures, description.rows)
            )
        except FormulaError:
            pass
        else:
            return Work(pictures, rows)
    pictures = ASSUMED_PICTURES * len(unit.cases)
    return Work(pictures, pictures * unit.steps * guided + description.attack * ASSUMED_ATTACK_ROWS, assumed=True)


def rows_of_step(unit: Unit, guidance_scale: float) -> int:
    """Return the rows of the denoising network that one step of a unit's trajectory has."""
    return 1 if unit.one_row or guidance_scale == UNGUIDED else 2 + unit.guard_rows


def _guidance_scales(unit: Unit) -> set[float]:
    """Return the guidance scales of a unit's cases; the unit's own if it has none, or if a case has none of its own."""
    return {guidance_of(unit, case) for case in unit.cases} or {unit.guidance_scale}


def formula_problem(formula: str, parameters: Parameters) -> str:
    """Return what is wrong with a formula, computed with these parameters; empty if nothing is."""
    known = dict.fromkeys(("cases", "steps", "guided", "first", "pack_kinds", "others_drawn", "others_learned"), 2)
    known |= {"placebo": 0, "searches": 1}
    try:
        _compute(formula, known, parameters, (2, 2))
    except FormulaError as error:
        return str(error)
    return ""


def _compute(formula: str, known: Mapping[str, int], parameters: Parameters, held_out: Sequence[int]) -> int:
    def held_out_pictures(most: int, most_of_others: int) -> int:
        return sum(min(count, most_of_others if place else most) for place, count in enumerate(held_out))

    functions = _FUNCTIONS | {"held_out": held_out_pictures}

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.Name(id=name) if name in parameters:
                return parameters[name]
            case ast.Attribute(value=ast.Name(id="unit"), attr=name) if name in known:
                return known[name]
            case ast.List(elts=items):
                return [value(item) for item in items]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in functions:
                return functions[name](*map(value, arguments))
        raise FormulaError(f"{ast.unparse(node)!r} is nothing that a formula knows")

    try:
        result = value(_parsed(formula))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise error if isinstance(error, FormulaError) else FormulaError(f"it cannot be computed: {error}") from None
    if not isinstance(result, int | float) or not math.isfinite(result) or result < 0:
        raise FormulaError(f"its result is {result!r}, which is not a count")
    return min(math.ceil(result), _MOST)


@lru_cache(maxsize=1024)
def _parsed(formula: str) -> ast.expr:
    if len(formula) > MAX_FORMULA:
        raise FormulaError(f"it has more than {MAX_FORMULA} characters")
    try:
        return ast.parse(formula, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise FormulaError(f"it cannot be read: {error}") from None
