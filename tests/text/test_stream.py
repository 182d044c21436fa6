"""A stream's text is the text of all its tokens, cut at the first stop string, however the tokens arrive.

Oracle: `decode` of all ids and a search for the stop strings, both written without a thought of streams.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import ByteLevelKind, SentencePieceKind

from legato.text.stream import Delta, TextStream
from legato.text.tokenizer import Tokenizer

ByteLevel = Callable[[str], ByteLevelKind]
MANY = settings(derandomize=True, deadline=None, max_examples=150)


@pytest.fixture(scope="session")
def smol(byte_level: ByteLevel) -> Tokenizer:
    return Tokenizer.from_gguf("smol.gguf", byte_level("smollm").metadata)


@pytest.fixture(scope="session")
def llama(llama_spm: SentencePieceKind) -> Tokenizer:
    return Tokenizer.from_gguf("llama.gguf", llama_spm.metadata)


def _cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first (of those complete together, the longest), and which."""
    found = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    if not found:
        return text, None
    _, start, stop = min(found)
    return text[:start], stop


def _run(stream: TextStream, chunks: Sequence[Sequence[int]]) -> list[Delta]:
    return [*(stream.push(chunk) for chunk in chunks), stream.finish()]


def _chunked(ids: Sequence[int], cuts: Sequence[int]) -> list[list[int]]:
    edges = [0, *sorted(min(c, len(ids)) for c in cuts), len(ids)]
    return [list(ids[a:b]) for a, b in itertools.pairwise(edges)]


