"""The probes and their deployment."""
