"""Plans audits before they are accepted: turns a request into cases and units, and counts the cost."""
