"""OpenAI's bodies to `Ask`.

Knows: what each field means for sampling and prompts. Does not know: bytes of answers, the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from legato.core.request import SamplingParams
from legato.errors import RequestError
from legato.server.ask import Ask, Chat, Ids, Prompt, Text
from legato.server.jsonbody import parse
from legato.server.problems import Problem
from legato.server.protocols import Asked
from legato.server.protocols.openai.chat import ChatEncoder, ChatView
from legato.server.protocols.openai.completions import CompletionEncoder, CompletionView
from legato.server.protocols.openai.fields import IGNORED, REFUSED, ChatBody, Common, CompletionBody
from legato.server.protocols.openai.structured import grammar_of
from legato.server.protocols.openai.tooling import tools_of
from legato.server.service import Service

COMPLETION_MAX_TOKENS = 16  # the API's default for texts; conversations go on to the context's end
INCLUDED = ("receipt", "miss", "explain")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
TEMPLATE_VARIABLES = ("enable_thinking", "thinking", "reasoning_effort", "date_string", "custom_instructions")


def parse_chat(body: bytes, service: Service) -> Asked:
    """`POST /v1/chat/completions`."""
    asked, passed = parse(body, ChatBody, service.limits.depth, IGNORED, REFUSED)
    ask = chat_ask(asked, (*passed, *_unheard(asked, service)))
    view = ChatView(
        include_usage=_option(asked, "include_usage"),
        continuous_usage=_option(asked, "continuous_usage_stats"),
        token_ids=bool(asked.return_token_ids),
        tokens_as_ids=bool(asked.return_tokens_as_token_ids),
        step_times=bool(asked.timings_per_token),
    )
    return Asked(ask, lambda stream: ChatEncoder(stream, view))


def chat_ask(asked: ChatBody, passed: tuple[str, ...] = ()) -> Ask:
    """What a conversation in OpenAI's fields asks for; other protocols put theirs into these fields first."""
    if asked.modalities is not None and asked.modalities != ["text"]:
        raise RequestError("modalities", asked.modalities, '["text"]')
    _refuse_true(asked.continue_final_message, "continue_final_message", "send the text to /v1/completions")
    _refuse_true(asked.add_special_tokens, "add_special_tokens", "the template writes the start token")
    limit = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    top = asked.top_logprobs
    if top is not None and not asked.logprobs:
        raise RequestError("top_logprobs", top, "left out unless logprobs is true")
    params = _params(
        asked,
        {"max_tokens": limit, "logprobs": "top_logprobs"},
        max_tokens=getattr(asked, limit),
        logprobs=(top or 0) if asked.logprobs else None,
        temperature=1.0 if asked.temperature is None else asked.temperature,
    )
    prompt = Chat(
        asked.messages,
        add_generation_prompt=asked.add_generation_prompt is not False,
        variables=effort_variables(asked.reasoning_effort, "reasoning_effort") | _variables(asked.chat_template_kwargs),
    )
    return replace(_ask(asked, (prompt,), params, passed), tools=tools_of(asked))


def parse_completion(body: bytes, service: Service) -> Asked:
    """`POST /v1/completions`."""
    asked, passed = parse(body, CompletionBody, service.limits.depth, IGNORED, REFUSED)
    if asked.suffix:
        text = "this model does not fill in the middle; leave suffix out"
        raise Problem(400, f"suffix is not supported: {text}", param="suffix", code="unsupported_parameter")
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise RequestError("best_of", asked.best_of, f"the same as n ({asked.n or 1})", "ask for n and choose yourself")
    echo, max_tokens = bool(asked.echo), COMPLETION_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    only_echo = echo and max_tokens == 0
    params = _params(
        asked,
        {},
        max_tokens=1 if only_echo else max_tokens,
        logprobs=asked.logprobs,
        prompt_logprobs=asked.logprobs if echo and asked.prompt_logprobs is None else asked.prompt_logprobs,
        temperature=1.0 if asked.temperature is None else asked.temperature,
    )
    prompts = tuple(_prompts(asked.prompt, asked.add_special_tokens is not False, service.model.vocab_size))
    view = CompletionView(
        include_usage=_option(asked, "include_usage"),
        continuous_usage=_option(asked, "continuous_usage_stats"),
        token_ids=bool(asked.return_token_ids),
        tokens_as_ids=bool(asked.return_tokens_as_token_ids),
        prompt_logprobs=asked.prompt_logprobs is not None,
        echo=echo,
        only_echo=only_echo,
    )
    return Asked(_ask(asked, prompts, params, passed), lambda stream: CompletionEncoder(stream, view))


