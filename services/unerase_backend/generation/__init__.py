"""Makes pictures: the queue, the batching and the cache around the sampler, and their deployment."""
