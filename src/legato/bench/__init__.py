"""Measurements of a loaded model, each a plain function that returns what was measured.

Knows: the engine, clocks, closed forms of bytes. Does not know: terminals, options.
"""