def _completing_token(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> int:
    """How many tokens it takes until a stop string is in what is certain of the text."""
    for n in range(len(ids) + 1):
        whole = tokenizer.join(ids[:n])
        while _unfinished(whole):
            whole = whole[:-1]
        text = whole.decode("utf-8", "replace")
        if any(s in (text.removeprefix(" ") if tokenizer.strip else text) for s in stops):
            return n
    return len(ids)


def _unfinished(data: bytes) -> bool:
    """Whether the last bytes may be the start of a character."""
    try:
        data.decode()
    except UnicodeDecodeError as e:
        return e.end == len(data) and e.reason == "unexpected end of data"
    return False


stops_of = st.lists(st.text(st.sampled_from("ab \n\u00e9\U0001f600\ufffd<e"), min_size=1, max_size=4), max_size=3)
cuts_of = st.lists(st.integers(0, 80), max_size=8)


@MANY
@given(text=st.text(max_size=60), stops=stops_of, cuts=cuts_of)
def test_any_text_in_any_chunks_with_any_stops(
    smol: Tokenizer, llama: Tokenizer, text: str, stops: list[str], cuts: list[int]
) -> None:
    for tokenizer in (smol, llama):
        ids = tokenizer.encode(text, add_special=False)
        deltas = _run(TextStream(tokenizer, tuple(stops)), _chunked(ids, cuts))
        expected, stop = _cut(tokenizer.decode(ids), stops)
        assert "".join(d.text for d in deltas) == expected
        assert deltas[-1].stop == stop


@MANY
@given(ids=st.lists(st.integers(0, 1100), max_size=60), stops=stops_of, cuts=cuts_of, skip=st.booleans())
def test_any_ids_even_of_broken_bytes(
    smol: Tokenizer, llama: Tokenizer, ids: list[int], stops: list[str], cuts: list[int], skip: bool
) -> None:
    for tokenizer in (smol, llama):
        stream = TextStream(tokenizer, tuple(stops), skip_special=skip)
        deltas = _run(stream, _chunked(ids, cuts))
        expected, stop = _cut(tokenizer.decode(ids, skip_special=skip), stops)
        assert "".join(d.text for d in deltas) == expected
        assert deltas[-1].stop == stop and stream.stopped == (stop is not None)


@MANY
@given(text=st.text(st.sampled_from("ab\n \u00e9\U0001f600"), max_size=40), stops=stops_of)
def test_the_count_of_tokens_is_up_to_the_one_that_completed_the_stop(
    smol: Tokenizer, llama: Tokenizer, text: str, stops: list[str]
) -> None:
    for tokenizer in (smol, llama):
        ids = tokenizer.encode(text, add_special=False)
        expected = _completing_token(tokenizer, ids, stops)
        for chunks in ([ids], [[i] for i in ids]):
            assert _run(TextStream(tokenizer, tuple(stops)), chunks)[-1].tokens_used == expected


@MANY
@given(text=st.text(max_size=40))
def test_whatever_is_certain_comes_at_once_and_nothing_else(smol: Tokenizer, text: str) -> None:
    """Without stop strings only the bytes of an unfinished character are held back, so no text waits in vain."""
    ids = smol.encode(text, add_special=False)
    stream, got = TextStream(smol), ""
    for n, token in enumerate(ids, 1):
        got += stream.push([token]).text
        data = smol.join(ids[:n])
        while _unfinished(data):
            data = data[:-1]
        assert got.encode("utf-8", "surrogatepass") == data
    assert got + stream.finish().text == text


@MANY
@given(text=st.text(st.sampled_from("abc"), max_size=30), stop=st.text(st.sampled_from("abc"), min_size=1, max_size=6))
def test_exactly_the_longest_possible_start_of_a_stop_is_held_back(smol: Tokenizer, text: str, stop: str) -> None:
    stream, got = TextStream(smol, (stop,)), ""
    for n, char in enumerate(text, 1):
        got += stream.push(smol.encode(char)).text
        if stop in text[:n]:
            assert got == text[: text.index(stop)]
            return
        held = max((k for k in range(len(stop)) if text[:n].endswith(stop[:k])), default=0)
        assert got == text[: n - held]
    assert got + stream.finish().text == text


def test_a_character_over_several_tokens_comes_whole(smol: Tokenizer) -> None:
    ids = [smol.encode("\U0001f9ff", add_special=False)]
    assert len(ids[0]) > 1, "the small vocabulary has no token for this one"
    stream = TextStream(smol)
    texts = [stream.push([i]).text for i in ids[0]]
    assert texts == [""] * (len(ids[0]) - 1) + ["\U0001f9ff"]


def test_an_unfinished_character_is_replaced_at_the_end(smol: Tokenizer) -> None:
    ids = smol.encode("ok\U0001f9ff", add_special=False)[:-1]
    stream = TextStream(smol)
    assert stream.push(ids).text == "ok"
    assert stream.finish().text == "\ufffd" and smol.decode(ids) == "ok\ufffd"


def test_a_stop_over_several_tokens_never_leaks(smol: Tokenizer) -> None:
    ids = smol.encode("one\nUser: two", add_special=False)
    stream = TextStream(smol, ("\nUser:",))
    deltas = [stream.push([i]) for i in ids]
    assert "".join(d.text for d in deltas) == "one"
    used = next(n for n, d in enumerate(deltas, 1) if d.stop == "\nUser:")
    assert used == len(smol.encode("one\nUser:", add_special=False)) < len(ids)
    assert deltas[-1] == Delta("", "\nUser:", used) == stream.push(ids) == stream.finish()


def test_what_was_held_comes_when_the_stop_can_no_longer_be(smol: Tokenizer) -> None:
    stream = TextStream(smol, ("<END>", "\n\n"))
    assert stream.push(smol.encode("a<EN", add_special=False)).text == "a"
    assert stream.push(smol.encode("D", add_special=False)).text == ""
    assert stream.push(smol.encode("!\n", add_special=False)).text == "<END!"
    assert stream.finish().text == "\n"


def test_of_stops_completed_together_the_longest_counts(smol: Tokenizer) -> None:
    ids = smol.encode("xabcd", add_special=False)
    for order in (("bc", "abc"), ("abc", "bc")):
        deltas = _run(TextStream(smol, order), [ids])
        assert (deltas[0].text, deltas[0].stop) == ("x", "abc")
    assert _run(TextStream(smol, ("abcd", "bc")), [ids])[0].text == "xa"  # complete one character earlier


def test_special_tokens_are_left_out_or_shown(smol: Tokenizer) -> None:
    ids = smol.encode("a<|im_end|>b", add_special=False, parse_special=True)
    assert "".join(d.text for d in _run(TextStream(smol), [ids])) == "ab"
    assert "".join(d.text for d in _run(TextStream(smol, skip_special=False), [ids])) == "a<|im_end|>b"
    assert _run(TextStream(smol, ("ab",)), [ids])[0] == Delta("", "ab", 3)


def test_the_first_space_of_a_sentencepiece_answer(llama: Tokenizer) -> None:
    """Dropped where a text begins, or a turn after a control token; kept where the answer goes on from text."""
    answer = llama.encode("Paris", add_special=False)
    prompt = llama.encode("It is")
    assert llama.token_bytes(answer[0]).startswith(b" ")

    def text(prompt_ids: Sequence[int]) -> str:
        return "".join(d.text for d in _run(TextStream(llama, prompt_ids=prompt_ids), [[i] for i in answer]))

    assert text(()) == "Paris" == llama.decode(answer)
    assert text(prompt) == " Paris" == llama.decode([*prompt, *answer]).removeprefix(llama.decode(prompt))
    assert text([*prompt, 2]) == "Paris"


@MANY
@given(before=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), after=st.text(max_size=20))
def test_a_continued_prompt_and_its_answer_are_one_text(llama: Tokenizer, before: str, after: str) -> None:
    prompt, answer = llama.encode(before), llama.encode(after, add_special=False)
    got = "".join(d.text for d in _run(TextStream(llama, prompt_ids=prompt), [answer]))
    assert llama.decode(prompt) + got == llama.decode([*prompt, *answer])


