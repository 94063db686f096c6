"""Two audits of one concept, compared: what can be compared, every evaluation and figure, and a statement.

Nothing can be compared if concept, cases, seed base, steps, guidance, schedule, judges or who decides differ, or if the
audits took different accesses of guarded subjects. An evaluation cannot be compared if its parameters or its deciding
arms differ, or if it does not apply to the models of either audit. Where the references differ, only plain evaluations
can: the others may hand on what a reference made, and the likelihood is measured against it. All else that differs is
noted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unerase.v1.audits_pb2 import ReportContent
from unerase.v1.comparisons_pb2 import AuditComparison, Change, EvaluationComparison, FigureComparison, Incomparable
from unerase.v1.types_pb2 import EvaluationClass, EvaluationDescription, ModelAccess, Observation, ResultKind
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.comparison import basis
from unerase_backend.comparison.evaluations import access_shared, change_of, compare_tables, tables_differ
from unerase_backend.comparison.figures import compare_interference, compare_likelihood
from unerase_backend.comparison.statements import state
from unerase_backend.verdict import statistics
from unerase_backend.verdict.access import seen_under, words
from unerase_backend.verdict.battery import is_measure
from unerase_backend.verdict.decision import Tolerances
from unerase_backend.verdict.draws import SUBJECT
from unerase_backend.verdict.figures import Table

DECISIVE = ("concept", "cases", "seed base", "steps", "guidance", "schedule", *basis.JUDGES, "decided by")
"""The parts of the basis that must agree for anything to be compared."""

SERIOUS = (Change.CHANGE_WORSE, Change.CHANGE_BETTER, Change.CHANGE_UNSETTLED, Change.CHANGE_SAME)
"""Changes, the most serious first."""


@dataclass(frozen=True)
class Recorded:
    """An audit as it was recorded: its id, its report's content with the verdict, and all its observations."""

    id: str
    content: ReportContent
    observations: Sequence[Observation]

    @cached_property
    def basis(self) -> dict[str, Any]:
        """Everything but the subject that the audit's answer depends on."""
        return basis.basis_of(self.content)

    @cached_property
    def described(self) -> dict[str, EvaluationDescription]:
        """Descriptions by name."""
        return {description.name: description for description in self.content.descriptions}

    @cached_property
    def battery(self) -> list[str]:
        """The names of the battery's evaluations, in its order."""
        requests = self.content.spec.battery.evaluations or self.content.evaluations
        return [request.name for request in requests]

    @cached_property
    def inapplicable(self) -> dict[str, str]:
        """Why evaluations of the battery do not apply to the audit's models, by their names."""
        battery = self.content.spec.battery.evaluations
        return {each.name: each.not_applicable.reason for each in battery if each.HasField("not_applicable")}

    @cached_property
    def by_evaluation(self) -> dict[str, list[Observation]]:
        """Observations by the name of their evaluation."""
        found: dict[str, list[Observation]] = {}
        for observation in self.observations:
            found.setdefault(observation.evaluation, []).append(observation)
        return found

    @property
    def subject_digest(self) -> str:
        """The digest of the subject, guards included; empty if the manifest does not have it."""
        return basis.recorded_model(self.content, self.content.spec.subject).digest

    def verdict(self, access: ModelAccess.ValueType) -> Verdict:
        """Return the verdict on one access of the subject."""
        verdict = self.content.verdict
        return verdict.deployed if verdict.HasField("deployed") and verdict.deployed.access == access else verdict

    def seen(self, evaluation: str, access: ModelAccess.ValueType) -> list[Observation]:
        """Return the observations of an evaluation that a verdict on one access rests on."""
        return seen_under(self.by_evaluation.get(evaluation, ()), access)

    def table(self, evaluation: str, access: ModelAccess.ValueType) -> Table:
        """Return the subject's cases of an evaluation, decided as in the verdict on one access."""
        spec = self.content.spec
        seen = self.seen(evaluation, access)
        described = self.described[evaluation]
        return Table.of(described, seen, spec, cases=spec.cases, looked_at=spec.sequential, only=SUBJECT)


