"""The coordinator's database: tables, transactions, quotas and leases. Only this part of the coordinator knows SQL."""
