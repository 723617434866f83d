"""Does noise assignment make training faster?"""
