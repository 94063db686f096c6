"""Whether the models and judges of an audit are those that its comparison needs: different ones.

The coordinator refuses such requests. A report or an export may be older than that rule, or made elsewhere, so that
whoever shows one looks again: names and digests are in its manifest.
"""

from unerase.v1.audits_pb2 import AuditSpec, Manifest
from unerase.v1.models_pb2 import Model


def flaws(spec: AuditSpec, manifest: Manifest) -> list[str]:
    """Return what makes the comparison void, one sentence each; nothing where all differ as they should."""
    models = {model.name: model for model in manifest.models}
    found = []
    for role, name, other_role, other in (
        ("control", spec.control, "subject", spec.subject),
        ("reference", spec.reference, "subject", spec.subject),
        ("control", spec.control, "reference", spec.reference),
    ):
        if not name or not other:
            continue
        if name == other:
            found.append(f"The {role} is the {other_role} itself ({name}), so that comparing them says nothing.")
        elif _digest(models, name) and _digest(models, name) == _digest(models, other):
            found.append(
                f"The {role} {name} has the same weights as the {other_role} {other}, so that comparing them says "
                "nothing."
            )
        elif role == "control" and (part := _shared_unet(models.get(name), models.get(other))):
            found.append(
                f"The control {name} has the same {part} as the {other_role} {other}, so that it may know what that "
                "knows."
            )
    return found + _same_judges(spec, manifest)


def _digest(models: dict[str, Model], name: str) -> str:
    return models[name].digest if name in models else ""


def _shared_unet(one: Model | None, other: Model | None) -> str:
    """Return "UNet" where two models have the same: a model that never learned a concept has one of its own."""
    if one is None or other is None:
        return ""
    parts = [{file.digest for file in model.files if file.component == "unet"} for model in (one, other)]
    return "UNet" if parts[0] and parts[0] == parts[1] else ""


def _same_judges(spec: AuditSpec, manifest: Manifest) -> list[str]:
    judges = {
        purpose: manifest.judge_digests.get(name, "") or name
        for purpose, name in (
            ("selector", spec.selector),
            ("judge", spec.judge),
            ("second judge", spec.second_judge),
        )
        if name
    }
    purposes = list(judges)
    return [
        f"The {later} is the same model as the {earlier}, so that it confirms nothing."
        for at, earlier in enumerate(purposes)
        for later in purposes[at + 1 :]
        if judges[earlier] == judges[later]
    ]
