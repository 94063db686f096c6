"""`python -m tools.sequential DIR [MODEL ...]`: what stopping early would have saved in audits that ran every case.

Reads the observations DIR/MODEL.parquet of whole audits, as `unerase audit --parquet` writes them, and looks at them as
a sequential audit does: the same cases in the same order, so that what it would have run is known to the picture.
"""

from tools.results import asked, head, row
from unerase.v1.types_pb2 import EvaluationClass
from unerase_backend.report.parquet import Record, read_parquet
from unerase_backend.verdict import conclude, has_answer
from unerase_backend.verdict.sequential import cases_between_looks

MEASURE = EvaluationClass.EVALUATION_CLASS_MEASURE


def stops(record: Record) -> dict[str, int]:
    """Return the cases after which each evaluation that may stop would have; all of them where it would not."""
    spec, described = record.content.spec, {one.name: one for one in record.descriptions}
    found = {}
    for request in spec.battery.evaluations:
        description = described[request.name]
        between = cases_between_looks(description.cases_per_unit)
        if between and description.evaluation_class != MEASURE:
            observed = [one for one in record.observations if one.evaluation == request.name]
            looks = range(between, spec.cases, between)
            answered = (look for look in looks if has_answer(description, observed, look, described, spec))
            found[request.name] = next(answered, spec.cases)
    return found


def main() -> None:
    """The command."""
    arguments = asked((__doc__ or "").splitlines()[0], "parquet")
    lines: list[str] = []
    for model in arguments.models:
        record = read_parquet((arguments.folder / f"{model}.parquet").read_bytes())
        spec, after = record.content.spec, stops(record)
        whole = conclude(record.observations, record.descriptions, spec.battery.evaluations, spec)
        titles = {result.name: result.title for result in whole.evaluations}
        pictures = [one for one in record.observations if one.evaluation in titles]
        run = [one for one in pictures if one.case_index < after.get(one.evaluation, spec.cases)]
        measured = [one for one in record.observations if one.evaluation not in titles]
        spec.sequential = True
        early = conclude([*run, *measured], record.descriptions, spec.battery.evaluations, spec)
        pairs = zip(whole.evaluations, early.evaluations, strict=True)
        changed = [one.title for one, other in pairs if one.outcome != other.outcome]
        lines = lines or head("model", *(titles[name] for name in after), "pictures", "saved", "other outcomes")
        saved = f"{100 * (1 - len(run) / len(pictures)):.0f} %"
        lines.append(row(model, *map(str, after.values()), str(len(pictures)), saved, ", ".join(changed) or "none"))
        if early.conclusion != whole.conclusion:
            lines.append(f"{model}: another conclusion")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
