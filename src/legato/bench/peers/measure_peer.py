"""Measures one other engine on the work of `bench decode` and `bench offline`; prints one JSON object a line.

Knows: three engines' Python doors. Does not know: this project; it runs in whatever environment holds the engine.

    python measure_peer.py ENGINE MODEL DEPTHS DECODE BATCH PROMPT ANSWER THREADS

Prompts are random token ids from one seed. A depth: seconds until the first token is known, and the median of DECODE
steps after it. A batch: BATCH prompts of PROMPT tokens at once, ANSWER tokens each, greedy, no early ends.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SEED = 7
LOWEST, HIGHEST = 1000, 30000  # ids that are ordinary text in nearly every vocabulary
CHUNK = 2048  # prompt tokens handed over at once, where that is ours to choose
clock = time.perf_counter
drawn = random.Random(SEED)


def ids(count: int, vocab: int) -> list[int]:
    low, high = (LOWEST, HIGHEST) if vocab > HIGHEST else (0, vocab)
    return [drawn.randrange(low, high) for _ in range(count)]


def say(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def depth_row(depth: int, prompt: int, first_s: float, steps_s: list[float]) -> None:
    say(
        what="depth",
        depth=depth,
        prefill_tok_s=prompt / first_s,
        decode_ms=1e3 * statistics.median(steps_s),
        decode_tok_s=len(steps_s) / sum(steps_s),
    )


def batch_row(work: Work, tokens: int, seconds: float) -> None:
    say(what="batch", n=work.batch, prompt=work.prompt, decode=work.answer, out_tok_s=tokens / seconds, seconds=seconds)


class Work:
    """What to measure, from the command line."""

    def __init__(self, words: list[str]) -> None:
        self.engine, self.model, depths, *numbers = words
        self.depths = [int(word) for word in depths.split(",") if word]
        self.decode, self.batch, self.prompt, self.answer, self.threads = map(int, numbers)

    @property
    def context(self) -> int:
        return max([depth + self.decode for depth in self.depths] + [self.prompt + self.answer]) + 64


def gaps(stamps: list[float]) -> list[float]:
    return [late - early for early, late in zip(stamps, stamps[1:])]  # noqa: B905, RUF007 (older Pythons run this, too)


# -- llama.cpp --------------------------------------------------------------------------------------------------------


class LlamaCpp:
    """One context of llama.cpp with room for `seqs` sequences, stepped by hand."""

    def __init__(self, lib: Any, model: Any, context: int, seqs: int, threads: int) -> None:
        self._lib = lib
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context * seqs, CHUNK, 512
        params.n_seq_max, params.n_threads, params.n_threads_batch = seqs, threads, threads
        if hasattr(params, "kv_unified"):
            params.kv_unified = True  # one pool for all, as its server has it by default
        self.context = lib.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp made no context")
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._batch = lib.llama_batch_init(CHUNK, 0, 1)

    def step(self, rows: Iterable[tuple[int, int, int, bool]]) -> list[int]:
        """(token, position, sequence, whether its successor is wanted) to the likeliest successors."""
        import numpy as np

        batch, wanted, count = self._batch, [], 0
        for count, (token, position, sequence, last) in enumerate(rows, 1):
            i = count - 1
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, last
            if last:
                wanted.append(i)
        batch.n_tokens = count
        if self._lib.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        out = []
        for i in wanted:
            logits = self._lib.llama_get_logits_ith(self.context, i)
            out.append(int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax()))
        return out

    def read(self, prompts: list[list[int]]) -> list[int]:
        """All prompts, a sequence each; their first tokens."""
        found: list[int] = []
        rows = [(t, p, s, p == len(ids) - 1) for s, ids in enumerate(prompts) for p, t in enumerate(ids)]
        for begin in range(0, len(rows), CHUNK):
            found += self.step(rows[begin : begin + CHUNK])
        return found

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self.context), True)

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self.context)


def run_llama_cpp(work: Work) -> None:
    import ctypes

    import llama_cpp as lib

    quiet = lib.llama_log_callback(lambda level, text, user: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(work.model.encode(), lib.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {work.model}")
    if work.depths:
        engine = LlamaCpp(lib, model, work.context, 1, work.threads)
        engine.read([ids(16, engine.vocab)])
        for depth in work.depths:
            engine.clear()
            prompt = ids(max(1, depth), engine.vocab)
            begun = clock()
            (token,) = engine.read([prompt])
            stamps = [clock()]
            for i in range(work.decode):
                (token,) = engine.step([(token, len(prompt) + i, 0, True)])
                stamps.append(clock())
            depth_row(depth, len(prompt), stamps[0] - begun, gaps(stamps))
        engine.close()
    if work.batch:
        engine = LlamaCpp(lib, model, work.prompt + work.answer, work.batch, work.threads)
        prompts = [ids(work.prompt, engine.vocab) for _ in range(work.batch)]
        begun = clock()
        tokens = engine.read(prompts)
        for i in range(work.answer - 1):
            tokens = engine.step((token, work.prompt + i, s, True) for s, token in enumerate(tokens))
        batch_row(work, work.batch * work.answer, clock() - begun)
        engine.close()


# -- transformers -----------------------------------------------------------------------------------------------------


def run_transformers(work: Work) -> None:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(work.threads)
    folder, name = os.path.split(work.model)
    where = {"pretrained_model_name_or_path": folder, "gguf_file": name} if name.endswith(".gguf") else {}
    where = where or {"pretrained_model_name_or_path": work.model}
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    model.train(False)
    vocab = model.config.vocab_size

    def stepped(prompts: list[list[int]], count: int) -> Iterator[float]:
        """The moment after each token of a greedy answer."""
        cache, x = DynamicCache(config=model.config), torch.tensor(prompts)
        for _ in range(count):
            x = model(x, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
            yield clock()

    with torch.inference_mode():
        list(stepped([ids(16, vocab)], 2))
        for depth in work.depths:
            prompt = ids(max(1, depth), vocab)
            begun = clock()
            stamps = list(stepped([prompt], work.decode + 1))
            depth_row(depth, len(prompt), stamps[0] - begun, gaps(stamps))
        if work.batch:
            prompts = [ids(work.prompt, vocab) for _ in range(work.batch)]
            begun = clock()
            last = list(stepped(prompts, work.answer))[-1]
            batch_row(work, work.batch * work.answer, last - begun)


# -- OpenVINO ---------------------------------------------------------------------------------------------------------


def run_openvino(work: Work) -> None:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    with open(os.path.join(work.model, "config.json"), encoding="utf-8") as file:
        vocab = int(json.load(file)["vocab_size"])

    def scheduler() -> Any:
        config = genai.SchedulerConfig()
        config.enable_prefix_caching = False
        config.max_num_batched_tokens, config.max_num_seqs = CHUNK, max(1, work.batch)
        config.cache_size = 3  # GB
        return config

    def greedy(count: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        return config

    def tensor(count: int) -> Any:
        return ov.Tensor(np.array([ids(count, vocab)], dtype=np.int64))

    stamps: list[float] = []

    class Stamps(genai.StreamerBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def write(self, token: Any) -> Any:
            stamps.append(clock())
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    limits = {"INFERENCE_NUM_THREADS": work.threads}
    if work.depths:
        pipe = genai.LLMPipeline(work.model, "CPU", scheduler_config=scheduler(), **limits)
        for turn, depth in enumerate([16, *work.depths]):  # the first warms it up
            stamps.clear()
            count = max(1, depth)
            asked = genai.TokenizedInputs(tensor(count), ov.Tensor(np.ones((1, count), dtype=np.int64)))
            begun = clock()
            pipe.generate(asked, greedy(work.decode + 1), Stamps())
            if turn:
                depth_row(depth, count, stamps[0] - begun, gaps(stamps))
        del pipe
    if work.batch:
        batch = genai.ContinuousBatchingPipeline(work.model, scheduler(), "CPU", limits)
        batch.generate([tensor(16)], [greedy(4)])
        prompts = [tensor(work.prompt) for _ in range(work.batch)]
        begun = clock()
        done = batch.generate(prompts, [greedy(work.answer)] * work.batch)
        batch_row(work, sum(len(one.m_generation_ids[0]) for one in done), clock() - begun)


RUNS: dict[str, Callable[[Work], None]] = {
    "llama.cpp": run_llama_cpp,
    "transformers": run_transformers,
    "openvino": run_openvino,
}

if __name__ == "__main__":
    asked = Work(sys.argv[1:])
    RUNS[asked.engine](asked)
