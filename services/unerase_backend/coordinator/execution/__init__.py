"""What happens to an accepted audit: its workflow, its units, their retries, the verdict and what is removed later."""
