"""What all evaluations share: registration, the backends they call, and how a sample becomes an observation."""
