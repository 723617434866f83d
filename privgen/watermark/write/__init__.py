"""Write marks into images and latents."""