def _ask(body: Common, prompts: tuple[Prompt, ...], params: SamplingParams, passed: tuple[str, ...]) -> Ask:
    keep = body.truncate_prompt_tokens
    if keep is not None and keep < 1:
        raise RequestError("truncate_prompt_tokens", keep, "at least 1 token")
    return Ask(
        prompts=prompts,
        params=params,
        model=body.model or "",
        stream=bool(body.stream),
        skip_special=body.skip_special_tokens is not False,
        include_stop=bool(body.include_stop_str_in_output),
        truncate=keep,
        priority=body.priority or 0,
        salt=body.cache_salt or "",
        deadline_ms=body.deadline_ms,
        grammar_field=grammar_of(body)[1],
        include=_include(body.include or ()),
        ignored=passed,
    )


def _params(body: Common, names: Mapping[str, str], **chosen: Any) -> SamplingParams:
    """Sampling as asked; `names` gives fields the names that the client used, for messages."""
    stop = body.stop
    given: dict[str, Any] = {
        "top_p": body.top_p,
        "top_k": None if body.top_k == -1 else body.top_k,  # -1 is "off" elsewhere
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": None if body.logit_bias is None else _biases(body.logit_bias),
        "seed": body.seed,
        "min_tokens": body.min_tokens,
        "stop": (stop,) if isinstance(stop, str) else stop,
        "stop_token_ids": body.stop_token_ids,
        "ignore_eos": body.ignore_eos,
        "n": body.n,
        "prompt_logprobs": body.prompt_logprobs,
        "grammar": grammar_of(body)[0],
        **chosen,
    }
    try:
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})
    except RequestError as error:
        if error.field in names:
            raise RequestError(names[error.field], error.value, error.allowed, error.fix) from None
        raise


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 11):
            raise RequestError("logit_bias", name, 'token ids as keys, such as {"42": -5}')
        biases[int(name)] = bias
    return biases


def effort_variables(effort: str | None, field: str) -> dict[str, Any]:
    """Variables that templates of models that think look at. `field` names the effort in messages."""
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise RequestError(field, effort, f"one of {', '.join(EFFORTS)}")
    if effort in ("none", "minimal"):
        return {"enable_thinking": False}
    return {"enable_thinking": True, "reasoning_effort": effort}


def _unheard(asked: ChatBody, service: Service) -> tuple[str, ...]:
    """An effort that the model's template does not ask for does nothing."""
    template = service.model.template
    source = template.source if template is not None else ""
    heard = any(name in source for name in ("enable_thinking", "reasoning_effort"))
    return () if heard or asked.reasoning_effort is None else ("reasoning_effort",)


def _variables(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those that templates are known to read; others could change what the template does with the rest."""
    for name in given or ():
        if name not in TEMPLATE_VARIABLES:
            raise RequestError("chat_template_kwargs", name, f"any of {', '.join(TEMPLATE_VARIABLES)}")
    return dict(given or {})


def _prompts(given: str | list[Any], add_special: bool, vocab_size: int) -> list[Prompt]:
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    if isinstance(given, str):
        return [Text(given, add_special)]
    if not given:
        raise RequestError("prompt", given, "at least one text or token id")
    if all(type(item) is int for item in given):
        return [_ids(given, "prompt", vocab_size)]
    prompts: list[Prompt] = []
    for i, item in enumerate(given):
        if isinstance(item, str):
            prompts.append(Text(item, add_special))
        elif isinstance(item, list) and item and all(type(t) is int for t in item):
            prompts.append(_ids(item, f"prompt[{i}]", vocab_size))
        else:
            allowed = "a text, a list of texts, token ids, or lists of token ids, none of them empty"
            raise RequestError(f"prompt[{i}]", item, allowed)
    if len({type(prompt) for prompt in prompts}) > 1:
        raise RequestError("prompt", "...", "texts only or token ids only")
    return prompts


def _ids(given: list[int], name: str, vocab_size: int) -> Ids:
    for worst in (min(given), max(given)):
        if not 0 <= worst < vocab_size:
            raise RequestError(name, worst, f"token ids from 0 to {vocab_size - 1}")
    return Ids(given)


def _include(given: Sequence[str]) -> frozenset[str]:
    for name in given:
        if name not in INCLUDED:
            raise RequestError("include", name, f"any of {', '.join(INCLUDED)}")
    return frozenset(given)


def _option(body: Common, name: str) -> bool:
    options = body.stream_options
    if options is not None and not body.stream:
        raise RequestError("stream_options", "...", "left out unless stream is true")
    return options is not None and bool(getattr(options, name))


def _refuse_true(value: bool | None, name: str, fix: str) -> None:
    if value:
        raise Problem(400, f"{name} is not supported: {fix}", param=name, code="unsupported_parameter")
