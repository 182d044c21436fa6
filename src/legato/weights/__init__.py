"""Model files: what they hold, how their bytes become numbers, where they come from.

Knows: containers, formats, checksums. Does not know: what a tensor is for, devices, requests.
"""

from legato.weights.source import ModelSource, digest, open_model
from legato.weights.tensor import Tensor, WeightFormat

__all__ = ["ModelSource", "Tensor", "WeightFormat", "digest", "open_model"]
