"""`python -m tools.preset_costs --catalogue FILE --subject NAME --concept NAME`: what each preset costs, counted.

Nothing is computed: the audits are planned as `unerase audit --dry-run` plans them, without a backend. A row is one row
of the UNet; a gradient's row takes about three times as long. With `--rows-a-second` the table has minutes as well.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence

from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.coordinator.planning.presets import PRESETS
from unerase_backend.probing.registry import PROBES
from unerase_backend.runtime.artifacts import ArtifactStore


def main(arguments: Sequence[str]) -> int:
    """Print the table, a column for each preset."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--catalogue", action="append", required=True)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--concept", required=True)
    parser.add_argument("--rows-a-second", type=float)
    options = parser.parse_args(arguments)
    catalogue = Catalogue.load(options.catalogue)
    descriptions = {name: each.description for registry in (PROBES, ATTACKS) for name, each in registry.all().items()}
    rows: dict[str, dict[str, int]] = {}
    pictures: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for preset in PRESETS:
            spec = AuditSpec(
                subject=options.subject, concept=options.concept, battery=Battery(preset=preset), seed_base=1
            )
            plan = make_plan(spec, catalogue, ArtifactStore(folder), descriptions, lambda: 1)
            pictures[preset] = plan.cost.pictures
            for cost in plan.cost.evaluations:
                rows.setdefault(cost.evaluation, {})[preset] = cost.rows
    print("| rows | " + " | ".join(PRESETS) + " |\n| --- |" + " --- |" * len(PRESETS))
    for evaluation, of_preset in rows.items():
        shown = (f"{of_preset[preset]:,}" if preset in of_preset else "" for preset in PRESETS)
        print(f"| {evaluation} | " + " | ".join(shown) + " |")
    totals = {preset: sum(of_preset.get(preset, 0) for of_preset in rows.values()) for preset in PRESETS}
    print("| **all rows** | " + " | ".join(f"{totals[preset]:,}" for preset in PRESETS) + " |")
    print("| **pictures** | " + " | ".join(f"{pictures[preset]:,}" for preset in PRESETS) + " |")
    if options.rows_a_second:
        minutes = (f"{totals[preset] / options.rows_a_second / 60:,.0f}" for preset in PRESETS)
        print(f"| **minutes** at {options.rows_a_second:g} rows a second | " + " | ".join(minutes) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
