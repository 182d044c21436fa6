"""The nouns: what was asked, what is known of it, what one step will do, what came of it.

Knows: integers, strings and counts. Does not know: arrays, text, devices, time.
"""
