"""Campaigns: every subject against every concept, as durable workflows that accept the cells' audits one by one."""
