"""The fixed shapes of every call, part of the numerics profile; here, apart from torch, settings can name them."""

# A row costs the testbed's UNet 0.38 ms on two threads in calls of 48 and 0.27 in calls of 96; more rows bring nothing.
BATCH_ROWS = 96
DECODE_BATCH = 8
