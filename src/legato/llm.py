"""`LLM`: the Python door. Prompts in, completions out; several at once advance together.

Knows: prompts in all their forms, requests, receipts. Does not know: how a model is loaded (`assemble`), how the
engine works, terminals.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard, Unpack

import numpy as np

from legato import __version__
from legato.answers import Answer
from legato.assemble import Assembly, assemble, model_name
from legato.completion import Completion, Delta, Receipt
from legato.config import Config
from legato.core.request import Request, SamplingParams
from legato.core.sequence import FinishReason
from legato.core.sequence import Sequence as EngineSequence
from legato.errors import CapacityError, EngineError, RequestError, UsageError
from legato.interrupt import no_interrupt
from legato.kernels.ops import FloatArray
from legato.measure.step_time import Load
from legato.measure.visit import Visit
from legato.text.chat import encode_chat
from legato.text.stream import TextStream
from legato.text.template import checked_messages
from legato.weights.hub import Report, Silent
from legato.weights.source import digest

if TYPE_CHECKING:  # loaded by what needs them: a plain answer does not
    from legato.measure.case import Setting
    from legato.measure.energy import Rates
    from legato.measure.explain import Explanation
    from legato.runtime.session_file import Fingerprint
    from legato.sessions import Sessions

Message = Mapping[str, Any]
Prompt = str | Sequence[int]

_NLL_CHUNK = 128  # rows of logits at once: 128 x 150,000 floats are 77 MB


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a text is predicted: `nll` is the mean negative log-likelihood in nats of `tokens` predicted tokens."""

    tokens: int
    nll: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll) if self.nll < 700 else math.inf


class Terms(TypedDict, total=False):
    """What a request may say beside its prompt and its sampling; see `Request`."""

    salt: str
    priority: int
    deadline_ms: float | None


