"""Python's collector of cycles, out of the way while a command starts.

Knows: the collector. Does not know: what is loaded meanwhile.

Loading makes some 300,000 objects and throws few away: modules, a vocabulary, a model stay to the end. Looking through
them again and again costs a tenth of the start, and once more for each full collection while tokens come.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing is collected inside, and what was made inside is not looked through afterwards (see `released`)."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def released() -> Iterator[None]:
    """What was set aside inside is collected like anything else once this ends: for whoever goes on afterwards."""
    try:
        yield
    finally:
        gc.unfreeze()
