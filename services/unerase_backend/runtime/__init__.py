"""What every room uses: errors, seeds, artefacts, settings, calls to other rooms, logs and traces."""
