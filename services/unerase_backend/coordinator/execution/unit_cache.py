"""The unit cache: results of units that were run before, for any audit.

The same unit with the same weights gives the same result, so it is not run again. An audit of a second subject with the
same reference finds the units of reference and control here, and runs only its own. The key is SHA-256 over everything
that may change a result: the unit without its id, the digests of models and judges, the source of all code that
computes, including third parties' evaluations and judges, and the numerics profiles of the rooms.
"""

import hashlib
from collections.abc import Iterable

from unerase.internal.v1alpha1.units_pb2 import Unit, UnitResult
from unerase.v1.types_pb2 import MODEL_ACCESS_DEPLOYED, EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.source import registered_digest


def unit_key(unit: Unit, description: EvaluationDescription, catalogue: Catalogue, profile: str) -> str:
    """Return the key of a unit's result, 64 hexadecimal digits.

    Raises:
        NotFoundError: the catalogue no longer has a model or judge of the unit.
    """
    whole = Unit()
    whole.CopyFrom(unit)
    whole.ClearField("id")
    whole.ClearField("search_shared")
    models = [name for name in (unit.model, unit.reference) if name]
    # The targets of `others` are asked of the same judges.
    judges = (unit.target.selector.judge, unit.target.judge.judge, unit.target.second_judge.judge)
    parts = [
        profile,
        description.source_digest,
        registered_digest("unerase.judges"),
        *_guarding(unit, catalogue),
        *(catalogue.describe_model(name).digest for name in models),
        # The same files may be another judge where the catalogue gives another kind.
        *(f"{catalogue.judge(name).kind} {catalogue.judge_digest(name)}" for name in judges),
        # Fields are written in order of number, maps in order of key. Another version of protobuf may write other
        # bytes; that would only cost a second run.
        hashlib.sha256(whole.SerializeToString(deterministic=True)).hexdigest(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _guarding(unit: Unit, catalogue: Catalogue) -> Iterable[str]:
    """Yield what the guards of a deployed model add to the key, beside its digest: code and judges."""
    if unit.access != MODEL_ACCESS_DEPLOYED:
        return
    yield registered_digest("unerase.guards")
    for guard in catalogue.guards(unit.model):
        if judge := getattr(guard.parameters, "judge", ""):
            yield f"{catalogue.judge(judge).kind} {catalogue.judge_digest(judge)}"


def find(store: ArtifactStore, key: str) -> UnitResult | None:
    """Return the result under `key` if the store has it and every artefact that it names, undamaged; otherwise None."""
    content = store.get_record(key)
    if content is None:
        return None
    result = UnitResult.FromString(content)
    return result if all(store.whole(digest) for digest in _digests(result)) else None


def keep(store: ArtifactStore, key: str, result: UnitResult) -> None:
    """Store a whole result under `key`."""
    store.put_record(key, result.SerializeToString(deterministic=True))


def _digests(result: UnitResult) -> Iterable[str]:
    named = [observation.picture_digest for observation in result.observations]
    named += [finding.weights_digest for finding in result.findings]
    return {digest for digest in named if digest}
