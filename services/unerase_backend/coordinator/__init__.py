"""The coordinator: plans audits, runs them as durable workflows, and serves them."""
