"""Training of diffusion models: the loop, the losses, the assignment of noise."""
