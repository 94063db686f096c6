"""A third party's package: what it takes to add a probe, an attack and a kind of judge from outside."""
