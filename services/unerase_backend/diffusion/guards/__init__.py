"""The guards: one file each."""
