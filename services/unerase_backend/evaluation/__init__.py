"""What every evaluation shares: how it declares itself, what it is handed, how a sample becomes an observation."""
