"""Maths of diffusion: parameterisation, noise levels, latents, unrolled DDIM, and sampling."""
