"""The report of an audit as JSON and as one HTML file, and its observations as Parquet."""

from unerase_backend.report.calibrated import shipped
from unerase_backend.report.content import build
from unerase_backend.report.html import render_html
from unerase_backend.report.parquet import read_parquet, render_parquet
from unerase_backend.report.schema import SCHEMA_VERSION, render_json, report_schema

__all__ = [
    "SCHEMA_VERSION",
    "build",
    "read_parquet",
    "render_html",
    "render_json",
    "render_parquet",
    "report_schema",
    "shipped",
]
