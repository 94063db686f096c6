"""The JSON Schemas of a campaign file and of a gate file, made from the same keys as what reads such files.

`python -m unerase._file_schemas campaign` prints docs/campaign.schema.json, with `gate` docs/gate.schema.json.
"""

import argparse
import json
from typing import Any

from unerase._campaign_file import CAMPAIGN
from unerase._file_shape import SCHEMA_DIALECT, document
from unerase._gate_file import gate_schema


def file_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a file of a kind, "campaign" or "gate"."""
    if kind == "gate":
        return {"$schema": SCHEMA_DIALECT, **gate_schema()}
    return document(CAMPAIGN, "unerase campaign", "What `unerase campaign create FILE` reads; docs/campaigns.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the JSON Schema of a file.")
    parser.add_argument("kind", choices=["campaign", "gate"])
    print(json.dumps(file_schema(parser.parse_args().kind), indent=1))
