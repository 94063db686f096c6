"""What a GPU makes of Stable Diffusion 1.4's architecture, in one process, without Ray and without a network."""
