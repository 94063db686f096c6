"""Judges pictures: the kinds of judge, and their deployment."""
