"""How well marks of objects are written and found: each object's key, its place, and nothing outside."""
