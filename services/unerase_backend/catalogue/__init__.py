"""The catalogue: the models, judges and concepts that can be named, and the digests of their weights."""
