"""The fixed shapes of every call, part of the numerics profile; apart from torch, so that settings can import them."""

# On one core fifty guided steps of the testbed take 52 ms a picture in calls of 48 rows and 45 ms in calls of 96; more
# rows gain nothing.
BATCH_ROWS = 96
DECODE_BATCH = 8
GRADIENT_ROWS = 24
ENCODE_BATCH = 8
TEXT_ROWS = 8
"""Rows of every call of the text encoder."""
