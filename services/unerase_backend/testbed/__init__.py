"""The testbed: a small world of pictures and captions, the models trained on it, and the erasers applied to them."""
