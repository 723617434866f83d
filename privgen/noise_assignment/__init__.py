"""Which noise each image of a training batch gets (immiscible diffusion)."""