class LLM:
    """A model with its engine. Use it as a context manager, or call `close`.

    model     built-in name, .gguf file, folder, or hf:ORG/NAME; None: LEGATO_MODEL, else smollm2-135m
    settings  any of `legato.config.SETTINGS` by name, such as threads=2, kv="int8", context=4096
    Raises a `LegatoError` for whatever cannot be loaded. Calls from several threads take turns step by step.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        config: Config | None = None,
        fetching: Report | None = None,
        loading: Report | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and (model is not None or settings):
            raise UsageError("give LLM either a config, or a model and settings")
        config = config or Config.resolve({"model": model, **settings})
        self.parts: Assembly = assemble(config, fetching or Silent(), loading or Silent())
        self.config = config
        self.name = model_name(config, self.parts.source)
        self.tokenizer = self.parts.tokenizer
        self.rates, notes = _rates(config)
        self.notes = (*self.parts.notes, *notes)
        self._digest: str | None = None
        self._setting: Setting | None = None
        self._answers: dict[str, Answer] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._closed = False
        self._sessions: Sessions | None = None

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self.parts.engine.scheduler.limits.context_length

    @property
    def has_template(self) -> bool:
        """Whether the model came with a chat template; without one, `render` joins the bare texts."""
        return self.parts.template is not None

    @property
    def digest(self) -> str:
        """Of the model's files; see `weights.source.digest`."""
        if self._digest is None:
            self._digest = digest(self.parts.source)
        return self._digest

    @property
    def setting(self) -> Setting:
        """What its requests run on, for explanations."""
        if self._setting is None:
            self._setting = self.parts.setting
        return self._setting

    @property
    def sessions(self) -> Sessions:
        """Named conversations on disk, in the folder of the setting `session_dir`."""
        if self._sessions is None:
            from legato.runtime.session_folder import SessionFolder
            from legato.sessions import Here, Sessions

            here = Here(self.name, self.parts.engine.scheduler.cache, self.parts.executor, self._fingerprint)
            folder = SessionFolder(self.config.session_dir, self.config.session_cap)
            self._sessions = Sessions(folder, here, self._lock, self._prefill_s)
        return self._sessions

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model's memory and threads; safe to call twice."""
        with self._lock:
            self._closed = True
            self._answers.clear()
            if self._sessions is not None:
                self._sessions.close()
            self.parts.executor.close()
            self.parts.runner.close()
            if self.parts.template is not None:
                self.parts.template.close()

    # -- answers --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **terms: Unpack[Terms],
    ) -> list[Completion]:
        """A completion for each prompt, in order; all of them run together.

        prompts  a text, a list of token ids, or a list of either; texts are used as they are (see `chat`)
        params   one for all, or one a prompt
        terms    salt, priority, deadline_ms; `OverloadedError` where a deadline cannot be met
        """
        asked = _listed(prompts)
        chosen = _one_each(params, len(asked))
        answers: list[Answer] = []
        try:
            for prompt, p in zip(asked, chosen, strict=True):
                visit = Visit()
                answers.append(self._submit(self._prompt_ids(prompt, visit), p, visit, **terms))
            while not all(answer.finished for answer in answers):
                self._pump()
        finally:
            for answer in answers:
                self._forget(answer)
        return [answer.completion(self._receipt(answer), self.rates) for answer in answers]

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, **template: Any) -> Completion:
        """The answer to a conversation: mappings with `role` and `content`; `template` goes to the chat template."""
        visit = Visit()
        ids = self._rendered(messages, visit, **template)
        return _finished(Stream(self, self._submit(ids, params or SamplingParams(), visit)))

    def stream(
        self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None, **terms: Unpack[Terms]
    ) -> Stream:
        """An iterator of deltas; closing it (or leaving its `with` block) aborts the request. `terms`: as above."""
        visit = Visit()
        ids = self._rendered(prompt, visit) if _is_conversation(prompt) else self._prompt_ids(prompt, visit)
        return Stream(self, self._submit(ids, params or SamplingParams(), visit, **terms))

    def render(self, messages: Sequence[Message], **template: Any) -> list[int]:
        """The token ids of a conversation, ready for the model's answer."""
        return self._rendered(messages, Visit(), **template)

    def _rendered(self, messages: Sequence[Message], visit: Visit, **template: Any) -> list[int]:
        if self.parts.template is None:
            ids = self.tokenizer.encode("\n".join(m.get("content") or "" for m in checked_messages(messages)))
            visit("tokenise")
            return ids
        return encode_chat(self.tokenizer, self.parts.template, messages, lap=visit, **template)

    def explain(
        self, asked: Completion | Prompt | Sequence[Message], params: SamplingParams | None = None
    ) -> Explanation:
        """Where a request's milliseconds went and what would help: of an answer, or of a prompt that is asked now.

        See `Completion.explain`.
        """
        done = asked if isinstance(asked, Completion) else _finished(self.stream(asked, params))
        return done.explain(self.setting)

    # -- measures -------------------------------------------------------------------------------------------------

    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """Raw logits (T, V) after each of T tokens; row t predicts token t + 1."""
        ids = self._prompt_ids(token_ids)
        with self._borrowed_pages(ids) as pages:
            return self.parts.runner.logits(ids, pages, self.config.max_step_tokens)

    def perplexity(
        self, token_ids: Sequence[int], context: int | None = None, report: Report | None = None
    ) -> Perplexity:
        """Of windows of `context` tokens, one after the other, each predicted from its own beginning only.

        The first token of a window is given, not predicted. Keys and values are kept as in any request.
        """
        ids = self._prompt_ids(token_ids)
        context = self.context_length if context is None else context
        if not 2 <= context <= self.context_length:
            raise RequestError("context", context, f"from 2 to {self.context_length} tokens")
        windows = [w for w in (ids[i : i + context] for i in range(0, len(ids), context)) if len(w) > 1]
        if not windows:
            raise RequestError("token_ids", len(ids), "at least 2 tokens", "give a longer text")
        report = report or Silent()
        total, tokens = 0.0, sum(len(window) - 1 for window in windows)
        report.start(tokens, "reading the text")
        try:
            for window in windows:
                with self._borrowed_pages(window, "cut it into shorter windows with --context") as pages:
                    total += self._window_nll(window, pages, report)
        finally:
            report.done()
        return Perplexity(tokens, total / tokens)

    def _window_nll(self, window: list[int], pages: list[int], report: Report) -> float:
        """The sum over all tokens but the first of -log p(token | those before)."""
        chunk = min(self.config.max_step_tokens, _NLL_CHUNK)
        total, at = 0.0, 1
        for rows in self.parts.runner.logit_chunks(window[:-1], pages, chunk):
            rows = rows[:, : self.parts.vocab_size]
            top = rows.max(axis=1)
            logs = top + np.log(np.exp(rows - top[:, None]).sum(axis=1, dtype=np.float64))
            total += float((logs - rows[np.arange(len(rows)), window[at : at + len(rows)]]).sum())
            at += len(rows)
            report.advance(len(rows))
        if not math.isfinite(total):
            raise EngineError("the model's logits are not finite")
        return total

    @contextmanager
    def _borrowed_pages(self, ids: Sequence[int], less: str = "give fewer tokens") -> Iterator[list[int]]:
        """Pages of the cache for `ids`, given back at the end; nobody else runs meanwhile."""
        if len(ids) > self.context_length:
            fix = f"give fewer tokens, or {self._longer()}"
            raise CapacityError("token_ids", len(ids), self.context_length, "tokens of context", fix)
        with self._lock:
            self._check_open()
            cache, seq = self.parts.engine.scheduler.cache, EngineSequence(-1, Request("logits", tuple(ids)))
            if not cache.grow(seq, len(ids)):
                room = cache.num_available * cache.page_size
                fix = f"{less}, or give more memory with --kv-memory"
                raise CapacityError("token_ids", len(ids), room, "tokens of cache that are free", fix)
            try:
                yield seq.pages
            finally:
                cache.release(seq)

    # -- the loop -------------------------------------------------------------------------------------------------

    def _submit(self, ids: list[int], params: SamplingParams, visit: Visit, **terms: Unpack[Terms]) -> Answer:
        if len(ids) + 1 > self.context_length:
            fix = f"shorten the prompt, or {self._longer()}"
            raise CapacityError("prompt tokens + 1", len(ids) + 1, self.context_length, "tokens of context", fix)
        params = params.seeded()
        visit("")
        self.parts.runner.admit(params)
        if params.grammar is not None:
            visit("grammar")
        with self._lock:
            self._check_open()
            request = Request(f"r{next(self._numbers)}", tuple(ids), params, **terms)
            engine = self.parts.engine
            answer = Answer(
                request,
                lambda: TextStream(self.tokenizer, params.stop, min_tokens=params.min_tokens, prompt_ids=ids),
                lambda index: engine.abort(request.request_id, index, FinishReason.STOP),
                visit,
            )
            answer.tokenizer = self.tokenizer
            if self.rates is not None:
                self.rates.mark()
            engine.add(request)
            self._answers[request.request_id] = answer
        return answer

    def _pump(self) -> None:
        """One step; its events go to their answers. Ctrl-C waits for the step to end."""
        with self._lock:
            self._check_open()
            with no_interrupt():
                events = self.parts.engine.step()
                for event in events:
                    if event.request_id in self._answers:
                        self._answers[event.request_id].feed(event)

    def _forget(self, answer: Answer) -> None:
        """Whatever state it is in: an unfinished request is aborted."""
        with self._lock:
            if self._answers.pop(answer.request.request_id, None) is not None and not answer.finished:
                self.parts.engine.abort(answer.request.request_id)

    def _abort(self, answer: Answer) -> None:
        """Ends a request and waits for the engine's word on it."""
        with self._lock:
            if self._closed or answer.request.request_id not in self._answers:
                return
            self.parts.engine.abort(answer.request.request_id)
            while not answer.finished:
                self._pump()
            del self._answers[answer.request.request_id]

    def _receipt(self, answer: Answer) -> Receipt:
        executor = self.parts.executor
        seed = answer.request.params.seed
        assert seed is not None
        return Receipt(
            self.name,
            executor.isa,
            executor.threads,
            str(self.parts.kv_format),
            seed,
            self.digest,
            self.config.weights,
            self.context_length,
        )

    def _fingerprint(self) -> Fingerprint:
        from legato.sessions import fingerprint_of

        parts = self.parts
        return fingerprint_of(
            digest=self.digest,
            spec=parts.spec,
            weights=self.config.weights,
            kv=str(parts.kv_format),
            executor=parts.executor,
            page_size=self.config.page_size,
            version=__version__,
        )

    def _prefill_s(self, start: int, end: int) -> float:
        """What computing prompt tokens [start, end) alone would take, as far as the engine has learnt."""
        size, model = self.config.max_step_tokens, self.parts.engine.model
        cuts = [*range(start, end, size), end]
        return sum(model.seconds(Load.of_rows(first, last)) for first, last in pairwise(cuts))

    def _prompt_ids(self, prompt: object, visit: Visit | None = None) -> list[int]:
        """Token ids of a text or a list of ids; refuses what is empty or neither."""
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("prompt", prompt, "text that is not empty")
            ids = self.tokenizer.encode(prompt)
            if visit is not None:
                visit("tokenise")
            return ids
        if isinstance(prompt, np.ndarray):
            prompt = prompt.tolist()
        if not isinstance(prompt, (list, tuple)):
            raise RequestError("prompt", prompt, "a text or a list of token ids")
        ids = [int(t) if isinstance(t, np.integer) else t for t in prompt]
        Request("check", tuple(ids)).check_vocab(self.parts.vocab_size)
        return ids

    def _longer(self) -> str:
        """How more tokens would fit: where a setting holds the context short, by that."""
        most, source = self.parts.spec.context_length, self.config.sources["context"]
        if self.context_length >= most:
            return "use a model with a longer context"
        return f"raise {'--context' if source == 'argument' else source} (the model has {most:,})"

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this LLM is closed; make a new one")


