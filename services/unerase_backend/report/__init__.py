"""The report, as JSON and as HTML."""
