"""The attacks, one file each; each registers itself when it is imported."""
