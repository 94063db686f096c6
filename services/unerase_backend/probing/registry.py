"""The registry of probes."""

from unerase_backend.evaluation.registry import Registry

PROBES = Registry("unerase_backend.probing.probes", "unerase.probes", beside="unerase_backend.attack.attacks")
probe = PROBES.register
