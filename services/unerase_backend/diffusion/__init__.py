"""The mathematics of diffusion: loading models, conditioning, the batched sampler, the denoising error."""
