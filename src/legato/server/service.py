"""`Service`: admission for every protocol, and the streams of answers that come of it.

Knows: limits of what is asked, the tokenizer and the template, who is in flight. Does not know: HTTP, JSON, the engine.

What is refused is refused by `begin`, before anything was sent: a field out of range, a model that is not here, a
full queue, a server that is loading or draining. After that an `AnswerStream` brings what each step brought.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from difflib import get_close_matches
from enum import StrEnum

from legato.answers import Answer
from legato.completion import Completion, Delta, Receipt
from legato.core.events import Event
from legato.core.plan import TokenLogprobs
from legato.core.request import Request
from legato.core.sequence import FinishReason
from legato.errors import EngineAwayError, LegatoError, OverloadedError, RequestError
from legato.measure.energy import Rates
from legato.measure.visit import Visit
from legato.server.ask import Ask, Chat, Prompt, Result
from legato.server.bridge import Bridge
from legato.server.limits import ServerLimits
from legato.server.meters import Meters
from legato.server.model import Model, Wall
from legato.server.problems import Problem, problem_of
from legato.server.prompts import prompt_ids
from legato.server.reading import AnswerReader, prepared, with_tools, without_thought
from legato.text.stream import TextStream

SALT = re.compile(r"[A-Za-z0-9_-]{1,128}")


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    ERROR = "error"


class AnswerStream:
    """The answers to one `Ask` as they come: `async for deltas in stream`, then `result()`.

    A delta's `index` is its choice. An empty list says that nothing came for a while: time for a sign of life.
    Ends when every answer has ended; raises `Problem` when the server itself has to stop.
    """

    def __init__(self, ask: Ask, answers: Sequence[Answer], service: Service) -> None:
        self.ask = ask
        self.answers = answers
        self.service = service
        self.aborted = False
        self.places = len(answers) * ask.params.n
        self._fault: Problem | None = None
        self._ready: list[Delta] = []
        self._silent = False
        self._waiter: asyncio.Future[None] | None = None
        self.names = frozenset(answer.request.request_id for answer in answers)
        self.begun = self.idle_since = service.clock()
        self.unread_since: float | None = None
        self.on_stall: Callable[[], None] = self.abort

    @property
    def finished(self) -> bool:
        return self.places == 0

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> list[Delta]:
        self._silent = False
        while not (self._ready or self._fault is not None or self.finished or self._silent):
            self._waiter = self.service.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._fault is not None:
            raise self._fault
        if not self._ready and self.finished:
            raise StopAsyncIteration
        taken, self._ready = self._ready, []
        self.unread_since = None
        self.idle_since = self.service.clock()
        return taken

    def take(self, prompt: int, deltas: list[Delta]) -> None:
        """What one answer's last event brought; `wake` tells the reader."""
        n = self.ask.params.n
        include = self.ask.include_stop
        if self.unread_since is None:
            self.unread_since = self.service.clock()
        for delta in deltas:
            if prompt:
                delta = replace(delta, index=prompt * n + delta.index)
            if include and isinstance(delta.stop_reason, str):
                delta = replace(delta, text=delta.text + delta.stop_reason)
            self._ready.append(delta)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def remind(self) -> None:
        """Has the reader told that nothing came for a while."""
        self._silent = True
        self.wake()

    def fail(self, fault: Problem) -> None:
        """Ends the stream for a reason of the server's own."""
        self._fault = self._fault or fault
        self.abort()
        self.wake()

    def abort(self) -> None:
        """Nobody wants the rest. Pages come free with the next step."""
        if not self.aborted:
            self.aborted = True
            for answer in self.answers:
                if not answer.finished:
                    self.service.bridge.abort(answer.request.request_id)

    def prompt_ids(self, prompt: int) -> Sequence[int]:
        return self.answers[prompt].request.prompt_ids

    def prompt_logprobs(self, prompt: int) -> list[TokenLogprobs] | None:
        return self.answers[prompt].prompt_logprobs

    def reader(self, prompt: int = 0) -> AnswerReader:
        """What tells thoughts and calls from text; one for each choice."""
        model = self.service.model
        template = model.template.source if model.template else None
        return AnswerReader(self.ask, template, self.prompt_ids(prompt), model.tokenizer)

    def result(self) -> Result:
        """What there is; whole once the stream has ended."""
        return Result([self._completion(answer) for answer in self.answers], self.service.model.setting)

    def _completion(self, answer: Answer) -> Completion:
        model, seed = self.service.model, answer.request.params.seed or 0
        receipt = Receipt(
            model.name, model.isa, model.threads, model.kv, seed, model.digest, model.weights, model.context_length
        )
        done = answer.completion(receipt, self.service.rates)
        if not self.ask.include_stop:
            return done
        outputs = [
            replace(o, text=o.text + o.stop_reason) if isinstance(o.stop_reason, str) else o for o in done.outputs
        ]
        return replace(done, outputs=outputs)


