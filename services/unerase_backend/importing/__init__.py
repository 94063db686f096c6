"""Imports files of weights that the server does not read: pickles, CompVis' layout, adapters, learned embeddings.

Each file is read in a process of its own, which has no network, bounded memory and bounded time (`isolation.py`), and
comes out as safetensors in the layout that the server reads, with an entry for a catalogue.
"""
