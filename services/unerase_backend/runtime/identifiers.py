"""The forms of identifiers that several rooms look at."""

import re

DIGEST = re.compile(r"[0-9a-f]{64}")
"""Of an artefact: its SHA-256, hexadecimal."""
AUDIT_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
