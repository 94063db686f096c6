"""A third party's package: what it takes to add probes, a measure, an attack and a kind of judge from outside."""
