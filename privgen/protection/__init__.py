"""Protection of images from being learnt by personalised diffusion models."""
