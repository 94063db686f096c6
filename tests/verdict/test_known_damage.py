"""Models whose truth is known, measured by the real likelihood and the real standard prompt.

A damaged model is neither taken for one that knows the concept nor for one that does not. The models have the
reference's UNet with every weight drawn anew, with none at all, or with noise of a share of each tensor's standard
deviation; or another training's UNet, or the reference's own.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import yaml

from support.backend import REDIRECTED, REFERENCE, local_backend
from tools import damaged
from unerase.v1.types_pb2 import Observation
from unerase.v1.verdicts_pb2 import Conclusion, Knowledge, Verdict

from .conftest import CONTROL, SUBJECT, sample

Audit = Any
LIKELIHOOD = {"timesteps": 5, "pictures": 16, "other_pictures": 4}
CASES, STEPS = 24, 5


@pytest.fixture(scope="module")
async def measured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, list[Observation]]]:
    """The observations of every model, by its short name."""
    folder = tmp_path_factory.mktemp("damaged")
    catalogue = damaged.write(folder)
    made = yaml.safe_load(catalogue.read_text())["models"]
    async with local_backend(folder / "store", catalogues=[str(catalogue)]) as backend:
        found = {}
        for model in (REFERENCE, REDIRECTED, "testbed/never-2", *made):
            units = [
                backend.unit("likelihood", model, parameters=LIKELIHOOD),
                backend.unit("standard-prompt", model, cases=CASES, steps=STEPS),
            ]
            found[model.partition("/")[2]] = [each for unit in units for each in await backend.observe(unit)]
        yield found


def concluded(audit: Audit, reference: Sequence[Observation], subject: Sequence[Observation]) -> Verdict:
    """Conclude an audit of what was measured, in which nothing else brings the concept back.

    The control shows nothing.
    """
    assert {observation.role for observation in subject} == {SUBJECT}
    for name in ("noise-based", "diffusion-completion", "textual-inversion", "unlearn-diff-atk"):
        audit.hits(name, 0, CASES)
    audit.battery += ["standard-prompt", "likelihood"]
    audit.observations += [
        *reference,
        *subject,
        *(sample("standard-prompt", CONTROL, case, False) for case in range(CASES)),
    ]
    verdict: Verdict = audit.verdict()
    return verdict


@pytest.mark.parametrize(
    ("model", "reading", "conclusion", "is_damaged"),
    [
        # Its prompt leads elsewhere; the UNet, and so what it knows of pictures, is the reference's.
        ("redirected", "INTACT", "AVOIDED", False),
        # It lost 0.13 on the concept's pictures and on all others, which is neither intact nor damaged.
        ("noise-5", "NO_WORSE_THAN_THE_REST", "NOT_ERASED", False),
        # Its error has trebled, and it still shows the concept: a loss alone says nothing of what a model can make.
        ("noise-20", "LOST_WITH_THE_REST", "NOT_ERASED", True),
        ("noise-100", "LOST_WITH_THE_REST", "REMOVED", True),
        ("drawn-anew", "LOST_WITH_THE_REST", "REMOVED", True),
        ("zero", "LOST_WITH_THE_REST", "REMOVED", True),
        ("never-2", "DESTROYED", "REMOVED", False),
    ],
)
def test_a_model_gets_the_verdict_that_its_truth_deserves(
    measured: dict[str, list[Observation]], audit: Audit, model: str, reading: str, conclusion: str, is_damaged: bool
) -> None:
    verdict = concluded(audit, measured["reference"], measured[model])
    assert Knowledge.Name(verdict.likelihood.knowledge) == f"KNOWLEDGE_{reading}"
    assert Conclusion.Name(verdict.conclusion) == f"CONCLUSION_{conclusion}"
    assert verdict.damaged == is_damaged
    said = " ".join([verdict.statement, verdict.summary, *verdict.evidence])
    assert ("the knowledge is intact" in said) == (reading == "INTACT")
    assert ("and much else with it" in said) == (conclusion == "REMOVED" and is_damaged)
