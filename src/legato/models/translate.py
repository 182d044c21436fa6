"""From a model's files to settings under one vocabulary: that of config.json. Finds the family on the way.

Knows: config.json's shells, GGUF's names for settings, and which settings do not matter, with the reason for each.
Does not know: what a family makes of its settings, tensors' names, devices.

Sources: transformers' configuration classes; the GGUF specification and the conventions of its converter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from legato.errors import ModelFileError, UnsupportedModelError
from legato.models.families import FAMILIES, Family
from legato.models.names import NameMap, Role
from legato.models.settings import Settings
from legato.weights.source import ModelSource

_TRAINING = "only used in training"
_TEXT = "read with the tokenizer"
_SAMPLING = "a default for sampling, not part of the model"
_RECORD = "a record of how the file came to be"
_OURS = "how another library runs the model"
_CLASSIFIER = "for heads other than the language model's"

IGNORED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("_name_or_path", "transformers_version", "_from_model_config", "transformers.js_config"), _RECORD)
    | dict.fromkeys(("unsloth_fixed", "unsloth_version", "model_name", "tensor_data_layout"), _RECORD)
    | dict.fromkeys(("torch_dtype", "dtype"), "each tensor says its own format")
    | dict.fromkeys(("use_cache", "cache_implementation", "_attn_implementation", "attn_implementation"), _OURS)
    | dict.fromkeys(("_attn_implementation_autoset", "return_dict", "torchscript", "pretraining_tp"), _OURS)
    | dict.fromkeys(("output_attentions", "output_hidden_states", "chunk_size_feed_forward", "use_bfloat16"), _OURS)
    | dict.fromkeys(("reorder_and_upcast_attn", "n_ctx", "auto_map", "tf_legacy_loss"), _OURS)
    | dict.fromkeys(("initializer_range", "attention_dropout", "hidden_dropout", "gradient_checkpointing"), _TRAINING)
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "output_router_logits"), _TRAINING)
    | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"), _TEXT)
    | dict.fromkeys(("decoder_start_token_id", "prefix", "tokenizer_class"), _TEXT)
    | dict.fromkeys(("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "do_sample"), _SAMPLING)
    | dict.fromkeys(("max_length", "min_length", "num_beams", "task_specific_params", "length_penalty"), _SAMPLING)
    | dict.fromkeys(("no_repeat_ngram_size", "num_return_sequences", "early_stopping", "bad_words_ids"), _SAMPLING)
    | dict.fromkeys(("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"), _CLASSIFIER)
    | dict.fromkeys(("summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout"), _CLASSIFIER)
    | dict.fromkeys(("summary_proj_to_labels",), _CLASSIFIER)
)

# Settings that change nothing at these values; at others they ask for something that is not run here.
ONLY: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "is_encoder_decoder": (False,),
        "is_decoder": (False, True),
        "add_cross_attention": (False,),
        "tie_encoder_decoder": (False,),
        "pruned_heads": ({},),
        "rope_interleaved": (False,),
        "is_llama_config": (True,),
        "use_bidirectional_attention": (False,),
        "use_mrope": (False,),
        "lm_head_bias": (False,),
        "full_attn_mod": (1,),
        "interpolate_factor": (1,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "attention.causal": (True,),
        "expert_count": (0,),
        "expert_used_count": (0,),
    }
)

REFUSED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "expert_count"),
        "mixtures of experts are not supported",
    )
    | {
        "quantization_config": "weights quantised in this way are not read; use the original weights, or a GGUF file",
        "attn_logit_softcapping": "no released model of this family caps attention scores",
        "alibi": "position by ALiBi is not supported",
    }
)

# The shell around the text decoder's part of a config that also describes other parts.
_SHELL = frozenset(
    {
        *("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"),
        *("boi_token_id", "eoi_token_id", "image_token_id", "tie_word_embeddings"),
    }
)
_HEADED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

_GGUF_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "value_length",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attention.scale": "attention_scale",
    "rope.dimension_count": "rope_dim",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}
_GGUF_ROPE_KEYS = {
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
_ROPE_TENSORS = {
    "rope_freqs.weight": ("freq_factors", "freq_factors"),
    "rope_factors_short.weight": ("longrope", "short_factor"),
    "rope_factors_long.weight": ("longrope", "long_factor"),
}


@dataclass(frozen=True, slots=True)
class Translation:
    """A model's settings under one vocabulary, and how its tensors are named.

    consumed  tensors that were read as settings
    """

    family: Family
    settings: Settings
    names: NameMap
    notes: tuple[str, ...] = ()
    consumed: frozenset[str] = frozenset()


def translate(source: ModelSource) -> Translation:
    """Raises `UnsupportedModelError` naming the key when no family is known or the settings are refused at sight."""
    translation = _from_gguf(source) if source.kind == "gguf" else _from_config(source)
    for key, why in REFUSED.items():
        if key in translation.settings and translation.settings.raw(key) not in (0, False):
            raise translation.settings.refuse(key, why)
    return translation


def finish(settings: Settings) -> None:
    """Refuses every setting that nobody read and nobody can explain away."""
    settings.finish(IGNORED, ONLY)


def _from_config(source: ModelSource) -> Translation:
    path = source.path / "config.json"
    shell = Settings(path, source.config)
    kind = shell.text("model_type")
    family = next((f for f in FAMILIES if kind in f.model_types), None)
    if family is None:
        raise shell.refuse("model_type", _unknown(kind, [name for f in FAMILIES for name in f.model_types]))
    for name in shell.texts("architectures") or ():
        if not name.endswith(_HEADED):
            raise shell.refuse("architectures", f"{name} is not a language model with a head for tokens")
    part = family.model_types[kind]
    values: Mapping[str, object] = source.config
    notes: tuple[str, ...] = ()
    prefix = ""
    if part:
        values, prefix = _decoder_part(shell, source.config, part), f"{part}."
        notes = ("only the part that reads and writes text is run",)
    shown = {ours: prefix + theirs for theirs, ours in family.renames.items() if theirs in values}
    renamed = {family.renames.get(key, key): value for key, value in values.items()}
    defaults = {**family.defaults, **family.config_defaults, "vocab_size": _embedding_rows(source, family.config_names)}
    settings = Settings(path, {**defaults, **renamed}, shown, prefix)
    for key in ("model_type", "architectures"):
        settings.raw(key)
    return Translation(family, settings, family.config_names, notes)


def _decoder_part(shell: Settings, config: Mapping[str, object], part: str) -> Mapping[str, object]:
    """The text decoder's settings out of a config that also describes other parts."""
    text = config.get(part)
    if not isinstance(text, Mapping):
        raise shell.wrong(part, "missing, or not an object")
    shell.finish({**IGNORED, **dict.fromkeys(_SHELL, "of the shell"), part: "read by itself"}, ONLY)
    tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    return {**tied, **text}


