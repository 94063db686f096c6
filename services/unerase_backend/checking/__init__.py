"""Checks everything that can be known of a catalogue without computing: files, judges, concepts, memory."""
