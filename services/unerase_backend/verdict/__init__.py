"""Statistics, outcomes, verdict, and the simulation of their errors: pure functions of observations."""
