"""How good is a text-to-image model?"""
