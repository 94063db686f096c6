"""`make chaos`: ten minutes of kills on SQLite and on PostgreSQL; exits with 1 if anything was lost or differs."""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from chaos.campaign import calm_campaign
from chaos.fleet import Fleet
from chaos.storm import Toll, calm, specs, storm
from support.postgres import running_postgres


def _run(postgres: bool, seconds: float, seed: int) -> Toll:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        fleet = Fleet(Path(folder), held.enter_context(running_postgres()).new_database() if postgres else "")
        try:
            fleet.start()
            wanted = specs()
            undisturbed, campaign = calm(fleet, wanted), calm_campaign(fleet.addresses[0])
            toll = storm(
                fleet,
                wanted,
                undisturbed,
                campaign,
                seed=seed,
                seconds=seconds,
                say=lambda line: print(f"  {line}", flush=True),
            )
        finally:
            fleet.stop()
    print(f"{fleet.name}: {toll}", flush=True)
    for reason in toll.reasons:
        print(f"  {reason}")
    return toll


def main() -> int:
    """Run the storms and say what they cost."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="time for both databases together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=["sqlite", "postgres", "both"], default="both")
    options = parser.parse_args()
    databases = [name for name in ("sqlite", "postgres") if options.database in (name, "both")]
    share = options.seconds / len(databases)
    tolls = [_run(name == "postgres", share, options.seed) for name in databases]
    return 1 if any(toll.lost or toll.differing for toll in tolls) else 0


if __name__ == "__main__":
    sys.exit(main())
