"""`python -m tools.number_types [--dtype bfloat16] [--cases N] [--out DIR]`: verdicts in half precision.

Audits every model of the testbed for its first concept with the preset quick, twice, with the same cases and seeds: on
a backend that computes in float32, and on one that computes in the other number type. Prints both verdicts of each
model, and counts what differs: verdicts, outcomes of evaluations, and the judge's answers. The reports and the
observations are written to DIR/float32 and DIR/DTYPE; those that are there already are read, so that a run that was
interrupted goes on.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import parquet

from tools.controls import conclusion
from tools.results import head, row, words
from unerase import AuditSpec, Battery, Client
from unerase._local import local_backend

SEED = 2505
EXACT = "float32"


def audited(dtype: str, cases: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the content of the report on every model of the testbed, computed in one number type."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["UNERASE_SERVE_DTYPE"] = dtype
    with tempfile.TemporaryDirectory() as data, local_backend(Path(data)) as address, Client(address) as client:
        for model in client.models():
            path = folder / f"{model.name.replace('/', '-')}.json"
            if path.exists():
                continue
            concept = (*model.erased, *model.never_learned, "hourglass")[0]
            spec = AuditSpec(
                subject=model.name,
                reference=model.base or "testbed/reference",
                concept=concept,
                battery=Battery(preset="quick"),
                cases=cases,
                seed_base=SEED,
                assume_reference=not model.base,
            )
            audit = client.audit(spec)
            parquet.write_table(client.observations(audit.id), path.with_suffix(".parquet"))
            path.write_text(json.dumps(client.report_json(audit.id)))
            print(f"{dtype}: {model.name}", flush=True)
    return {path.stem: json.loads(path.read_text())["content"] for path in sorted(folder.glob("*.json"))}


def outcomes(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each evaluation's name and outcome."""
    for result in content["verdict"]["evaluations"]:
        yield result["name"], words(result["outcome"], "OUTCOME_")


def answers(folder: Path, name: str) -> dict[tuple[Any, ...], bool]:
    """Return whether the judge saw the concept in each picture of the subject."""
    keys = ("evaluation", "case_index", "arm", "variant", "judge_detected")
    rows = parquet.read_table(folder / f"{name}.parquet", columns=[*keys, "role"]).to_pylist()
    return {
        tuple(each[key] for key in keys[:-1]): each["judge_detected"]
        for each in rows
        if each["role"] == "subject" and each["judge_detected"] is not None
    }


def compared(exact: dict[str, Any], other: dict[str, Any], dtype: str, folder: Path) -> list[str]:
    """Return the table of verdicts, and the counts below it."""
    lines = head("model", EXACT, dtype, "outcomes that differ", "pictures judged otherwise")
    flips = changed = evaluations = differing = pictures = 0
    for name, content in exact.items():
        verdicts = conclusion(content), conclusion(other[name])
        pairs = list(zip(outcomes(content), outcomes(other[name]), strict=True))
        moved = [f"{one}: {before} -> {after}" for (one, before), (_, after) in pairs if before != after]
        first, second = answers(folder / EXACT, name), answers(folder / dtype, name)
        shared = first.keys() & second.keys()
        otherwise = sum(first[key] != second[key] for key in shared)
        lines.append(row(name, *verdicts, "; ".join(moved) or "none", f"{otherwise} of {len(shared)}"))
        flips += verdicts[0] != verdicts[1]
        changed, evaluations = changed + len(moved), evaluations + len(pairs)
        differing, pictures = differing + otherwise, pictures + len(shared)
    counts = (
        f"{flips} of {len(exact)} verdicts, {changed} of {evaluations} outcomes, {differing} of {pictures} pictures"
    )
    return [*lines, "", f"Different in {dtype}: {counts}."]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--cases", type=int, default=0, help="cases of each audit; the preset's unless given")
    parser.add_argument("--out", type=Path, default=Path("build/number-types"))
    arguments = parser.parse_args()
    both = {dtype: audited(dtype, arguments.cases, arguments.out / dtype) for dtype in (EXACT, arguments.dtype)}
    print("\n".join(compared(both[EXACT], both[arguments.dtype], arguments.dtype, arguments.out)))


if __name__ == "__main__":
    main()
