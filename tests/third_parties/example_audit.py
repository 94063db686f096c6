"""An audit in one process, without Ray: planned, run on the engines, concluded; a process of its own finds the package.

    python example_audit.py CATALOGUE FOLDER EVALUATION...

prints JSON: what is registered, how many observations each unit has, and what the verdict says of each evaluation.
"""

import asyncio
import json
import sys
from pathlib import Path

from support import example
from support.backend import evaluations, local_backend
from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, EvaluationRequest
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.classification.registry import kinds
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.probing.registry import PROBES
from unerase_backend.verdict import conclude


async def main(catalogue: str, folder: str, names: list[str]) -> None:
    async with local_backend(Path(folder), catalogues=[catalogue]) as backend:
        descriptions = {name: evaluation.description for name, evaluation in evaluations().items()}
        spec = AuditSpec(
            subject="testbed/uce",
            concept=example.CONCEPT,
            second_judge=example.JUDGE,
            battery=Battery(evaluations=[EvaluationRequest(name=name) for name in names], allow_incomplete=True),
            cases=6,
            steps=10,
        )
        plan = make_plan(spec, backend.catalogue, backend.store, descriptions, lambda: 5)
        found = {unit.id: await backend.observe(whole(unit, plan.parts)) for unit in plan.units}
    observations = [observation for unit in found.values() for observation in unit]
    verdict = conclude(observations, list(descriptions.values()), plan.spec.battery.evaluations, plan.spec)
    print(
        json.dumps(
            {
                "probes": list(PROBES.all()),
                "attacks": list(ATTACKS.all()),
                "kinds": list(kinds()),
                "broken": {**PROBES.broken(), **ATTACKS.broken()},
                "observations": {unit: len(seen) for unit, seen in found.items()},
                "scored": all(observation.status == SAMPLE_STATUS_SCORED for observation in observations),
                "judges": sorted({each.judge for observation in observations for each in observation.judgements}),
                "agreement": {result.name: result.judge_agreement for result in verdict.evaluations},
                "reference": {result.name: result.reference.hits for result in verdict.evaluations},
                "control": {result.name: result.control.hits for result in verdict.evaluations},
                "conclusion": Conclusion.Name(verdict.conclusion),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