def compare_audits(first: Recorded, second: Recorded) -> AuditComparison:
    """Return the comparison of two audits; the first is the earlier one.

    The same audits give the same comparison, byte for byte.

    Raises:
        ValueError: a draw was observed twice.
    """
    one, other = first.content, second.content
    accesses = access_shared(one.spec.access, other.spec.access)
    # Where no access is shared, each audit's own.
    sides = [accesses[0]] * 2 if accesses else [one.verdict.access, other.verdict.access]
    comparison = AuditComparison(
        first_audit=first.id,
        second_audit=second.id,
        concept=other.spec.concept,
        first_subject=one.spec.subject,
        second_subject=other.spec.subject,
        first_subject_digest=first.subject_digest,
        second_subject_digest=second.subject_digest,
        first_conclusion=first.verdict(sides[0]).conclusion,
        second_conclusion=second.verdict(sides[1]).conclusion,
        alike=first.basis == second.basis,
        only_in_first=[name for name in first.battery if name not in second.battery],
        only_in_second=[name for name in second.battery if name not in first.battery],
    )
    decisive, noted = _differences(first, second, comparable_access=bool(accesses))
    comparison.incomparable.extend(decisive)
    comparison.noted.extend(noted)
    if not decisive:
        for access in accesses:
            comparison.evaluations.extend(_evaluations(first, second, access))
        comparison.figures.extend(_figures(first, second, accesses))
    settle(comparison)
    return comparison


def settle(comparison: AuditComparison) -> None:
    """Set what follows from the evaluations' p: each one's change, the most serious of them, and the statement."""
    for compared in comparison.evaluations:
        p = compared.p_campaign if compared.HasField("p_campaign") else compared.p_holm
        compared.change = change_of(compared, p)
    found = {compared.change for compared in comparison.evaluations}
    comparison.change = next((change for change in SERIOUS if change in found), Change.CHANGE_UNSPECIFIED)
    comparison.statement = state(comparison)


def _differences(
    first: Recorded, second: Recorded, *, comparable_access: bool
) -> tuple[list[Incomparable], list[Incomparable]]:
    """Return what prevents every comparison, and what is only noted."""
    one, other = first.basis, second.basis
    decisive: list[Incomparable] = []
    noted: list[Incomparable] = []
    undescribed = [[name for name in each.battery if name not in each.described] for each in (first, second)]
    if any(undescribed):
        # Reports of earlier versions do not say which arms decide.
        decisive.append(_difference("recorded descriptions", *(_lacking(names) for names in undescribed)))
    for part in basis.differing(one, other):
        if part in DECISIVE:
            decisive.append(_difference(part, one[part], other[part]))
        elif part == basis.ACCESS:
            accesses = (words(each.content.spec.access) or "no guards" for each in (first, second))
            said = _difference(
                part, *(_access(each, text) for each, text in zip((first, second), accesses, strict=True))
            )
            (noted if comparable_access else decisive).append(said)
        elif part == basis.BATTERY:
            code = [{name: setup["code"] for name, setup in each[part].items()} for each in (one, other)]
            noted += _each_different("code of", *code)
        elif part == basis.CONTROLS:
            noted += _each_different("control of", one[part], other[part])
        else:
            noted.append(_difference(part, one[part], other[part]))
    versions = [each.content.manifest.versions for each in (first, second)]
    noted += [
        _difference(f"version of {name}", versions[0].get(name, "none"), versions[1].get(name, "none"))
        for name in sorted({*versions[0], *versions[1]})
        if versions[0].get(name) != versions[1].get(name)
    ]
    return decisive, noted


def _lacking(names: Sequence[str]) -> str:
    return f"none of {', '.join(names)}" if names else "all"


def _access(audit: Recorded, text: str) -> str:
    both = audit.content.spec.access == ModelAccess.MODEL_ACCESS_BOTH
    return "as deployed and by its weights" if both else text


