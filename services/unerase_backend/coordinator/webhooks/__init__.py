"""Webhooks: signed POSTs to hosts that the operator allows, at the end of audits and campaigns (docs/webhooks.md)."""
