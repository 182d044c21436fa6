"""Whatever a file says, a plan is made or refused in one line: settings and header bytes drawn at random."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from legato.errors import LegatoError
from legato.measure.presets import PRESETS
from legato.planner import plan

CONFIGS = [dict(p.config) for p in PRESETS]
KEYS = sorted({key for config in CONFIGS for key in config} | {"layer_types", "text_config", "is_encoder_decoder"})
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 10**30, 1.5, -0.0, 1e308, 4096.0]),
    st.text(max_size=5),
    st.lists(st.integers(0, 3) | st.sampled_from(["full_attention", "sliding_attention"]), max_size=4),
    st.dictionaries(
        st.sampled_from(["quant_method", "bits", "group_size", "hidden_size", "model_type"]), st.integers()
    ),
)


def made_or_refused(path: Path) -> None:
    try:
        made = plan(str(path), machine="h100", context=64, output=8, users=3)
    except LegatoError as error:
        assert "\n" not in str(error) and error.exit_code in (2, 3)
        return
    shown = json.loads(json.dumps(made.as_dict(), allow_nan=False))
    assert shown["itl_ms"] > 0 and shown["weights_bytes"] > 0


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.sampled_from(CONFIGS), st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_any_settings(tmp_path_factory: Any, config: dict[str, Any], change: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_text(json.dumps({**config, **change}))
    made_or_refused(path)


def header() -> bytes:
    """A GGUF header of two layers, byte by byte (docs/gguf.md of the ggml project), without weights."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    numbers = {"block_count": 2, "context_length": 4096, "embedding_length": 64, "feed_forward_length": 96}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    keys = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    keys += [text(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    shapes = {"token_embd": (320, 64), "output": (320, 64)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_{n}": (rows, 64) for n, rows in (("q", 64), ("k", 32), ("v", 32), ("output", 64))}
        shapes |= {f"blk.{i}.ffn_{n}": size for n, size in (("gate", (96, 64)), ("up", (96, 64)), ("down", (64, 96)))}
    tensors = [
        text(f"{name}.weight") + struct.pack("<IQQIQ", 2, cols, rows, 2, 0) for name, (rows, cols) in shapes.items()
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys + tensors)


def test_any_header_bytes(tmp_path: Path) -> None:
    whole, path, dice = header(), tmp_path / "model.gguf", random.Random(1)
    path.write_bytes(whole)
    assert plan(str(path), machine="h100", context=64).parameters == 2 * (320 * 64 + 192 * 64 + 3 * 96 * 64) + 5 * 64
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.choice([0, 1, 2, 127, 128, 255, dice.randrange(256)])
        path.write_bytes(bytes(data[: dice.choice([len(data), dice.randrange(len(data))])]))
        made_or_refused(path)
