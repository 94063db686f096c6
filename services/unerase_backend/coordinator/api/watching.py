"""How the events of audits and campaigns are read for those that watch them."""

EVENTS_AT_ONCE = 256
LAST_SEQUENCE = 2**63 - 1
"""The last sequence number that there can be: the database's integers have 63 bits."""
WATCHERS_READING = (4, 2)
"""How many watchers of one service read at once in all, and how many of one tenant.

Watchers that wake together take turns, so that other calls get the database's other connections.
"""
