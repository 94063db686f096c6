"""The names of the parts of pipelines whose weights a catalogue may change, of all families."""

DENOISERS = ("unet", "transformer")
"""Those of which a model has one, which decides what a picture shows."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Those that read the prompt."""
REPLACEABLE = (*DENOISERS, *TEXT_ENCODERS)
"""All of them, the denoisers first."""
