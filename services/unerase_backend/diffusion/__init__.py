"""The mathematics: loading, conditioning, the batched sampler, the denoising error."""
