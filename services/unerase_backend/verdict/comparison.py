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
        if not name or not other or (role == "reference" and spec.assume_reference):
            continue
        one, against = models.get(name), models.get(other)
        if name == other:
            found.append(f"The {role} is the {other_role} itself ({name}), so that comparing them says nothing.")
        elif one is None or against is None:
            continue
        elif (one.digest and one.digest == against.digest) or _same(one, against, "unet", "text_encoder"):
            found.append(
                f"The {role} {name} has the same weights as the {other_role} {other}, so that comparing them says "
                "nothing."
            )
        elif role == "control" and _same(one, against, "unet"):
            found.append(
                f"The control {name} has the same UNet as the {other_role} {other}, so that it may know what that "
                "knows."
            )
    return found + _same_judges(spec, manifest)


def _same(one: Model, other: Model, *parts: str) -> bool:
    """Whether two models have the same files of each part, and have some of each."""
    for part in parts:
        files = [{file.digest for file in model.files if file.component == part} for model in (one, other)]
        if not files[0] or files[0] != files[1]:
            return False
    return True


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
