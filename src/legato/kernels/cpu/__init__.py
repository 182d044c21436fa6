"""The native backend: kernels in C++ behind a C interface, one call a step.

Knows: its public names. Does not know: anything else.
"""

from legato.kernels.cpu.backend import NativeBackend, NativeExecutor
from legato.kernels.cpu.lib import Isa, Library, Topology, load_library

__all__ = ["Isa", "Library", "NativeBackend", "NativeExecutor", "Topology", "load_library"]
