"""A registry: one SQLite file that holds keys, and the IDs that were issued with them.

`registry` is the front door; `values` are what goes in and comes out; `database` opens the file; `keys` and `ids` are
its two tables; `export` writes them as text.
"""
