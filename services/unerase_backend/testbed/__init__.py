"""A small text-to-image world: its pictures, its models with known truth, the erasers, and their training."""
