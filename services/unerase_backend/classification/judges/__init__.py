"""The judges, one kind a file."""
