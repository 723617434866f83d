"""How much more work does an adversary need when images are protected?"""
