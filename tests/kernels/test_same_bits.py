"""The numerics contract: a row's logits have the same bits whatever its company, its chunks, its pages, the threads."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_decoders import Piece, RandomWeights, Shape, World, build, random_ids

from legato.core.spec import Activation
from legato.kernels.cpu import Library, NativeBackend
from legato.kernels.ops import FloatArray, KvFormat
from legato.weights.tensor import WeightFormat as W

LENGTH = 280  # beyond one attention tile
SHAPES = {
    "llama": Shape(heads=6, vocab=131),
    "gemma": Shape(
        vocab=131, windows=(100, None), qk_norm=True, post_norm=True, mlp=128, activation=Activation.GELU_TANH
    ),
    "mixed formats": Shape(
        d_model=256, mlp=96, layers=1, vocab=70, formats={"q": W.Q6_K, "v": W.BF16, "gate": W.Q8_0, "head": W.F32}
    ),
}


class Story:
    """One decoder, and its logits for one prompt taken whole by two threads."""

    def __init__(
        self, library: Library, isa: str, shape: Shape, kv: KvFormat = KvFormat.INT8, length: int = LENGTH
    ) -> None:
        self.library, self.isa, self.kv, self.weights = library, isa, kv, RandomWeights(shape)
        self.ids = random_ids(shape.vocab, length, 1)
        self.whole = self.world().whole(0)

    def world(self, others: int = 0, threads: int = 2, page_size: int = 16) -> World:
        backend = NativeBackend(threads=threads, isa=self.isa, library=self.library)
        others_ids = [random_ids(self.weights.shape.vocab, 9 + 21 * i, 10 + i) for i in range(others)]
        executor = build(backend, self.weights, kv=self.kv, page_size=page_size, num_pages=2048 // page_size)
        return World(executor, [self.ids, *others_ids], page_size, 2048 // page_size)

    def expect(self, got: FloatArray, start: int = 0) -> None:
        want = self.whole[start : start + len(got)]
        same = (got.view(np.int32) == want.view(np.int32)).all(axis=1)
        assert same.all(), f"rows {np.flatnonzero(~same)[:8] + start} differ"


@pytest.fixture(scope="module", params=list(SHAPES))
def story(request: pytest.FixtureRequest, library: Library, isa: str) -> Story:
    return Story(library, isa, SHAPES[request.param])


@pytest.mark.parametrize("chunk", [17, 64])
def test_a_prompt_in_chunks(story: Story, chunk: int) -> None:
    story.expect(story.world().whole(0, chunk))


def test_a_prompt_token_by_token(story: Story) -> None:
    """The first tokens, and those on both sides of a tile's border."""
    world = story.world()
    for start, end in ((0, 20), (250, LENGTH)):
        world.run([Piece(0, 0, start or 1)])
        for position in range(start, end):
            story.expect(world.run([Piece(0, position, position + 1)]), position)


@pytest.mark.parametrize("threads", [1, 3])
def test_other_numbers_of_threads(story: Story, threads: int) -> None:
    world = story.world(threads=threads)
    story.expect(world.whole(0))
    story.expect(world.run([Piece(0, LENGTH - 3, LENGTH)]), LENGTH - 3)
    story.expect(world.run([Piece(0, LENGTH - 1, LENGTH)]), LENGTH - 1)


def test_in_company_of_six(story: Story) -> None:
    """One decodes while the others prefill, in turn, and every step holds rows of all seven."""
    world = story.world(others=6)
    world.whole(0, 64)
    for position in (LENGTH - 2, LENGTH - 1):
        pieces = [Piece(s, 0, len(world.tokens[s])) for s in range(1, 4)]
        pieces += [Piece(0, position, position + 1)]
        pieces += [Piece(s, 0, len(world.tokens[s])) for s in range(4, 7)]
        rows = sum(p.end - p.start for p in pieces[:3])
        story.expect(world.run(pieces)[rows : rows + 1], position)


def test_a_long_chunk_beside_single_rows(story: Story) -> None:
    world = story.world(others=3)
    for s in (1, 2, 3):
        world.whole(s)
    pieces = [Piece(s, len(world.tokens[s]) - 1, len(world.tokens[s])) for s in (1, 2)]
    story.expect(world.run([*pieces, Piece(0, 0, LENGTH)])[2:])


def test_shared_pages(story: Story) -> None:
    """A second sequence finds the first 256 tokens in the first one's pages and computes only the rest."""
    world = story.world()
    world.whole(0)
    world.tokens = [*world.tokens, story.ids]
    own = [p for p in range(128) if p not in world.pages[0]]
    world.pages.append(world.pages[0][:16] + own[: len(world.pages[0]) - 16])
    story.expect(world.run([Piece(1, 256, LENGTH)]), 256)


@pytest.mark.parametrize("page_size", [32, 64, 256])
def test_other_page_sizes(story: Story, page_size: int) -> None:
    story.expect(story.world(page_size=page_size).whole(0, 50))


@pytest.mark.parametrize("kv", [KvFormat.BF16, KvFormat.INT4])
def test_other_kv_formats(library: Library, isa: str, kv: KvFormat) -> None:
    story = Story(library, isa, SHAPES["llama"], kv)
    for chunk in (1, 17):
        story.expect(story.world().whole(0, chunk))
    story.expect(story.world(threads=1).whole(0))


def test_every_weight_format(library: Library, isa: str) -> None:
    for fmt in W:
        shape = Shape(d_model=256, head_dim=128, heads=2, kv_heads=1, mlp=256, vocab=41, layers=1, fmt=fmt)
        story = Story(library, isa, shape, length=30)
        for chunk in (1, 2, 3, 4, 5, 13):
            story.expect(story.world().whole(0, chunk))
