"""The deployment around the sampler: queue, batching, caches."""
