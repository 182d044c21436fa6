"""Presets of models: their counts are what their pages state, and what transformers builds of the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from config_specs import spec_of

from legato.errors import ModelFileError, UnsupportedModelError, UsageError
from legato.measure import cost
from legato.measure.config_shape import describe_config
from legato.measure.presets import PRESETS, Preset, find_preset, unknown_preset
from legato.measure.shape import Role, shape_of

EACH = pytest.mark.parametrize("preset", PRESETS, ids=[p.name for p in PRESETS])


@EACH
def test_parameters_are_what_the_page_states(preset: Preset) -> None:
    counted = preset.describe().shape.parameters / 1e9
    assert counted == pytest.approx(preset.parameters, rel=2e-6)


@pytest.mark.parametrize(
    ("name", "billions"), [("deepseek-v3", 36.6), ("gpt-oss-20b", 3.6), ("gpt-oss-120b", 5.1), ("qwen3-30b-a3b", 3.0)]
)
def test_active_parameters_are_what_the_page_states(name: str, billions: float) -> None:
    preset = find_preset(name)
    assert preset is not None
    assert preset.describe().shape.active_parameters / 1e9 == pytest.approx(billions, abs=0.05)


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama-3.1-70b", 327_680),
        ("llama-3.1-8b", 131_072),
        ("deepseek-v3", 61 * 576 * 2),  # the report's 70 KB a token
        ("gemma-3-1b", 26 * 2 * 256 * 2),
        ("gpt2-medium", 24 * 2 * 1024 * 2),
    ],
)
def test_bytes_kept_for_a_token(name: str, bytes_per_token: int) -> None:
    preset = find_preset(name)
    assert preset is not None
    assert cost.kv_bytes_per_token(preset.describe().shape, "bf16") == bytes_per_token


def test_a_large_models_long_context_is_39_gib() -> None:
    preset = find_preset("llama-3.1-70b")
    assert preset is not None
    total = 128_000 * cost.kv_bytes_per_token(preset.describe().shape, "bf16")
    assert total == 41_943_040_000 and f"{total / 2**30:.2f}" == "39.06"


@pytest.mark.parametrize(("name", "gigabytes"), [("gpt-oss-20b", 13.76), ("gpt-oss-120b", 65.25), ("phi-4", 29.32)])
def test_published_files_are_as_large_as_counted(name: str, gigabytes: float) -> None:
    preset = find_preset(name)
    assert preset is not None
    found = preset.describe()
    assert cost.stored_weight_bytes(found.shape, found.bits, found.vector_bits) / 1e9 == pytest.approx(gigabytes, 2e-3)


@pytest.mark.slow
@EACH
def test_transformers_builds_as_many_parameters(preset: Preset) -> None:
    """Layers are alike within two kinds at most, so four are built of each model and compared, without memory."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = {k: v for k, v in preset.config.items() if k not in ("quantization_config", "torch_dtype")}
    config["n_layer" if preset.config["model_type"] == "gpt2" else "num_hidden_layers"] = 4
    kind = str(config.pop("model_type"))
    made = transformers.AutoConfig.for_model(kind, **config)
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(made)
    expected = sum(p.numel() for p in built.parameters())
    assert describe_config("x", {**config, "model_type": kind}).shape.parameters == expected


RUNNABLE = [
    p for p in PRESETS if p.config["model_type"] in ("llama", "mistral", "qwen3", "gemma3_text", "phi3", "gpt2")
]


@pytest.mark.parametrize("preset", RUNNABLE, ids=[p.name for p in RUNNABLE])
def test_counting_agrees_with_running(preset: Preset) -> None:
    """The settings' two readers: one for what is run, one for what is counted."""
    old = preset.config["model_type"] == "gpt2"
    used = {"layer_norm_epsilon": 1e-5} if old else {"rms_norm_eps": 1e-6, "rope_theta": 1e4}
    spec = spec_of({**preset.config, **used})
    counted = preset.describe().shape
    assert replace(shape_of(spec), family="") == replace(counted, family="")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Llama-3.1-70B", "llama-3.1-70b"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("llama3.1_8b", "llama-3.1-8b"),
        ("hf:Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("gemma-3-27b-it", "gemma-3-27b"),
        ("GPT_OSS_20B", "gpt-oss-20b"),
        ("mistral-7b-instruct-v0.3", "mistral-7b"),
    ],
)
def test_names_are_free_in_what_does_not_matter(name: str, meant: str) -> None:
    preset = find_preset(name)
    assert preset is not None and preset.name == meant


