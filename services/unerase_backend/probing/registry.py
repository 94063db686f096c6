"""The registry of probes."""

from unerase_backend.evaluation.registry import Registry

PROBES = Registry("unerase_backend.probing.probes", "unerase.probes")
probe = PROBES.register
