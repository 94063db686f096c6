"""Probes, and their deployment."""
