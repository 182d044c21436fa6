"""A tiny GGUF model that has learnt the alphabet: after each byte the likeliest token is the next byte.

Knows: the container and a byte-level vocabulary. Does not know: commands, the engine.

Its layers compute something, but their last matrices are zero, so a token's logits depend on that token alone:
"a" goes on with "bcdef...", "z" with the end token. The margin is small enough that sampling has a choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers

from legato.weights.gguf_write import write_gguf
from legato.weights.tensor import Tensor, WeightFormat

CONTEXT = 128
WIDTH, HEADS, KV_HEADS, MLP, LAYERS = 320, 5, 1, 64, 2
MARGIN = 6.0
NORMAL, CONTROL = 1, 3
END, USER, ANSWER = "<|end|>", "<|user|>", "<|answer|>"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }};{% elif m.role == 'user' %}<|user|>"
    "{{ m.content }}{% else %}<|answer|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)


def byte_tokens() -> list[str]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others for 256 and up."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in own else chr(next(spare)) for b in range(256)]


def write_alphabet(path: Path, *, template: bool = True, context: int = CONTEXT) -> Path:
    """Writes the model; "a" is token 97, the three control tokens are 256, 257 and 258."""
    tokens = [*byte_tokens(), END, USER, ANSWER]
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": "alphabet",
        "llama.block_count": LAYERS,
        "llama.context_length": context,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": MLP,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * 256 + [CONTROL] * 3,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 256,
    }
    if template:
        metadata["tokenizer.chat_template"] = TEMPLATE
    write_gguf(path, metadata, model_tensors(len(tokens)))
    return path


def write_folder(folder: Path, **config: object) -> Path:
    """The same model as a Hugging Face folder; `config` is laid over its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*byte_tokens(), END, USER, ANSWER]
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": len(tokens),
        "hidden_act": "silu",
        "eos_token_id": 256,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    core = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([END, USER, ANSWER])
    core.save(str(folder / "tokenizer.json"))
    shown = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(shown))
    write_safetensors(folder / "model.safetensors", {_folder_name(t.name): t for t in model_tensors(len(tokens))})
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], **wrong: list[int]) -> None:
    """A safetensors file; `wrong` gives tensors, by the last part of their names, offsets that lie."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        offsets = wrong.get(name.split(".")[-2], [at, at + tensor.nbytes])
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    body = b"".join(tensor.data.tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


_FOLDER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _folder_name(name: str) -> str:
    parts = name.split(".")
    stem = f"model.layers.{parts[1]}.{_FOLDER_NAMES[parts[2]]}" if parts[0] == "blk" else _FOLDER_NAMES[parts[0]]
    return f"{stem}.weight"


def _next_token(token: int) -> int:
    """z ends; "<|answer|>" begins with a."""
    return {ord("z"): 256, 258: ord("a")}.get(token, (token + 1) % 256)


def model_tensors(vocab: int) -> list[Tensor]:
    random = np.random.default_rng(7)
    embed = np.zeros((vocab, WIDTH), np.float32)
    embed[np.arange(vocab), np.arange(vocab)] = 1.0
    head = np.zeros((vocab, WIDTH), np.float32)
    for token in range(vocab):
        head[_next_token(token), token] = MARGIN / np.sqrt(WIDTH)
    kv = WIDTH // HEADS * KV_HEADS

    def noise(rows: int, cols: int) -> np.ndarray:
        return random.standard_normal((rows, cols), np.float32) * np.float32(cols**-0.5)

    named: dict[str, np.ndarray] = {
        "token_embd.weight": embed,
        "output.weight": head,
        "output_norm.weight": np.ones(WIDTH, np.float32),
    }
    for i in range(LAYERS):
        named |= {
            f"blk.{i}.attn_norm.weight": np.ones(WIDTH, np.float32),
            f"blk.{i}.attn_q.weight": noise(WIDTH, WIDTH),
            f"blk.{i}.attn_k.weight": noise(kv, WIDTH),
            f"blk.{i}.attn_v.weight": noise(kv, WIDTH),
            f"blk.{i}.attn_output.weight": np.zeros((WIDTH, WIDTH), np.float32),
            f"blk.{i}.ffn_norm.weight": np.ones(WIDTH, np.float32),
            f"blk.{i}.ffn_gate.weight": noise(MLP, WIDTH),
            f"blk.{i}.ffn_up.weight": noise(MLP, WIDTH),
            f"blk.{i}.ffn_down.weight": np.zeros((WIDTH, MLP), np.float32),
        }
    return [
        Tensor(name, values.shape, WeightFormat.F32, np.ascontiguousarray(values).view(np.uint8).reshape(-1))
        for name, values in named.items()
    ]
