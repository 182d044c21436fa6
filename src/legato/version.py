"""The package's version. Knows: nothing else. It stands apart so that every layer can name it."""

__version__ = "0.1.0"
