"""Pages of keys and values that leave a store and come into another: the next tokens have the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_decoders import Piece, RandomWeights, Shape, World, build, random_ids

from legato.errors import EngineError
from legato.kernels.cpu import Library, NativeBackend
from legato.kernels.ops import Executor, KvFormat
from legato.kernels.reference import ReferenceBackend

SIZE, PAGES, LENGTH = 16, 40, 300
FORMATS = [KvFormat.F32, KvFormat.BF16, KvFormat.INT8, KvFormat.INT4]


@pytest.fixture(scope="module")
def weights() -> RandomWeights:
    return RandomWeights(Shape(vocab=131))


def executor(library: Library, weights: RandomWeights, kv: KvFormat) -> Executor:
    backend = ReferenceBackend() if kv is KvFormat.F32 else NativeBackend(threads=1, library=library)
    return build(backend, weights, kv=kv, page_size=SIZE, num_pages=PAGES)


@pytest.mark.parametrize("kv", FORMATS)
def test_pages_of_one_store_serve_another(library: Library, weights: RandomWeights, kv: KvFormat) -> None:
    ids, full = random_ids(131, LENGTH, 1), LENGTH // SIZE
    first = World(executor(library, weights, kv), [ids], SIZE, PAGES)
    whole = first.whole(0)
    data = first.executor.read_pages(first.pages[0][:full])
    assert data.shape[0] == full and data.dtype == np.uint8

    second = World(executor(library, weights, kv), [[0], ids], SIZE, PAGES)  # other pages hold it here
    assert second.pages[1][:full] != first.pages[0][:full]
    second.executor.write_pages(second.pages[1][:full], data)
    assert second.executor.read_pages(second.pages[1][:full]).tobytes() == data.tobytes()
    got = second.run([Piece(1, full * SIZE, LENGTH)])
    assert got.tobytes() == whole[full * SIZE :].tobytes()


@pytest.mark.parametrize("kv", FORMATS)
def test_touching_takes_the_memory_and_changes_nothing(library: Library, weights: RandomWeights, kv: KvFormat) -> None:
    held = executor(library, weights, kv)
    World(held, [random_ids(131, 50, 2)], SIZE, PAGES).whole(0)
    before = held.read_pages(range(PAGES))
    held.touch_pages()
    assert held.read_pages(range(PAGES)).tobytes() == before.tobytes()
    assert before.any()


def test_a_closed_native_executor_has_no_pages(library: Library, weights: RandomWeights) -> None:
    held = executor(library, weights, KvFormat.INT8)
    held.close()
    with pytest.raises(EngineError, match="closed"):
        held.read_pages([0])
