"""The report of an audit: its content, as JSON and as one HTML file."""

from unerase_backend.report.content import build
from unerase_backend.report.html import render_html
from unerase_backend.report.schema import SCHEMA_VERSION, render_json, report_schema

__all__ = ["SCHEMA_VERSION", "build", "render_html", "render_json", "report_schema"]
