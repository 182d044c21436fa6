"""Ids to text and back: tokenizers, chat templates, streams of text with stop strings.

Knows: strings, bytes and token ids. Does not know: the engine, arrays, how a model file is read.
Importing this package costs nothing; `tokenizers` and `jinja2` are imported where they are first used.
"""
