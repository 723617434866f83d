"""How well are marks found, and how often where none is?"""
