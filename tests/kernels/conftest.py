"""What the kernel tests share: the native library, and every instruction-set level that this machine can run."""

from __future__ import annotations

import pytest

from legato.kernels.cpu import Library, NativeBackend, load_library


def usable_levels() -> list[str]:
    found = load_library()
    return [isa.name for isa in found.isas() if not isa.obstacle] if isinstance(found, Library) else []


@pytest.fixture(scope="session", params=usable_levels() or ["none"])
def isa(request: pytest.FixtureRequest) -> str:
    """Every level in turn; a test file that needs only one says so with its own fixture."""
    level: str = request.param
    return level


@pytest.fixture(scope="session")
def library() -> Library:
    found = load_library()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def native(library: Library, isa: str) -> NativeBackend:
    return NativeBackend(threads=2, isa=isa, library=library)
