"""The carrier `tile`: a keyed, periodic mark in pixels that survives crops, borders, turns, scaling and mirroring."""
