"""What happens to images on the way: compression, geometry, colour, noise."""
