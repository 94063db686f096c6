"""The fixed shapes of every call, part of the numerics profile; here, apart from torch, settings can name them."""

# A row costs the testbed's UNet 2.7 ms on one core in calls of 16, 2.4 in calls of 32 and 2.2 from 48 on; 48 rows are
# the 24 guided trajectories of a default battery's cases, or of one case's noise variants.
BATCH_ROWS = 48
DECODE_BATCH = 8
