"""A script that measures another engine with that engine's own Python: no import of ours, no dependency of ours.

Knows: nothing; `measure_peer.py` is run as a file, in a process of its own. Does not know: the rest of this package.
"""
