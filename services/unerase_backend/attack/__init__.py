"""Attacks, and their deployment."""