def test_names_are_their_own() -> None:
    for preset in PRESETS:
        assert find_preset(preset.name) is preset and find_preset(preset.page) is preset


def test_an_unknown_name_gets_near_ones_and_all() -> None:
    assert find_preset("llama-3.1-71b") is None
    error = unknown_preset("llama-3.1-71b")
    assert isinstance(error, UsageError) and "\n" not in str(error)
    assert "did you mean llama-3.1-70b" in str(error) and "phi-4" in str(error)
    assert "did you mean" not in str(unknown_preset("zzzzzz"))
    assert len(str(unknown_preset("x" * 5000))) < 700


# --- settings of any model ---

SMALL: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}
MOE = {**SMALL, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    "missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
)
def test_a_missing_setting_is_named(missing: str) -> None:
    config = {key: value for key, value in SMALL.items() if key != missing}
    with pytest.raises(ModelFileError, match=rf"^config\.json: {missing}: missing") as caught:
        describe_config("config.json", config)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": "wide"}, "hidden_size: 'wide' is not a whole number"),
        ({"hidden_size": -1}, "hidden_size: -1 is not a whole number"),
        ({"hidden_size": True}, "hidden_size: True is not"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is not a whole number from 1 to 1000"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide 4"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads: 5 does not divide 64"),
        ({"num_experts": 4}, "num_experts_per_tok: missing"),
        ({"num_experts": 4, "num_experts_per_tok": 9}, "num_experts_per_tok: 9 is not a whole number from 1 to 4"),
        ({"kv_lora_rank": 32}, "qk_rope_head_dim: missing"),
        ({"layer_types": ["full_attention"]}, "layer_types: names 1 layers, but there are 2"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_window: missing"),
        ({"layer_types": "full"}, "layer_types: 'full' is not a list"),
        ({"mlp_only_layers": 3, **MOE}, "mlp_only_layers: is not a list"),
        ({"text_config": 3}, "text_config: 3 is not an object"),
        ({"text_config": {"model_type": "gemma3_text", "hidden_size": 0}}, "text_config.hidden_size: 0 is not"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: 'yes' is not true or false"),
        ({"model_type": 5}, "model_type: 5 is not a string"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        describe_config("config.json", {**SMALL, **change})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"mamba_d_state": 16},
        {"is_encoder_decoder": True},
        {"layer_types": ["linear_attention", "full_attention"]},
        {"quantization_config": {"quant_method": "newest"}},
    ],
)
def test_what_would_be_counted_wrongly_is_refused(change: Mapping[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"^config\.json: "):
        describe_config("config.json", {**SMALL, **change})


def test_a_family_nobody_knows_is_counted_by_its_sizes_and_says_so() -> None:
    known, strange = (describe_config("x", {**SMALL, "model_type": kind}) for kind in ("llama", "brand_new"))
    assert strange.shape.runs == known.shape.runs
    assert known.notes == () and "brand_new" in strange.notes[0]


@pytest.mark.parametrize(
    ("quantization", "layer_bits", "head_bits", "word"),
    [
        (None, 16.0, 16.0, "bf16"),
        ({"quant_method": "fp8"}, 8.0 + 32 / 128**2, 16.0, "fp8"),
        ({"quant_method": "mxfp4"}, 16.0, 16.0, "mxfp4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.15625, 16.0, "gptq int4"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, 4.3125, 16.0, "awq int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8.0, 16.0, "bitsandbytes int8"),
    ],
)
def test_quantised_as_published(quantization: object, layer_bits: float, head_bits: float, word: str) -> None:
    config = {**SMALL, "torch_dtype": "bfloat16", "quantization_config": quantization}
    found = describe_config("x", config)
    assert (found.bits[Role.QKV], found.bits[Role.HEAD], found.weights) == (layer_bits, head_bits, word)


def test_every_preset_is_plain_data() -> None:
    for preset in PRESETS:
        assert json.loads(json.dumps(dict(preset.config))) == preset.config
