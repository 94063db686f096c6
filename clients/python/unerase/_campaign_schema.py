"""The JSON Schema of a campaign file, for editors: `python -m unerase._campaign_schema > docs/campaign.schema.json`.

It is made from the same keys as what reads such a file (`_campaign_file.py`).
"""

import json
from typing import Any

from unerase._campaign_file import CAMPAIGN
from unerase._file_shape import document


def campaign_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a campaign file."""
    return document(CAMPAIGN, "A campaign of unerase", "What `unerase campaign create FILE` reads; docs/campaigns.md")


if __name__ == "__main__":
    print(json.dumps(campaign_schema(), indent=1))