def _each_different(what: str, one: dict[str, str], other: dict[str, str]) -> list[Incomparable]:
    """Return the evaluations of both audits that differ in something."""
    return [
        _difference(f"{what} {name}", one[name], other[name])
        for name in one
        if name in other and one[name] != other[name]
    ]


def _difference(what: str, first: Any, second: Any) -> Incomparable:
    return Incomparable(what=what, first=basis.shortened(first), second=basis.shortened(second))


def _evaluations(first: Recorded, second: Recorded, access: ModelAccess.ValueType) -> list[EvaluationComparison]:
    """Return the comparison of each evaluation that both audits have, under one access, Holm's correction included."""
    compared = [
        _evaluation(name, first, second, access)
        for name in second.battery
        if name in first.battery and not is_measure(second.described[name])
    ]
    tested = [each for each in compared if each.cases]
    for each, p in zip(tested, statistics.holm([each.p for each in tested]) if tested else (), strict=True):
        each.p_holm = float(p)
    return compared


def _evaluation(name: str, first: Recorded, second: Recorded, access: ModelAccess.ValueType) -> EvaluationComparison:
    description = second.described[name]
    message = EvaluationComparison(p=1, p_holm=1)
    message.not_applicable = second.inapplicable.get(name, "") or first.inapplicable.get(name, "")
    preventing: list[Incomparable] = []
    if not message.not_applicable:
        tables = first.table(name, access), second.table(name, access)
        preventing = _preventing(name, first, second, tables)
        if not preventing:
            message.MergeFrom(compare_tables(*tables))
    message.evaluation, message.title, message.access = name, description.title, access
    message.incomparable.extend(preventing)
    results = [
        next((result for result in each.verdict(access).evaluations if result.name == name), None)
        for each in (first, second)
    ]
    if results[0] is not None:
        message.first_outcome = results[0].outcome
    if results[1] is not None:
        message.second_outcome = results[1].outcome
        message.tolerance = Tolerances.of(second.content.spec).excess_of(results[1].budget)
    return message


def _preventing(name: str, first: Recorded, second: Recorded, tables: tuple[Table, Table]) -> list[Incomparable]:
    """Return why one evaluation of two audits cannot be compared; empty if it can."""
    one, other = first.basis[basis.BATTERY][name], second.basis[basis.BATTERY][name]
    found = [
        _difference(f"parameter {parameter}", one["parameters"].get(parameter), other["parameters"].get(parameter))
        for parameter in sorted({*one["parameters"], *other["parameters"]})
        if one["parameters"].get(parameter) != other["parameters"].get(parameter)
    ]
    plain = second.described[name].evaluation_class == EvaluationClass.EVALUATION_CLASS_PLAIN
    references = first.basis[basis.REFERENCE], second.basis[basis.REFERENCE]
    if not plain and references[0] != references[1]:
        found.append(_difference(basis.REFERENCE, *references))
    arms = tables_differ(*tables)
    if arms is not None:
        found.append(_difference("deciding arms", ", ".join(arms[0]), ", ".join(arms[1])))
    return found


def _figures(first: Recorded, second: Recorded, accesses: Iterable[ModelAccess.ValueType]) -> list[FigureComparison]:
    """Return the figures of measures that both audits took in the same way, against the same reference."""
    found: list[FigureComparison] = []
    if first.basis[basis.REFERENCE] != second.basis[basis.REFERENCE]:
        return found
    for name in second.battery:
        kind = second.described[name].result
        if (
            name not in first.battery
            or name in {*first.inapplicable, *second.inapplicable}
            or first.basis[basis.BATTERY][name]["parameters"] != (second.basis[basis.BATTERY][name]["parameters"])
        ):
            continue
        if kind == ResultKind.RESULT_KIND_LIKELIHOOD:
            # Guards take no part in it: every access has the same observations.
            before, after = (each.by_evaluation.get(name, []) for each in (first, second))
            found += compare_likelihood(before, after, second.content.spec.seed_base)
        elif kind == ResultKind.RESULT_KIND_INTERFERENCE:
            for access in accesses:
                figure = compare_interference(first.seen(name, access), second.seen(name, access), access)
                found += [figure] if figure is not None else []
    return found
