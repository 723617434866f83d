"""What happens to images on the way: compression, noise, blur, geometry and colour."""
