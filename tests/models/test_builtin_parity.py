"""The built-in model against transformers, both in float32 on the weights that the same file dequantises to."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tiny_models import Reader, oracle_logits, reference

from legato.kernels.ops import Executor
from legato.models.load import read_blueprint
from legato.weights.source import open_model

pytestmark = pytest.mark.slow

TOLERANCE = 2e-3
NUM_PAGES = 64

PROMPTS = {
    "prose": (
        "The harbour master kept two clocks in his office, and they had not agreed for eleven years. One hung above "
        "the stove and ran slow whenever the wind came from the north; the other stood on the sill, where the sun "
        "warmed its case each morning until it gained a minute or more. Visitors supposed that he consulted one and "
        "ignored the other. In truth he read both, took the difference, and wrote it down in a narrow green ledger "
        "beside the heights of the tide. When the new inspector arrived from the capital and asked to see his "
        "records, he brought out forty-one of these ledgers and stacked them on the desk. The inspector turned the "
        "pages for a while. At first he frowned, for there was nothing in them but pairs of small numbers. Then he "
        "asked for a pencil, and by evening he had covered the back of his orders with a curve. The difference "
        "between the clocks rose and fell with the weather, and it did so a day ahead of the glass on the wall. For "
        "eleven years the harbour master had been keeping a barometer made of two bad clocks, and not one ship had "
        "left the mole into a storm. 'Why did you never tell anyone?' the inspector asked. The old man looked at "
        "the window, where the boats lay quiet in the last of the light. 'Nobody asked what they were for,' he "
        "said. 'They only asked me which of them was right.' The inspector laughed, closed the ledger, and set his "
        "own watch by neither. He stayed a week, and on the last day he ordered a third clock for the office, on "
        "condition that it be as poor as the others."
    ),
    "code": (
        "def merge(left, right):\n"
        '    """Merge two sorted lists into one sorted list."""\n'
        "    out, i, j = [], 0, 0\n"
        "    while i < len(left) and j < len(right):\n"
        "        if left[i] <= right[j]:\n"
        "            out.append(left[i])\n"
        "            i += 1\n"
        "        else:\n"
        "            out.append(right[j])\n"
        "            j += 1\n"
        "    return out + left[i:] + right[j:]\n\n\n"
        "def merge_sort(values):\n"
        "    if len(values) < 2:\n"
        "        return list(values)\n"
        "    middle = len(values) // 2\n"
        "    return merge(merge_sort(values[:middle]), merge_sort(values[middle:]))\n\n\n"
        "class Counter:\n"
        '    """Counts how often each key was seen, and remembers the order of first sight."""\n\n'
        "    def __init__(self):\n"
        "        self.counts = {}\n\n"
        "    def add(self, key, times=1):\n"
        "        if times < 0:\n"
        '            raise ValueError(f"times={times} must not be negative")\n'
        "        self.counts[key] = self.counts.get(key, 0) + times\n\n"
        "    def most_common(self, n):\n"
        "        ranked = sorted(self.counts.items(), key=lambda item: -item[1])\n"
        "        return ranked[:n]\n\n\n"
        "if __name__ == '__main__':\n"
        "    numbers = [5, 3, 8, 1, 9, 2, 7]\n"
        "    print(merge_sort(numbers))\n"
        "    counter = Counter()\n"
        "    for word in 'the cat and the dog and the bird'.split():\n"
        "        counter.add(word)\n"
        "    print(counter.most_common(2))\n"
    ),
    "numbers and scripts": (
        "Table 4. Rainfall in mm: Jan 88.1, Feb 60.4, Mar 71.9, Apr 43.0, May 39.7, Jun 28.5, Jul 12.2, Aug 15.8, "
        "Sep 47.3, Oct 90.6, Nov 104.9, Dec 97.2; total 699.6. Größe: 3 by 4,5 m² = 13,5 m². Überraschend hörte der "
        "Bäcker auf, und die Schlange löste sich auf. Le prix était de 12,50 € — trop cher, dit-elle. ¿Cuántos años "
        "tienes? Tengo treinta y dos. Москва слезам не верит. 东京は雨です。 e^(iπ) + 1 = 0; √2 ≈ 1.41421356; "
        "0xDEADBEEF; 192.168.0.1; 2024-02-29T23:59:60Z; user@example.org; C:\\temp\\new; 'quoted' \"twice\"; "
        "👩‍🚀🚀✨. Recipe: 250 g flour, 5 g salt, 160 ml water at 40 °C; knead 8 min, rest 1 h, roll to 3 mm, "
        "bake 6 min at 240 °C. Results: team A 3-1 team B; team C 0-0 team D; standings A 9 pts, C 5, D 4, B 2."
    ),
}


@pytest.fixture(scope="module")
def gguf_file(builtin_path: Path) -> Any:
    gguf = pytest.importorskip("gguf", reason="dequantises and names the tensors for the oracle")
    return gguf.GGUFReader(builtin_path)


@pytest.fixture(scope="module")
def oracle(hf: ModuleType, gguf_file: Any) -> Any:
    """transformers' own model, filled with what the gguf package makes of the file."""
    import gguf
    import torch

    heads, kv_heads = 9, 3
    config = hf.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = hf.LlamaForCausalLM(config).eval()
    arrays = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf_file.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    state = {}
    for name, p in model.named_parameters():
        array = arrays.pop(names.get_name(name, try_suffixes=(".weight",))).reshape(p.shape)
        if ".q_proj." in name or ".k_proj." in name:  # from neighbours to halves
            count = heads if ".q_proj." in name else kv_heads
            array = array.reshape(count, 32, 2, 576).swapaxes(1, 2).reshape(p.shape)
        state[name] = torch.from_numpy(np.array(array, np.float32))
    assert not arrays
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    return model


@pytest.fixture(scope="module")
def tokenizer(gguf_file: Any) -> Any:
    """Byte-level pieces of the file's own vocabulary: real tokens, though digits may be cut otherwise."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = gguf_file.get_field("tokenizer.ggml.tokens").contents()
    merges = [tuple(m.split(" ")) for m in gguf_file.get_field("tokenizer.ggml.merges").contents()]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.fixture(scope="module")
def executor(builtin_path: Path) -> Executor:
    return reference(read_blueprint(open_model(builtin_path)), num_pages=NUM_PAGES)


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_at_every_position(oracle: Any, tokenizer: Any, executor: Executor, name: str) -> None:
    ids = tokenizer.encode(PROMPTS[name]).ids
    assert len(ids) >= 300, len(ids)
    expected = oracle_logits(oracle, ids)
    got = Reader(executor, num_pages=NUM_PAGES).feed(ids)
    worst = float(np.abs(got - expected).max())
    agree = float((got.argmax(-1) == expected.argmax(-1)).mean())
    print(f"{name}: {len(ids)} tokens, largest difference {worst:.2e}, same argmax at {agree:.2%}")
    assert worst < TOLERANCE
