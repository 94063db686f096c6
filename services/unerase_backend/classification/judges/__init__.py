"""The kinds of judge, one in each module."""