def _from_gguf(source: ModelSource) -> Translation:
    path, metadata = source.path, source.metadata
    if metadata.get_str("general.type", "model") != "model":
        raise UnsupportedModelError(path, "general.type", f"{metadata['general.type']!r} is not a whole model")
    arch = metadata.get_str("general.architecture")
    family = next((f for f in FAMILIES if arch in f.gguf), None)
    if family is None:
        raise UnsupportedModelError(path, "general.architecture", _unknown(arch, [n for f in FAMILIES for n in f.gguf]))
    values: dict[str, object] = {}
    shown: dict[str, str] = {"rope_scaling": f"{arch}.rope.scaling"}
    rope: dict[str, object] = {}
    for full, value in metadata.items():
        if not full.startswith(f"{arch}."):
            continue  # the format keeps all of a model's own settings under its architecture's name
        key = full.removeprefix(f"{arch}.")
        if key.startswith("rope.scaling."):
            part = key.removeprefix("rope.scaling.")
            rope[_GGUF_ROPE_KEYS.get(part, part)] = value
        else:
            ours = _GGUF_KEYS.get(key, key)
            values[ours], shown[ours] = value, full
    consumed = _read_rope(source, rope)
    if rope:
        values["rope_scaling"] = rope
    _read_pattern(values)
    tensors = source.tensors
    values["tie_word_embeddings"] = "output.weight" not in tensors
    values["attention_bias"] = bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & set(tensors))
    values["attention_out_bias"] = "blk.0.attn_output.bias" in tensors
    values["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    values["vocab_size"] = values.get("vocab_size") or _embedding_rows(source, family.gguf_names)
    return Translation(
        family, Settings(path, {**family.defaults, **values}, shown, f"{arch}."), family.gguf_names, (), consumed
    )


def _read_rope(source: ModelSource, rope: dict[str, object]) -> frozenset[str]:
    """Completes GGUF's rope settings from the tensors that hold factors; returns those tensors' names."""
    rope.pop("finetuned", None)  # whether the model was trained on the longer context: nothing to compute
    if rope.get("type") == "none":
        rope["type"] = "default"
    if "type" not in rope and "factor" in rope:
        rope["type"] = "linear"
    found = []
    for name, (kind, key) in _ROPE_TENSORS.items():
        if name in source.tensors:
            tensor = source.tensors[name]
            if len(tensor.shape) != 1:
                raise ModelFileError(source.path, name, f"tensor has shape {tensor.shape}, expected a vector")
            rope["type"], rope[key] = kind, tensor.float32().tolist()
            found.append(name)
    return frozenset(found)


def _read_pattern(values: dict[str, object]) -> None:
    """A pattern of sliding layers is a period, or a list of booleans, which config.json would call layer_types."""
    pattern = values.get("sliding_window_pattern")
    if pattern is None or isinstance(pattern, (int, str, float)):
        return
    del values["sliding_window_pattern"]
    assert isinstance(pattern, Sequence)
    values["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]


def _embedding_rows(source: ModelSource, names: NameMap) -> int | None:
    """The size of the vocabulary as the embedding table has it, for files that do not say."""
    stem = names.shared[Role.EMBED].stem
    found = next((f"{p}{stem}.weight" for p in names.prefixes if f"{p}{stem}.weight" in source.tensors), None)
    return None if found is None else source.tensors[found].shape[0]


def _unknown(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; the nearest is {near[0]}" if near else ""
    return f"unknown family {name[:60]!r}; known are {', '.join(known)}{hint}"