def test_a_stream_costs_the_same_for_each_token(smol: Tokenizer) -> None:
    """Also against a stop string that is nearly there all the time, and one that is as long as allowed."""
    rng = random.Random(3)
    ids = [rng.randrange(4, smol.vocab_size) for _ in range(40_000)]
    letters = smol.encode("a", add_special=False) * 40_000
    for tokens, stops in ((ids, ("\nUser:", "<END>")), (letters, ("a" * 1000 + "b", "b")), (ids, ())):
        costs = []
        for n in (10_000, 40_000):
            stream = TextStream(smol, stops)
            began = time.thread_time()
            for token in tokens[:n]:
                stream.push((token,))
            costs.append((time.thread_time() - began) / n)
        assert costs[1] < 2 * costs[0]
        assert costs[1] < 60e-6


def test_a_token_alone_has_its_own_text_and_bytes(smol: Tokenizer) -> None:
    first, *rest = smol.encode("\U0001f9ff", add_special=False)
    assert smol.token_text(first).endswith("\ufffd")
    assert b"".join(map(smol.token_bytes, [first, *rest])) == "\U0001f9ff".encode()


@settings(max_examples=60, derandomize=True)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(0, 12), st.sampled_from(["a", "ab", "aba"])
)
def test_stops_completed_within_the_least_tokens_are_none(
    smol: Tokenizer, letters: list[str], least: int, stop: str
) -> None:
    """A token a letter; the oracle looks for the stop anew behind every letter."""
    ids = [smol.encode(letter)[0] for letter in letters]
    text = "".join(letters)
    ends = (n for n in range(least + 1, len(text) + 1) if text[:n].endswith(stop))
    end = next(ends, None)
    stream = TextStream(smol, [stop], min_tokens=least)
    got = "".join(stream.push([i]).text for i in ids) + stream.finish().text
    assert (got, stream.stopped) == ((text, False) if end is None else (text[: end - len(stop)], True))
