"""The attacks and their deployment."""
