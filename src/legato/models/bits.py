"""How many bits a weight takes in a model's files, by what it is for.

Knows: blueprints. Does not know: devices, how anything is shown (`check`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from legato.measure import cost
from legato.models.load import Blueprint
from legato.models.names import Bindings, Bound, Role

_MATRIX_ROLES: Mapping[Role, cost.Role] = {
    Role.EMBED: cost.Role.EMBED,
    **dict.fromkeys((Role.Q, Role.K, Role.V), cost.Role.QKV),
    Role.OUT: cost.Role.OUT,
    **dict.fromkeys((Role.GATE, Role.UP), cost.Role.UP),
    Role.DOWN: cost.Role.DOWN,
    Role.HEAD: cost.Role.HEAD,
}


def bits_by_role(blueprint: Blueprint) -> dict[cost.Role, float]:
    """Bits a weight of each kind of matrix as it lies in the file, for the closed forms of `measure.cost`."""
    elements: dict[cost.Role, int] = dict.fromkeys(cost.Role, 0)
    nbytes: dict[cost.Role, int] = dict.fromkeys(cost.Role, 0)
    parts: list[Bindings] = [blueprint.tensors.shared, *blueprint.tensors.layers]
    for part in parts:
        for role, bound in part.weights.items():
            if role in _MATRIX_ROLES:
                elements[_MATRIX_ROLES[role]] += elements_of(bound)
                nbytes[_MATRIX_ROLES[role]] += bound.nbytes
    bits = {role: 8 * nbytes[role] / elements[role] for role in cost.Role if elements[role]}
    return {cost.Role.HEAD: bits[cost.Role.EMBED], **bits}  # a tied head is the embedding table


def elements_of(bound: Bound) -> int:
    """Numbers in the part of a tensor that is bound."""
    whole = bound.tensor.shape[1] if bound.transposed else bound.tensor.shape[0]
    return prod(bound.tensor.shape) // whole * bound.rows
