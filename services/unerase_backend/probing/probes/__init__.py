"""The probes, one file each; each registers itself when it is imported."""
