"""Judges, one file each, and their deployment."""
