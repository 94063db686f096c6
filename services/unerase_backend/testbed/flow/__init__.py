"""The second world of models: a small transformer with rectified flow, in the layout of Stable Diffusion 3.

Its pictures, captions, autoencoder and judges are those of the first world.
"""
