"""Sequences that share pages are read together where they do: the same bits as each alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tiny_decoders import Piece, RandomWeights, Shape, World, build, random_ids

from legato.kernels.cpu import Library, NativeBackend, NativeExecutor
from legato.kernels.ops import KvFormat

TILE, SIZE, PAGES = 256, 16, 320
SHAPES = {
    "three heads": Shape(heads=6, kv_heads=3, vocab=71, layers=2),
    "one in two layers looks back 100 tokens": Shape(vocab=71, windows=(100, None), softcap=20.0),
}


def family(
    library: Library, shape: Shape, kv: KvFormat, threads: int, shared: Sequence[tuple[int, int]], tails: Sequence[int]
) -> World:
    """Sequence i takes the first shared[i][1] tokens, and their pages, of sequence shared[i][0], and adds tails[i]."""
    backend = NativeBackend(threads=threads, library=library)
    executor = build(backend, RandomWeights(shape), kv=kv, num_pages=PAGES, max_tokens=640)
    assert isinstance(executor, NativeExecutor)
    executor.join_from(0)  # so little would not be joined otherwise
    world = World(executor, [], SIZE, PAGES)
    free = [int(p) for p in np.random.default_rng(5).permutation(PAGES)]
    tokens: list[list[int]] = []
    for i, ((other, count), tail) in enumerate(zip(shared, tails, strict=True)):
        ids = (tokens[other][:count] if count else []) + random_ids(shape.vocab, tail, 100 + i)
        pages = world.pages[other][: count // SIZE] if count else []
        tokens.append(ids)
        world.pages.append([*pages, *(free.pop() for _ in range(-(-len(ids) // SIZE) - len(pages)))])
        world.tokens = tokens
        for start in range(count, len(ids), 500):
            world.run([Piece(i, start, min(start + 500, len(ids)))])
    return world


def together_as_alone(world: World, order: Sequence[int]) -> None:
    last = [Piece(i, len(world.tokens[i]) - 1, len(world.tokens[i])) for i in order]
    alone = [world.run([piece]) for piece in last]
    together = world.run(last)
    same = [a.tobytes() == b.tobytes() for a, b in zip(alone, together, strict=True)]
    assert all(same), f"sequences {[i for i, ok in zip(order, same, strict=True) if not ok]} differ"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kv", [KvFormat.INT8, KvFormat.BF16, KvFormat.INT4])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_prefix_shared_by_all(library: Library, shape: str, kv: KvFormat, threads: int) -> None:
    """Tails of one token, of whole tiles, and across a tile's border."""
    tails = [2 * TILE + 40, 1, TILE - 40, 30, 17, 250]
    shared = [(0, 0)] + [(0, 2 * TILE)] * 5
    world = family(library, SHAPES[shape], kv, threads, shared, tails)
    for order in ([0, 1], [1, 2, 3], range(6), [5, 0, 3, 2]):
        together_as_alone(world, list(order))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_document_shared_by_some_within_a_prompt_shared_by_all(library: Library, threads: int) -> None:
    tails = [TILE + 9, TILE + 30, 12, 3 * TILE, 40, 5, 70, 300]
    shared = [(0, 0), (0, TILE), (1, 2 * TILE), (0, TILE), (3, 4 * TILE), (4, 4 * TILE), (0, TILE), (0, 0)]
    world = family(library, SHAPES["three heads"], KvFormat.INT8, threads, shared, tails)
    for order in (range(8), [7, 1, 2, 3, 4, 5, 6, 0], [3, 4, 5], [2, 5, 1, 4]):
        together_as_alone(world, list(order))


def test_beside_a_chunk_of_another_prompt(library: Library) -> None:
    """Rows of a long chunk and of a verification stand between and beside those that share."""
    shared = [(0, 0), (0, TILE), (0, TILE), (0, 0), (0, TILE)]
    world = family(library, SHAPES["three heads"], KvFormat.INT8, 2, shared, [TILE + 20, 33, 60, 90, 44])
    last = [Piece(i, len(ids) - 1, len(ids)) for i, ids in enumerate(world.tokens)]
    alone = [world.run([piece]) for piece in last]
    pieces = [last[0], last[1], Piece(3, 0, 90), last[2], last[4]]
    got = world.run(pieces)
    assert got[[0, 1, 92, 93]].tobytes() == np.concatenate([alone[i] for i in (0, 1, 2, 4)]).tobytes()
    assert got[91].tobytes() == alone[3].tobytes()


def test_many(library: Library) -> None:
    shared = [(0, 0)] + [(0, TILE)] * 15
    tails = [TILE + 5, *range(1, 16)]
    world = family(library, SHAPES["three heads"], KvFormat.INT8, 2, shared, tails)
    together_as_alone(world, range(16))
