"""Read marks: bits, p-values, poses, search."""
