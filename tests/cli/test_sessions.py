"""Conversations that outlive the process, through the Python door and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from legato import LLM, Completion, SamplingParams
from legato.completion import CacheMiss
from legato.core.miss import MissCause
from legato.core.request import Request
from legato.core.sequence import Sequence
from legato.errors import RequestError, SessionError, UsageError
from legato.kernels.cpu import load_library

ABC = "abcdefghijklmnopqrstuvwxyz"
PARAMS = SamplingParams(max_tokens=6, logprobs=4, ignore_eos=True, temperature=0.8, seed=5)
PROMPT = "the quick brown fox jumps over the lazy dog, and again"


@pytest.fixture
def opened(alphabet: Path, tmp_path: Path) -> Iterator[Callable[..., LLM]]:
    """Opens the model with sessions of its own; earlier ones are closed first, as one process ends."""
    models: list[LLM] = []

    def opened(**settings: Any) -> LLM:
        for model in models:
            model.close()
        chosen = {"backend": "reference", "session_dir": tmp_path / "sessions"} | settings
        models.append(LLM(str(chosen.pop("model", alphabet)), **chosen))
        return models[-1]

    yield opened
    for model in models:
        model.close()


def ask(llm: LLM, prompt: str | list[int] = PROMPT) -> Completion:
    return llm.generate([prompt], PARAMS)[0]


def bits(done: Completion) -> object:
    return done.token_ids, done.logprobs


def kinds() -> list[dict[str, object]]:
    formats = () if isinstance(load_library(), str) else ("bf16", "int8", "int4")
    return [{"backend": "reference"}, *({"backend": "native", "kv": kv} for kv in formats)]


@pytest.mark.parametrize("settings", kinds(), ids=lambda s: "-".join(map(str, s.values())))
def test_restored_equals_kept_equals_computed(opened: Callable[..., LLM], settings: dict[str, Any]) -> None:
    llm = opened(**settings)
    miss = ask(llm)
    hit = ask(llm)
    assert miss.timings.cached_tokens == 0 and hit.timings.cached_tokens == 48
    info = llm.sessions.save("fox", miss, messages=[{"role": "user", "content": PROMPT}])
    assert (info.tokens, info.cached_tokens, info.messages) == (len(PROMPT) + 6, 48, 1)
    later = opened(**settings)
    restored = later.sessions.restore("fox")
    assert (restored.loaded_tokens, restored.cached_tokens, restored.note) == (48, 0, None)
    assert restored.token_ids == [*miss.prompt_ids, *miss.token_ids]
    assert restored.messages == [{"role": "user", "content": PROMPT}]
    found = ask(later)
    assert found.timings.cached_tokens == 48
    assert bits(found) == bits(hit) == bits(miss)
    assert later.sessions.restore("fox").cached_tokens == 48, "it is in memory now"


def test_a_conversation_goes_on_where_it_stopped(opened: Callable[..., LLM]) -> None:
    llm = opened()
    first = ask(llm)
    llm.sessions.save("talk", first)
    ids = [*first.prompt_ids, *first.token_ids, *b" more"]
    kept = ask(llm, ids)
    later = opened()
    later.sessions.restore("talk")
    assert bits(ask(later, ids)) == bits(kept)


def test_forks_are_two_conversations(opened: Callable[..., LLM]) -> None:
    llm = opened()
    llm.sessions.save("a", ask(llm))
    llm.sessions.fork("a", "b")
    llm.sessions.save("a", ask(llm, "x" * 40))
    assert bytes(llm.sessions.restore("b").token_ids[: len(PROMPT)]).decode() == PROMPT
    assert [info.name for info in llm.sessions.list()] == ["a", "b"]
    llm.sessions.delete("a")
    assert llm.sessions.expire(keep_bytes=1 << 30) == () and llm.sessions.expire(keep_bytes=0) == ("b",)


def test_damaged_pages_are_computed_again(opened: Callable[..., LLM], tmp_path: Path) -> None:
    llm = opened()
    before = ask(llm)
    llm.sessions.save("a", before)
    path = tmp_path / "sessions" / "a.session"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    later = opened()
    restored = later.sessions.restore("a")
    assert restored.loaded_tokens in (16, 32) and "damaged" in str(restored.note)
    after = ask(later)
    assert after.timings.cached_tokens == restored.loaded_tokens and bits(after) == bits(before)


def test_a_file_damaged_beyond_reading_is_refused_and_the_engine_goes_on(
    opened: Callable[..., LLM], tmp_path: Path
) -> None:
    llm = opened()
    llm.sessions.save("a", ask(llm))
    (tmp_path / "sessions" / "a.session").write_bytes(b"LEGATOKV" + bytes(100))
    with pytest.raises(SessionError, match=r"a\.session"):
        llm.sessions.restore("a")
    assert ask(llm).finish_reason is not None


@pytest.mark.skipif(isinstance(load_library(), str), reason="needs the native kernels")
def test_another_kv_format_is_not_loaded_but_computed(opened: Callable[..., LLM]) -> None:
    llm = opened(backend="native", kv="bf16")
    llm.sessions.save("a", ask(llm))
    other = opened(backend="native", kv="int8")
    fresh = bits(ask(other))
    other = opened(backend="native", kv="int8")
    restored = other.sessions.restore("a")
    assert (restored.loaded_tokens, restored.note) == (0, "computed again: kv was bf16, here it is int8")
    assert bits(ask(other)) == fresh


def test_tokens_of_another_model_are_not_taken(opened: Callable[..., LLM], endless: Path) -> None:
    llm = opened()
    llm.sessions.save("bare", ask(llm))
    llm.sessions.save("talk", ask(llm), messages=[{"role": "user", "content": "hi"}])
    other = opened(model=endless, context=128)
    with pytest.raises(UsageError, match=r"alphabet\.gguf"):
        other.sessions.restore("bare")
    restored = other.sessions.restore("talk")
    assert restored.token_ids == [] and restored.messages and "another model" in str(restored.note)


def test_loading_gives_way_to_computing_when_that_is_faster(opened: Callable[..., LLM]) -> None:
    llm = opened()
    llm.sessions.save("a", ask(llm))
    later = opened()
    later.sessions.predict = lambda start, end: 1e-9
    restored = later.sessions.restore("a")
    assert restored.loaded_tokens == 0 and "computed again: about 0 ms" in str(restored.note)
    later.sessions.predict = lambda start, end: 60.0
    assert later.sessions.restore("a").loaded_tokens == 48


def test_a_cache_that_is_too_small_takes_what_fits(opened: Callable[..., LLM]) -> None:
    llm = opened()
    done = ask(llm, "long " * 20)
    llm.sessions.save("a", done)
    small = opened()
    cache = small.parts.engine.scheduler.cache
    taken = Sequence(-1, Request("hold", (1,)))
    cache.grow(taken, (cache.num_available - 3) * cache.page_size)
    restored = small.sessions.restore("a")
    assert (restored.loaded_tokens, "is full" in str(restored.note)) == (48, True)
    cache.release(taken)
    assert bits(ask(small, "long " * 20)) == bits(done)


def test_without_a_cache_everything_is_computed(opened: Callable[..., LLM]) -> None:
    llm = opened()
    done = ask(llm)
    llm.sessions.save("a", done)
    naive = opened(naive=True)
    assert "without a cache" in str(naive.sessions.restore("a").note)
    assert ask(naive).token_ids == done.token_ids


def test_salts_stay_apart_through_a_file(opened: Callable[..., LLM]) -> None:
    llm = opened()
    done = ask(llm)
    assert llm.sessions.save("other", done, salt="x").cached_tokens == 0, "nothing of it was computed under this salt"
    llm.sessions.save("own", done)
    later = opened()
    assert later.sessions.restore("own").loaded_tokens == 48
    assert later.sessions.restore("other").cached_tokens == 0
    assert ask(later).timings.cached_tokens == 48


def test_two_models_in_one_folder(opened: Callable[..., LLM], alphabet: Path, tmp_path: Path) -> None:
    llm = opened()
    llm.sessions.save("a", [1, 2, 3])
    with LLM(str(alphabet), backend="reference", session_dir=tmp_path / "sessions") as second:
        with pytest.raises(SessionError, match="another process"):
            second.sessions.save("a", [4])
        with pytest.raises(SessionError, match="another process"):
            second.sessions.restore("a")
        assert len(second.sessions.list()) == 1
        llm.close()
        assert second.sessions.restore("a").token_ids == [1, 2, 3]


@pytest.mark.parametrize("conversation", ["text", [], [-1], [1.5], None, [2**31], {"a": 1}])
def test_what_is_no_conversation(opened: Callable[..., LLM], conversation: object) -> None:
    with pytest.raises(RequestError):
        opened().sessions.save("a", conversation)  # type: ignore[arg-type]


def test_what_is_no_message(opened: Callable[..., LLM]) -> None:
    with pytest.raises(RequestError, match="messages=3 is not allowed"):
        opened().sessions.save("a", [1], messages=[3])  # type: ignore[list-item]


# -- why the cache missed, as a caller sees it ------------------------------------------------------------------------


def test_a_completion_says_why_its_prompt_missed(opened: Callable[..., LLM]) -> None:
    llm = opened()
    first = ask(llm)
    assert first.miss is not None and first.miss.cause is MissCause.NEW
    assert ask(llm).miss is None
    other = ask(llm, PROMPT.replace("fox", "cat"))
    assert other.miss is not None
    place = PROMPT.index("fox")
    assert (other.miss.cause, other.miss.index, other.miss.text, other.miss.other_text) == (
        MissCause.TEXT, place, "c", "f",
    )  # fmt: skip
    assert other.miss.matched_tokens == place // 16 * 16 and other.miss.before == "k brown "[-8:]


@pytest.mark.parametrize("cause", MissCause)
def test_every_cause_has_a_sentence(cause: MissCause) -> None:
    sentence = CacheMiss(cause, 16, 20, "k brown ", "c", "f\n", 2.04, "r7").sentence
    assert "\n" not in sentence and not sentence.endswith(".")
    if cause is MissCause.TEXT:
        assert sentence == 'the text differs from token 20 on: "...k brown " goes on with "c", not "f\\n"'
    if cause is MissCause.EVICTED:
        assert sentence == "tokens 16 to 20 had been computed, and were evicted 2.0 s before to make room for r7"


def test_a_control_token_at_the_place_means_the_template(opened: Callable[..., LLM]) -> None:
    llm = opened()
    llm.chat([{"role": "user", "content": "a" * 40}], PARAMS)
    done = llm.chat([{"role": "user", "content": "a" * 50}], PARAMS)
    assert done.miss is not None
    assert (done.miss.cause, done.miss.text, done.miss.other_text) == (MissCause.TEMPLATE, "a", "<|answer|>")


# -- commands ---------------------------------------------------------------------------------------------------------

Run = Callable[..., Any]


@pytest.fixture
def sessions(environ: dict[str, str], tmp_path: Path) -> Path:
    environ["LEGATO_SESSION_DIR"] = str(tmp_path / "kept")
    return tmp_path / "kept"


def chat(run: Run, model: Path, name: str, *lines: str) -> Any:
    text = "".join(line + "\n" for line in lines)
    return run("chat", "-m", model, "--temperature", "0", "--session", name, stdin=text.encode())


def test_a_chat_goes_on_in_the_next_process(run: Run, alphabet: Path, sessions: Path) -> None:
    first = chat(run, alphabet, "talk", "hello there")
    assert first.out == f"{ABC}\n" and "new session talk" in first.err
    second = chat(run, alphabet, "talk", "go on")
    assert second.out == f"{ABC}\n" and "session talk: 1 questions, 32 tokens read" in second.err
    assert "cached)" in second.err
    shown = json.loads(run("sessions", "show", "talk", "--json").out)
    assert [m["content"] for m in shown["conversation"]] == ["hello there", ABC, "go on", ABC]
    assert shown["problem"] is None and shown["fingerprint"]["kv"] == "f32"


def test_the_list_and_what_may_go(run: Run, alphabet: Path, sessions: Path) -> None:
    assert run("sessions", "list").out == ""
    for name in ("one", "two"):
        chat(run, alphabet, name, "hi")
    rows = [json.loads(line) for line in run("sessions", "list", "--json").out.splitlines()]
    assert [row["name"] for row in rows] == ["two", "one"]
    assert run("sessions", "fork", "one", "three").code == 0
    assert len(run("sessions", "list").out.splitlines()) == 3
    assert run("sessions", "delete", "one").code == 0
    assert run("sessions", "expire", "--older-than", "1d").out == ""
    assert run("sessions", "expire", "--keep", "1M").code == 0
    assert run("sessions", "show", "two").out.count("[user] hi") == 1


def test_a_damaged_session_is_shown_as_damaged(run: Run, alphabet: Path, sessions: Path) -> None:
    chat(run, alphabet, "talk", "hello there")
    path = sessions / "talk.session"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ran = run("sessions", "show", "talk", "--json")
    assert ran.code == 1 and "damaged" in json.loads(ran.out)["problem"]
    after = chat(run, alphabet, "talk", "go on")
    assert (after.code, after.out) == (0, f"{ABC}\n") and "damaged" in after.err
    assert run("sessions", "show", "talk").code == 0, "the next answer wrote it whole"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sessions show nobody", "no session 'nobody'"),
        ("sessions show ../../etc/passwd", "session name"),
        ("sessions delete .hidden", "session name"),
        ("sessions fork a b", "no session"),
        ("sessions expire", "--older-than"),
        ("sessions expire --older-than soon", "30d"),
        ("sessions expire --keep nothing", "session_cap"),
        ("sessions list --session-cap 12", "session_cap"),
        ("sessions nothing", "No such command"),
        ("chat --session a/b", "session name"),
    ],
)
def test_wrong_use_is_one_line(run: Run, alphabet: Path, sessions: Path, line: str, said: str) -> None:
    words = line.split()
    ran = run(*words, *(["-m", alphabet] if words[0] == "chat" else []))
    assert ran.code == 2 and said in ran.err and len(ran.err.splitlines()) == 1
    assert not list(sessions.parent.rglob("*.session"))
