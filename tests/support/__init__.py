"""Helpers that the tests of several rooms share: backends, servers, databases, and generated requests and reports."""