class Service:
    """One model behind one bridge. Lives on the event loop; only `encode` and what it calls run elsewhere."""

    def __init__(self, bridge: Bridge, limits: ServerLimits, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.bridge, self.limits, self.clock = bridge, limits, clock
        self.loop = asyncio.get_running_loop()
        self.state = State.LOADING
        self.problem = ""
        self._model: Model | None = None
        self._streams: dict[str, tuple[AnswerStream, int]] = {}
        self._places: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="encode")
        self._compilers = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self.many_tenants = False
        self.rates: Rates | None = None
        self.meters = Meters()
        self.vllm_metrics = False

    @property
    def model(self) -> Model:
        """The model; 503 while there is none."""
        if self._model is None:
            raise Problem(
                503, "the model is being loaded; /ready tells when it is there", code="loading", retry_after_s=1
            )
        return self._model

    @property
    def has_model(self) -> bool:
        return self._model is not None

    def ready(self, model: Model) -> None:
        self._model, self.state = model, State.READY

    def measured(self, wall: Wall) -> None:
        """What bounds the model's steps is known from now on."""
        self._model = replace(self.model, wall=wall)

    @property
    def num_places(self) -> int:
        """Answers that may be in flight: running, and waiting for their turn."""
        model = self.model
        queue = self.limits.queue if self.limits.queue is not None else 4 * model.max_seqs
        return model.max_seqs + queue

    @property
    def num_in_flight(self) -> int:
        """Answers that the engine still has to end."""
        return sum(self._places.values())

    def streams(self) -> list[AnswerStream]:
        """Of all requests in flight."""
        return list({id(stream): stream for stream, _ in self._streams.values()}.values())

    # -- admission ------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises a 503 unless new requests are taken."""
        if self.state is State.DRAINING:
            raise Problem(503, "the server is shutting down; try another one", code="draining", retry_after_s=5)
        if self.state is State.ERROR:
            raise Problem(503, "the engine has failed; the server has to be restarted", code="engine_error")
        if self.model and self.state is State.LOADING:
            text = "the engine is being started again; /ready tells when it is there"
            raise Problem(503, text, code="loading", retry_after_s=1)

    def check_model(self, name: str) -> None:
        """Raises a 404 for a model that is not the one here."""
        here = self.model.name
        if name and name != here:
            near = get_close_matches(name, [here], 1, 0.4)
            hint = f"did you mean {here!r}?" if near else f"this server has {here!r}"
            raise Problem(404, f"model {name[:120]!r} is not here; {hint}", param="model", code="model_not_found")

    async def begin(self, ask: Ask, tenant: str = "") -> AnswerStream:
        """Admits all of `ask` or raises why not: `Problem`, `RequestError`, `CapacityError`, `OverloadedError`."""
        try:
            return await self._begin(ask, tenant)
        except LegatoError as error:
            self.meters.refuse(error)
            raise

    async def _begin(self, ask: Ask, tenant: str) -> AnswerStream:
        self.check_open()
        self.check_model(ask.model)
        self._check(ask)
        wanted = len(ask.prompts) * ask.params.n
        self._check_room(wanted, tenant)
        self._places[tenant] = self._places.get(tenant, 0) + wanted
        stream: AnswerStream | None = None
        visits = [Visit(self.clock) for _ in ask.prompts]
        try:
            if ask.params.grammar is not None or ask.tools is not None or _has_calls(ask):
                ask = await self._prepared(ask)
                for visit in visits:
                    visit("grammar" if ask.params.grammar is not None else "")
            ids = await self.encode(ask.prompts, ask.truncate, visits)
            requests = [self._request(ask, self._without_thought(ask, one), tenant) for one in ids]
            pairs = zip(requests, visits, strict=True)
            stream = AnswerStream(ask, [self._answer(ask, request, visit) for request, visit in pairs], self)
            self._streams.update({request.request_id: (stream, i) for i, request in enumerate(requests)})
            self.check_open()
            if self.rates is not None:
                self.rates.mark()
            await self.bridge.submit(requests)
            for request in requests:
                most = self.model.context_length - len(request.prompt_ids)
                self.meters.asked(request.params.n, min(most, request.params.max_tokens or most))
        except BaseException:
            if stream is not None:  # a cancelled wait may have left it admitted
                stream.abort()
                for request in requests:
                    self._streams.pop(request.request_id, None)
            self._free(tenant, wanted if stream is None else stream.places)
            raise
        return stream

    async def _prepared(self, ask: Ask) -> Ask:
        """Tools told to the model, and the grammar compiled: beside the event loop, for it may take seconds."""
        model = self.model

        def work() -> Ask:
            template = model.template.source if model.template else None
            return prepared(ask, template, model.tokenizer, model.admit)

        return await self.loop.run_in_executor(self._compilers, work)

    def _without_thought(self, ask: Ask, ids: Sequence[int]) -> Sequence[int]:
        return ids if ask.params.grammar is None else without_thought(ask, ids, self.model.tokenizer)

    async def encode(
        self, prompts: Sequence[Prompt], truncate: int | None = None, visits: Sequence[Visit] = ()
    ) -> list[list[int]]:
        """Token ids of each prompt, worked out beside the event loop; `visits` are told what that took."""
        model = self.model

        def work() -> list[list[int]]:
            laps = visits or [Visit(self.clock) for _ in prompts]
            return [prompt_ids(model, prompt, truncate, lap) for prompt, lap in zip(prompts, laps, strict=True)]

        return await self.loop.run_in_executor(self._pool, work)

    async def count(self, ask: Ask) -> int:
        """Tokens of the first prompt, with all that `begin` would tell the model of tools."""
        model = self.model

        def work() -> int:
            fitted = with_tools(ask, model.template.source if model.template else None, model.tokenizer)
            return len(prompt_ids(model, fitted.prompts[0], ask.truncate))

        return await self.loop.run_in_executor(self._pool, work)

    async def aside(self, work: Callable[[], object]) -> object:
        """Runs `work` beside the event loop."""
        return await self.loop.run_in_executor(self._pool, work)

    def _check(self, ask: Ask) -> None:
        limits = self.limits
        if not 1 <= len(ask.prompts) <= limits.prompts:
            raise RequestError("prompt", len(ask.prompts), f"1 to {limits.prompts} prompts", "send several requests")
        for prompt in ask.prompts:
            if isinstance(prompt, Chat) and len(prompt.messages) > limits.messages:
                raise RequestError("messages", len(prompt.messages), f"at most {limits.messages} messages")
        for stop in ask.params.stop:
            if len(stop.encode("utf-8", "surrogatepass")) > limits.stop_bytes:
                raise RequestError("stop", stop, f"strings of at most {limits.stop_bytes} bytes")
        if ask.salt and not SALT.fullmatch(ask.salt):
            raise RequestError("cache_salt", ask.salt, "1 to 128 letters, digits, - and _")
        if "miss" in ask.include and self.many_tenants:
            raise RequestError("include", "miss", "left out where several keys share one cache")
        if "explain" in ask.include and self.model.setting is None:
            raise RequestError("include", "explain", "left out: this engine does not say what it runs on")

    def _check_room(self, wanted: int, tenant: str) -> None:
        places, taken = self.num_places, self.num_in_flight
        if wanted > places:
            raise RequestError("n", wanted, f"at most {places} answers in one request", "ask for fewer at once")
        snapshot = self.bridge.snapshot()
        wait_s = min(60.0, max(1.0, snapshot.wait_s if snapshot is not None else 0.0))
        if taken + wanted > places:
            raise OverloadedError(f"the queue is full: {taken} of {places} places are taken", wait_s, "queue")
        share = max(self.model.max_seqs, int(places * self.limits.tenant_share))
        own = self._places.get(tenant, 0)
        if self.many_tenants and own and own + wanted > share:
            raise OverloadedError(f"this key has {own} of the {share} places it may take", wait_s, "key")

    def _request(self, ask: Ask, ids: Sequence[int], tenant: str) -> Request:
        params = ask.params.seeded()
        name = f"r{next(self._numbers)}"
        # Among several keys nobody learns, from cached_tokens or the time to a first token, what another has sent.
        salt = f"{tenant} {ask.salt}" if self.many_tenants else ask.salt
        return Request(name, tuple(ids), params, ask.priority, salt, tenant, ask.deadline_ms)

    def _answer(self, ask: Ask, request: Request, visit: Visit) -> Answer:
        tokenizer, params, ids = self.model.tokenizer, request.params, request.prompt_ids
        answer = Answer(
            request,
            lambda: TextStream(
                tokenizer, params.stop, skip_special=ask.skip_special, min_tokens=params.min_tokens, prompt_ids=ids
            ),
            lambda index: self.bridge.abort(request.request_id, index, FinishReason.STOP),
            visit,
        )
        answer.tells_miss = not self.many_tenants  # it would spell out what others have sent
        if {"miss", "explain"} & ask.include:
            answer.tokenizer = tokenizer
        return answer

    # -- what the engine tells ------------------------------------------------------------------------------------

    def deliver(self, events: list[Event]) -> None:
        """Feeds one step's events to their streams, then wakes each of those once."""
        self.meters.step(events, self.clock())
        touched: dict[int, AnswerStream] = {}
        for event in events:
            found = self._streams.get(event.request_id)
            if found is None:
                continue
            stream, prompt = found
            answer = stream.answers[prompt]
            answer.feed(event)
            if answer.deltas:
                stream.take(prompt, answer.take())
            if event.finish_reason is not None:
                self._ended(stream, answer, event)
            touched[id(stream)] = stream
        for stream in touched.values():
            stream.wake()

    def _ended(self, stream: AnswerStream, answer: Answer, event: Event) -> None:
        stream.places -= 1
        self._free(answer.request.tenant, 1)
        if answer.finished:
            del self._streams[answer.request.request_id]

    def engine_lost(self, away: EngineAwayError) -> None:
        """Every stream ends in an error; new ones are taken when another engine is there."""
        if self.state is State.READY:
            self.state = State.LOADING
        self._fail_all(problem_of(away))

    def engine_back(self, model: Model) -> None:
        self._model = replace(model, created=self.model.created, wall=self.model.wall)
        if self.state is State.LOADING:
            self.state = State.READY

    def engine_ended(self, error: LegatoError) -> None:
        """Every stream ends in an error; no new ones are taken."""
        if self.state is not State.DRAINING:
            self.state, self.problem = State.ERROR, str(error)
        text = "the engine ended before this answer was whole"
        self._fail_all(Problem(500, text, code="engine_error", retry_after_s=5))

    def _fail_all(self, fault: Problem) -> None:
        self.meters.forget()
        for stream in self.streams():
            stream.fail(fault)
            self._free(stream.answers[0].request.tenant, stream.places)
            stream.places = 0  # `begin` may still wait for its admission, and gives nothing back then
        self._streams.clear()

    def _free(self, tenant: str, places: int) -> None:
        left = self._places.get(tenant, 0) - places
        if left > 0:
            self._places[tenant] = left
        else:
            self._places.pop(tenant, None)

    # -- time -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called every second or so: silent streams say that they live, those that nobody reads are dropped."""
        now = self.clock()
        self._look()
        snapshot = self.bridge.snapshot()
        for stream in self.streams():
            late = now - stream.begun >= self.limits.queue_s
            if late and snapshot is not None and stream.names <= snapshot.unstarted:
                text = f"this request waited {self.limits.queue_s:g} s for its turn"
                stream.fail(Problem(503, text, code="queue_timeout", retry_after_s=max(1.0, snapshot.wait_s)))
            if stream.unread_since is not None and now - stream.unread_since >= self.limits.stall_s:
                stream.on_stall()
            elif now - stream.idle_since >= self.limits.ping_s:
                stream.remind()

    def _look(self) -> None:
        snapshot, wall = self.bridge.snapshot(), None if self._model is None else self._model.wall
        if snapshot is not None and wall is not None:
            self.meters.look(snapshot.recent, wall.weight_bytes, wall.kv_bytes_per_token, wall.read_gb_s)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._compilers.shutdown(wait=False, cancel_futures=True)
        if self._model is not None and self._model.template is not None:
            self._model.template.close()


def _has_calls(ask: Ask) -> bool:
    """Whether a conversation tells of earlier calls, which some templates have no words for."""
    messages = [m for prompt in ask.prompts if isinstance(prompt, Chat) for m in prompt.messages]
    return any(isinstance(m, dict) and (m.get("tool_calls") or m.get("role") == "tool") for m in messages)
