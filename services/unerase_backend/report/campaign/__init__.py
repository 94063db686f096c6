"""The report of a campaign: its JSON, its page, and its cells and observations as tables.

Nothing here stores, serves or waits. Every function takes `head`, a `CampaignReport` without its cells, and the cells
one after the other in order of their index, and holds a bounded number of them.
"""

from unerase_backend.report.campaign.cells import write_cells_csv, write_cells_parquet
from unerase_backend.report.campaign.observations import write_observations
from unerase_backend.report.campaign.pages import HTML, INDEX, MAX_CELLS, ZIP, write_html
from unerase_backend.report.campaign.streamed_json import render_json

__all__ = [
    "HTML",
    "INDEX",
    "MAX_CELLS",
    "ZIP",
    "render_json",
    "write_cells_csv",
    "write_cells_parquet",
    "write_html",
    "write_observations",
]
