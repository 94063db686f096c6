"""What every room stands on: errors, seeds, artefacts, settings, logging and metrics."""
