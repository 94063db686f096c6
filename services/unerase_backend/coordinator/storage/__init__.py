"""What the coordinator remembers: tables, transactions, quotas and leases. The only part that knows SQL."""
