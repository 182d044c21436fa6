"""What the native backend refuses, and how: one line, nothing touched, the engine alive afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tiny_decoders import Piece, RandomWeights, Shape, World, build, random_ids, random_tensor

from legato.errors import EngineError, LegatoError, UnsupportedModelError, UsageError
from legato.kernels.cpu import Library, NativeBackend, NativeExecutor
from legato.kernels.ops import Batch, IntArray, KvFormat
from legato.weights.tensor import Tensor, WeightFormat

SHAPE = Shape(layers=1, positions=64)


@pytest.fixture
def isa() -> str:
    return "auto"


@pytest.fixture
def world(native: NativeBackend) -> World:
    executor = build(native, RandomWeights(SHAPE), num_pages=8, max_tokens=32)
    return World(executor, [random_ids(SHAPE.vocab, 30, 1), random_ids(SHAPE.vocab, 20, 2)], 16, 8)


def test_levels_are_named_with_reasons(library: Library) -> None:
    isas = library.isas()
    assert [isa.name for isa in isas] == ["portable", "avx2", "avx512", "amx"]
    usable = [isa.name for isa in isas if not isa.obstacle]
    assert usable[0] == "portable"
    assert NativeBackend(isa="auto", library=library).isa == usable[-1]
    for isa in isas:
        if isa.obstacle:
            with pytest.raises(UsageError, match=isa.obstacle):
                NativeBackend(isa=isa.name, library=library)


def test_an_unknown_level_is_answered_with_the_known_ones(library: Library) -> None:
    with pytest.raises(UsageError, match="unknown isa sse9; known: portable, avx2, avx512, amx"):
        NativeBackend(isa="sse9", library=library)


def test_threads_are_what_was_asked_for(library: Library) -> None:
    assert NativeBackend(threads=5, library=library).threads == 5
    assert NativeBackend(library=library).threads == library.topology().default_threads
    with pytest.raises(EngineError, match="threads"):
        NativeBackend(threads=4096, library=library)


@pytest.mark.parametrize(
    ("field", "change", "says"),
    [
        ("input_ids_T", lambda a: a * 0 + SHAPE.vocab, "outside the vocabulary"),
        ("input_ids_T", lambda a: a * 0 - 1, "outside the vocabulary"),
        ("positions_T", lambda a: a + 1, "last positions in order"),
        ("slot_mapping_T", lambda a: a + 16, "slot_mapping and page_table disagree"),
        ("slot_mapping_T", lambda a: a * 0 - 1, "slot_mapping and page_table disagree"),
        ("cu_seqlens_q_S1", lambda a: a // 2, "does not cover the rows"),
        ("cu_seqlens_q_S1", lambda a: a[::-1].copy(), "does not cover the rows"),
        ("seq_lens_S", lambda a: a * 0 + 1, "more rows than tokens"),
        ("seq_lens_S", lambda a: a + 300, "learned positions"),
        ("page_table_SP", lambda a: a * 0 + 99, "names a page that is not there"),
        ("page_table_SP", lambda a: a * 0 - 1, "names a page that is not there"),
        ("page_table_SP", lambda a: a[:, :1].copy(), "fewer pages than its tokens need"),
        ("logit_rows_R", lambda a: a[::-1].copy(), "ascending rows"),
        ("logit_rows_R", lambda a: a + 1, "ascending rows"),
        ("logit_rows_R", lambda a: np.repeat(a, 2), "too many logits"),
        ("input_ids_T", lambda a: a.astype(np.int64), "contiguous int32"),
        ("input_ids_T", lambda a: np.repeat(a, 2)[::2], "contiguous int32"),
        ("input_ids_T", lambda a: a[:-1], "different numbers of rows"),
        ("seq_lens_S", lambda a: np.repeat(a, 2), "different numbers of rows"),
    ],
)
def test_arrays_that_contradict_each_other(
    world: World, field: str, change: Callable[[IntArray], IntArray], says: str
) -> None:
    good = world.batch([Piece(0, 0, 18)])
    want = world.run([Piece(0, 0, 18)])
    with pytest.raises(EngineError, match=says):
        world.executor.run(replace(good, **{field: change(getattr(good, field))}))
    assert (world.executor.run(good) == want).all(), "the engine goes on"


def test_more_than_the_program_was_made_for(world: World) -> None:
    with pytest.raises(EngineError, match="more rows than the program was made for"):
        world.run([Piece(0, 0, 30), Piece(1, 0, 20)])


def test_an_empty_step_and_one_without_logits(world: World) -> None:
    none = np.zeros(0, np.int32)
    empty = Batch(none, none, none, np.zeros(1, np.int32), none, np.zeros((0, 0), np.int32), none)
    assert world.executor.run(empty).shape == (0, SHAPE.vocab)
    batch = replace(world.batch([Piece(0, 0, 18)]), logit_rows_R=none)
    assert world.executor.run(batch).shape == (0, SHAPE.vocab)
    assert world.executor.argmax() == []


def test_a_nan_is_told_apart_from_a_token(native: NativeBackend) -> None:
    weights = RandomWeights(replace(SHAPE, fmt=WeightFormat.F32))
    decoder = weights.decoder(native)
    head = np.ones((SHAPE.vocab, SHAPE.d_model), np.float32)
    head[7, 3] = np.nan
    tensor = Tensor("head", head.shape, WeightFormat.F32, head.reshape(-1).view(np.uint8))
    decoder = replace(decoder, head=native.pack_linear([tensor], None))
    sizes = {"num_pages": 8, "page_size": 16, "max_tokens": 32, "max_seqs": 4}
    executor = native.build(decoder.spec, decoder.forward, kv_format=KvFormat.INT8, **sizes)
    world = World(executor, [random_ids(SHAPE.vocab, 30, 1)], 16, 8)
    assert np.isnan(world.run([Piece(0, 0, 3)])).any(axis=1).all()
    assert executor.argmax() == [-1, -1, -1]


def test_closed_twice_and_logits_that_outlive_it(world: World) -> None:
    logits = world.executor.run(world.batch([Piece(0, 0, 18)]))
    before = logits.copy()
    world.executor.close()
    world.executor.close()
    assert (logits == before).all()
    with pytest.raises(EngineError, match="closed"):
        world.run([Piece(0, 0, 3)])


def test_two_models_share_the_threads_of_one_backend(native: NativeBackend) -> None:
    other = replace(SHAPE, vocab=77)
    worlds = []
    for shape in (SHAPE, other, SHAPE):
        executor = build(native, RandomWeights(shape), num_pages=8, max_tokens=32)
        worlds.append(World(executor, [random_ids(77, 30, 1)], 16, 8))
    first, middle, again = (w.whole(0, 7) for w in worlds)
    assert middle.shape == (30, 77) and (first == again).all()


def test_callers_of_other_threads_take_turns_or_are_told(native: NativeBackend) -> None:
    executor = build(native, RandomWeights(SHAPE), num_pages=8, max_tokens=32)
    world = World(executor, [random_ids(SHAPE.vocab, 30, 1)], 16, 8)
    want, batch = world.run([Piece(0, 0, 30)]), world.batch([Piece(0, 0, 30)])
    told: list[str] = []

    def hammer() -> None:
        for _ in range(50):
            try:
                executor.run(batch)
            except EngineError as error:
                told.append(str(error))

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another thread is inside" in line for line in told)
    assert (executor.run(batch) == want).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_instead_of_hanging(world: World) -> None:
    batch = world.batch([Piece(0, 0, 3)])
    world.executor.run(batch)
    child = os.fork()
    if child == 0:
        try:
            world.executor.run(batch)
        except LegatoError as error:
            os._exit(0 if "fork" in str(error) else 3)
        os._exit(4)
    assert os.waitpid(child, 0)[1] == 0
    world.executor.run(batch)


def test_shapes_and_formats_are_named_at_load(native: NativeBackend) -> None:
    rng = np.random.default_rng(0)
    spec = replace(SHAPE, head_dim=20).spec()
    assert "head_dim 20" in (native.supports(spec) or "")
    assert native.supports(SHAPE.spec()) is None
    with pytest.raises(UsageError, match="kv=f32"):
        build(native, RandomWeights(SHAPE), kv=KvFormat.F32)
    parts = [random_tensor(rng, 16, cols, WeightFormat.F32, name) for cols, name in ((32, "q"), (64, "k"))]
    with pytest.raises(UnsupportedModelError, match="64 columns beside 32 of q"):
        native.pack_linear(parts, None)
    with pytest.raises(EngineError, match="a bias of 3 numbers for 16 outputs"):
        native.pack_linear(parts[:1], np.zeros(3, np.float32))
    short = replace(parts[0], data=parts[0].data[:-4])
    with pytest.raises(EngineError, match="do not match its shape"):
        native.pack_linear([short], None)
    with pytest.raises(EngineError, match="do not match its shape"):
        native.pack_table(short)


def test_memory_is_told(native: NativeBackend) -> None:
    before = native.weight_bytes
    executor = build(native, RandomWeights(SHAPE), num_pages=8)
    assert native.weight_bytes > before and isinstance(executor, NativeExecutor)
    memory = executor.memory()
    assert memory["kv_bytes"] == 16 * memory["kv_page_bytes"]  # whole extents of 256 tokens
    assert memory["kv_page_bytes"] == native.page_bytes(SHAPE.spec(), 16, KvFormat.INT8)


def test_memory_is_read_by_as_many_threads_as_asked(native: NativeBackend) -> None:
    for threads in (1, native.threads):
        seconds = native.read_seconds(1 << 20, threads, 3)
        assert len(seconds) == 3 and all(0 < s < 5 for s in seconds)
    for bad in ((1 << 20, 0, 1), (1 << 20, native.threads + 1, 1), (0, 1, 1)):
        with pytest.raises(EngineError, match="a probe"):
            native.read_seconds(*bad)


def test_laps_count_up(world: World) -> None:
    executor = world.executor
    assert isinstance(executor, NativeExecutor)
    before = executor.laps_ns()
    world.run([Piece(0, 0, 30)])
    after = executor.laps_ns()
    assert set(after) == {"embed", "qkv", "attention", "attn_out", "mlp_up", "mlp_down", "logits", "wait"}
    assert sum(after.values()) > sum(before.values())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space are Linux's here")
def test_memory_that_cannot_be_had_says_how_much_for_what_and_what_to_change(library: Library) -> None:
    code = """
        import resource
        from legato.errors import LegatoError
        from legato.kernels.cpu import NativeBackend
        from legato.weights.tensor import Tensor, WeightFormat
        import numpy as np
        backend = NativeBackend(1, "portable")
        data = np.zeros(4096 * 4096 * 4, np.uint8)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), -1))
        try:
            for _ in range(4):
                backend.pack_linear([Tensor("w", (4096, 4096), WeightFormat.F32, data)], None)
        except LegatoError as error:
            print(error)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert re.search(r"\d+ bytes for .+ could not be had; free memory, lower --kv-memory", ran.stdout), ran
