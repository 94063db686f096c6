"""The fixed shapes of every call, part of the numerics profile; here, apart from torch, settings can name them."""

# On one core fifty guided steps of the testbed take 52 ms a picture in calls of 48 rows, 45 in calls of 96; more rows
# bring nothing.
BATCH_ROWS = 96
DECODE_BATCH = 8
