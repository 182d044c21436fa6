"""The fields of OpenAI's two bodies, with the extras that servers like this one share.

Knows: names and types; which fields do nothing here, and which are refused because ignoring them would give a wrong
answer. Does not know: ranges (SamplingParams and Request check those), meanings.
"""

from __future__ import annotations

from typing import Any

import msgspec

IGNORED = frozenset(
    {
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "metadata",
        "store", "service_tier", "prediction", "verbosity", "moderation", "reasoning_effort",
        "session_id", "stream_interval", "request_id",
    }
)  # fmt: skip
"""These may change speed, bookkeeping or style elsewhere; an answer without them is still a right answer."""

_SAMPLING = "the sampler has no such rule; use logit_bias"
_CONSTRAINT = "use response_format or structured_outputs"
REFUSED = {
    "audio": "answers are text",
    "web_search_options": "nothing is fetched from the web",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "bad_words": _SAMPLING,
    "allowed_token_ids": _SAMPLING,
    "logprob_token_ids": "use logprobs with up to 20 likeliest tokens",
    "thinking_token_budget": "use max_completion_tokens",
    "kv_transfer_params": "keys and values do not leave this server",
    "chat_template": "only the model's own template is run",
    "documents": "put them into a message",
    "prompt_embeds": "send text or token ids",
    "use_beam_search": "use n with a temperature",
    "grammar": _CONSTRAINT,
    "json_schema": _CONSTRAINT,
}


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Common(msgspec.Struct):
    """What both bodies have."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    priority: int | None = None
    cache_salt: str | None = None
    deadline_ms: float | None = None
    include: list[str] | None = None


class ChatBody(Common, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    timings_per_token: bool | None = None


class CompletionBody(Common, kw_only=True):
    """`POST /v1/completions`. `prompt`: a text, token ids, or a list of either."""

    prompt: str | list[Any]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
