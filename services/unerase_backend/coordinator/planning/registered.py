"""Plans audits of registered models: within the backend they have the names of their definitions, which never change.

The audit says what its tenant calls them, and keeps their definitions: a model that is deleted, or registered anew
under the same name, is another model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.definitions import name_of
from unerase_backend.catalogue.registered_names import ModelNames
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import UneraseError

_FIELDS = ("subject", "reference", "control")


class Definition(Protocol):
    """What planning needs of a registered model."""

    @property
    def called(self) -> str:
        """Return what its tenant calls it."""

    @property
    def content(self) -> bytes:
        """Return the bytes of its definition."""


def models_named(spec: AuditSpec, catalogue: Catalogue) -> list[str]:
    """Return the models that a request names and the operator's catalogue does not have."""
    named = dict.fromkeys(getattr(spec, field) for field in _FIELDS)
    return [name for name in named if name and name not in catalogue.models]


def plan_registered(
    models: Sequence[Definition],
    spec: AuditSpec,
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
    draw_seed: Callable[[], int],
    broken: Mapping[str, str],
) -> Plan:
    """Return the plan of an audit as `make_plan` does; `models` are the registered ones it names, bases included.

    Raises as `make_plan`; errors call models as the request does.
    """
    names = ModelNames({name_of(each.content): each.called for each in models})
    if not names:
        return make_plan(spec, catalogue, store, descriptions, draw_seed, broken)
    for each in models:
        # The store may have lost it.
        store.put(each.content)
    asked = AuditSpec()
    asked.CopyFrom(spec)
    for field in _FIELDS:
        if (name := getattr(spec, field)) not in catalogue.models:
            setattr(asked, field, names.inward(name))
    try:
        known = catalogue.with_models({name: catalogue.model(name) for name in names})
        plan = make_plan(asked, known, store, descriptions, draw_seed, broken)
    except UneraseError as error:
        raise names.error(error) from None
    notes = tuple(map(names.text, plan.notes))
    return replace(plan, spec=names.message(plan.spec), notes=notes, models=tuple(models))
