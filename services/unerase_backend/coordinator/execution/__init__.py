"""Runs accepted audits: workflows, units, retries, verdicts and reports, notifications, and removal after retention."""
