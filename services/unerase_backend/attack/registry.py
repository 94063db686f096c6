"""The registry of attacks."""

from functools import partial

from unerase_backend.evaluation.registry import Registry

ATTACKS = Registry("unerase_backend.attack.attacks", "unerase.attacks", beside="unerase_backend.probing.probes")
attack = partial(ATTACKS.register, attack=True)