class Stream(Iterator[Delta]):
    """An answer as it comes. `completion` is whole once `finished`; after `close` it holds what there was."""

    def __init__(self, llm: LLM, answer: Answer) -> None:
        self._llm, self._answer = llm, answer
        self._rows_before = llm.parts.engine.ledger.total.prompt_tokens
        self._ready: list[Delta] = []

    @property
    def finished(self) -> bool:
        return self._answer.finished

    @property
    def started(self) -> bool:
        """Whether a first token has come."""
        return self._answer.started

    @property
    def num_prompt_tokens(self) -> int:
        return len(self._answer.request.prompt_ids)

    @property
    def num_computed_tokens(self) -> int:
        """Prompt tokens computed since this stream began (of all requests, where there are several)."""
        done = self._llm.parts.engine.ledger.total.prompt_tokens - self._rows_before
        return min(done, self.num_prompt_tokens)

    @property
    def completion(self) -> Completion:
        return self._answer.completion(self._llm._receipt(self._answer), self._llm.rates)

    def advance(self) -> list[Delta]:
        """At most one step of the engine, and what came of it, perhaps nothing."""
        if not self._answer.deltas and not self._answer.finished:
            self._llm._pump()
        if self._answer.finished:
            self._llm._forget(self._answer)
        return self._answer.take()

    def __next__(self) -> Delta:
        while not self._ready:
            if self._answer.finished and not self._answer.deltas:
                self._llm._forget(self._answer)
                raise StopIteration
            self._ready = self.advance()
        return self._ready.pop(0)

    def close(self) -> None:
        """Ends the request if it is still running; safe to call twice."""
        self._llm._abort(self._answer)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._llm._forget(self._answer)


def _rates(config: Config) -> tuple[Rates | None, list[str]]:
    """What bills are made with, and what to know about it; nothing is looked for where nobody asks for a bill."""
    if not config.energy and config.watts is None and config.price_per_hour is None:
        return None, []
    from legato.measure.energy import open_rates

    return open_rates(config.energy, config.watts, config.price_per_hour)


def _finished(stream: Stream) -> Completion:
    with stream:
        for _ in stream:
            pass
    return stream.completion


def _listed(prompts: object) -> list[object]:
    """One text or one list of ids becomes a list of one."""
    if isinstance(prompts, (str, np.ndarray)):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise RequestError("prompts", prompts, "a text, a list of token ids, or a list of either")
    if not prompts:
        raise RequestError("prompts", prompts, "at least one prompt that is not empty")
    if all(isinstance(p, (int, np.integer)) and not isinstance(p, bool) for p in prompts):
        return [prompts]
    return list(prompts)


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise RequestError("params", len(params), f"one SamplingParams, or one for each of {count} prompts")
    return list(params)


def _is_conversation(prompt: object) -> TypeGuard[Sequence[Message]]:
    return isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], Mapping)
