"""What is not understood is refused at the door: one line that names the setting or the tensor, and its value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import CONFIG, tensors, write
from hypothesis import given, settings
from hypothesis import strategies as st

from legato.errors import ModelFileError, UnsupportedModelError, UsageError
from legato.models import translate
from legato.models.families import FAMILIES
from legato.models.load import Blueprint, read_blueprint
from legato.weights.gguf_write import write_gguf
from legato.weights.source import open_model
from legato.weights.tensor import Tensor, WeightFormat

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}


def read(folder: Path, **changes: Any) -> Blueprint:
    """The plain folder with some settings changed; None takes one away."""
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    return read_blueprint(open_model(write(folder, config)))


def refused(error: pytest.ExceptionInfo[ModelFileError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message and error.value.exit_code == 3
    for word in words:
        assert word in message, message


def test_plain_folder_is_understood(tmp_path: Path) -> None:
    blueprint = read(tmp_path)
    assert blueprint.spec.num_layers == 2 and blueprint.notes == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "lama"}, ["model_type", "'lama'", "llama"]),
        ({"model_type": "mixtral"}, ["model_type", "'mixtral'", "mistral"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["architectures", "LlamaForSequenceClassification"]),
        ({"num_local_experts": 8}, ["num_local_experts", "mixtures of experts"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "quantised"]),
        ({"hidden_act": "relu6"}, ["hidden_act", "'relu6'", "silu"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope_scaling.type", "'dynamic'", "llama3"]),
        ({"rope_scaling": {"rope_type": "spiral"}}, ["rope_scaling.rope_type", "'spiral'"]),
        ({"rope_parameters": {"rope_type": "default", "wobble": 2}}, ["rope_parameters.wobble", "2"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "2 of 4"]),
        ({"residual_multiplier": 0.2}, ["residual_multiplier", "0.2", "unknown setting"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder", "True", "only False"]),
        ({"layer_types": ["full_attention", "linear_attention"]}, ["layer_types", "'linear_attention'"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_unsupported_settings_are_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        read(tmp_path, **changes)
    refused(error, "config.json", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": None}, ["model_type", "missing"]),
        ({"num_attention_heads": None}, ["num_attention_heads", "missing"]),
        ({"hidden_size": "wide"}, ["hidden_size", "'wide'"]),
        ({"hidden_size": 16.5}, ["hidden_size", "16.5"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "1000000000"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers", "-1"]),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, ["num_attention_heads", "5", "16"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps", "0"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "'yes'"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling", "'yarn'"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.factor", "missing"]),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1, 2]}},
            ["short_factor", "1 numbers", "expected 2"],
        ),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}, ["high_freq_factor"]),
        ({"rope_theta": 1}, ["rope_theta", "1"]),
        ({"rope_theta": 10**400}, ["rope_theta", "1000"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "1 layers"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["sliding_window"]),
        ({"head_dim": 3}, ["rope_dim", "3"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_senseless_settings_are_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelFileError) as error:
        read(tmp_path, **changes)
    refused(error, "config.json", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 33}, ["model.embed_tokens.weight", "(32, 16)", "(33, 16)"]),
        ({"intermediate_size": 60}, ["model.layers.0.mlp.up_proj.weight", "(64, 16)", "(60, 16)"]),
        ({"num_hidden_layers": 3}, ["model.layers.2.input_layernorm.weight", "missing", "(16,)"]),
        ({"num_hidden_layers": 1}, ["model.layers.1.input_layernorm.weight", "unknown tensor", "first of 9"]),
        ({"attention_bias": True}, ["model.layers.0.self_attn.q_proj.bias", "missing", "(16,)"]),
        ({"head_dim": 8}, ["model.layers.0.self_attn.q_proj.weight", "(16, 16)", "(32, 16)"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_tensors_that_do_not_fit_are_named_with_both_shapes(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelFileError) as error:
        read(tmp_path, **changes)
    refused(error, *words)


def test_missing_and_extra_tensors(tmp_path: Path) -> None:
    arrays = tensors()
    del arrays["lm_head.weight"]
    with pytest.raises(ModelFileError) as error:
        read_blueprint(open_model(write(tmp_path, CONFIG, arrays)))
    refused(error, "lm_head.weight", "missing", "(32, 16)")
    arrays = tensors() | {"model.layers.0.self_attn.q_norm.weight": np.ones(4, np.float32)}
    with pytest.raises(UnsupportedModelError) as error:
        read_blueprint(open_model(write(tmp_path, CONFIG, arrays)))
    refused(error, "model.layers.0.self_attn.q_norm.weight", "unknown tensor")


def test_tensors_with_a_known_reason_are_left_out_aloud(tmp_path: Path) -> None:
    arrays = tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    tied = dict(CONFIG) | {"tie_word_embeddings": True}
    notes = read_blueprint(open_model(write(tmp_path, tied, arrays))).notes
    assert len(notes) == 2 and all(note.startswith("1 tensor not used") for note in notes)


def test_context_beyond_the_models_is_refused(tmp_path: Path) -> None:
    source = open_model(write(tmp_path, CONFIG))
    assert read_blueprint(source, context=64).spec.context_length == 64
    with pytest.raises(UsageError, match=r"65.*64"):
        read_blueprint(source, context=65)


def gguf(path: Path, **changes: Any) -> Path:
    """A one-layer llama in GGUF; keys are given with __ for dots."""
    shapes = {"attn_norm": (16,), "attn_q": (16, 16), "attn_k": (16, 16), "attn_v": (16, 16), "attn_output": (16, 16)}
    shapes |= {"ffn_norm": (16,), "ffn_gate": (32, 16), "ffn_up": (32, 16), "ffn_down": (16, 32)}
    arrays = {f"blk.0.{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    arrays |= {"token_embd.weight": np.ones((8, 16), np.float32), "output_norm.weight": np.ones(16, np.float32)}
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 32,
        "llama.embedding_length": 16,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    write_gguf(
        path, metadata, [Tensor(n, a.shape, WeightFormat.F32, a.reshape(-1).view(np.uint8)) for n, a in arrays.items()]
    )
    return path


def test_plain_gguf_is_understood(tmp_path: Path) -> None:
    spec = read_blueprint(open_model(gguf(tmp_path / "m.gguf"))).spec
    assert spec.tied and spec.vocab_size == 8 and spec.layers[0].attention.num_kv_heads == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general__architecture": "lhama"}, ["general.architecture", "'lhama'", "llama"]),
        ({"general__type": "adapter"}, ["general.type", "adapter"]),
        ({"llama__expert_count": 8}, ["llama.expert_count", "mixtures of experts"]),
        ({"llama__attention__head_count_kv": [4]}, ["llama.attention.head_count_kv"]),
        ({"llama__attention__value_length": 8}, ["llama.attention.value_length", "4"]),
        ({"llama__rope__scaling__type": "spiral"}, ["llama.rope.scaling.type", "'spiral'"]),
        ({"llama__rope__scaling__factor": -1.0}, ["llama.rope.scaling.factor", "-1.0"]),
        ({"llama__rope__dimension_count": 2}, ["2 of 4"]),
        ({"llama__logit_scale": 0.5}, ["llama.logit_scale", "0.5"]),
        ({"llama__attention__causal": False}, ["llama.attention.causal", "only True"]),
        ({"llama__block_count": 2}, ["blk.1.attn_norm.weight", "missing"]),
        ({"llama__vocab_size": 9}, ["token_embd.weight", "(8, 16)", "(9, 16)"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_gguf_settings_are_refused_under_their_own_names(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ModelFileError) as error:
        read_blueprint(open_model(gguf(tmp_path / "m.gguf", **changes)))
    refused(error, "m.gguf", *words)


NUMBERS = st.one_of(
    st.integers(-2, 9), st.integers(-(10**400), 10**400), st.floats(allow_nan=False, allow_infinity=False)
)
ROPES = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["linear", "llama3", "yarn", "longrope", "default", "x"])},
    optional={
        **dict.fromkeys(["factor", "rope_theta", "low_freq_factor", "high_freq_factor", "beta_fast"], NUMBERS),
        **dict.fromkeys(["mscale", "mscale_all_dim", "partial_rotary_factor"], NUMBERS),
        "original_max_position_embeddings": NUMBERS,
        "short_factor": st.lists(NUMBERS, max_size=2),
        "long_factor": st.just([1, 2]),
        "truncate": st.booleans(),
    },
)
JUNK = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.lists(NUMBERS, max_size=3), ROPES, ROPES)
KEYS = sorted({*CONFIG, "head_dim", "sliding_window", "layer_types", "hidden_act"})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    key=st.one_of(st.sampled_from(KEYS), st.sampled_from(["rope_scaling", "rope_parameters"])),
    value=JUNK,
    family=st.sampled_from(sorted(f.name for f in FAMILIES)),
)
def test_any_junk_is_a_typed_error_or_a_model(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object, family: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "junk"
    folder.mkdir(exist_ok=True)
    config = {**CONFIG, "model_type": family, "architectures": None, key: value}
    try:
        read_blueprint(open_model(write(folder, config)))
    except ModelFileError as error:
        assert "\n" not in str(error)


def test_every_ignored_setting_has_a_reason() -> None:
    assert all(reason for reason in translate.IGNORED.values())
    assert not set(translate.IGNORED) & (set(translate.ONLY) | set(translate.REFUSED))


def test_family_names_are_at_home_in_one_file() -> None:
    """No other file of the package asks for a family by name."""
    root = Path(translate.__file__).parents[1]
    quoted = [f'"{name}"' for f in FAMILIES for name in (f.name, *f.model_types, *f.gguf)]
    for path in root.glob("models/*.py"):
        if path.name != "families.py":
            text = path.read_text()
            assert not [name for name in quoted if name in text], path.name
