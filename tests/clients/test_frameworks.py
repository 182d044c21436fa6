"""langchain-openai and llama-index as they are installed: answers, streams, tools and types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from installed import Client, Served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def langchain(find: Callable[[str], Client]) -> Client:
    return find("langchain-openai")


@pytest.fixture(scope="session")
def llama_index(find: Callable[[str], Client]) -> Client:
    return find("llama-index-llms-openai-like")


def test_langchain(langchain: Client, keyed: Served, tmp_path: Path) -> None:
    said = langchain.program(tmp_path, "langchain_chat.py", keyed)
    assert said["whole"]
    assert "".join(said["pieces"]) == said["whole"]
    assert len([piece for piece in said["pieces"] if piece]) > 5, "the stream came as one piece"
    assert said["usage"]["total_tokens"] == said["usage"]["input_tokens"] + said["usage"]["output_tokens"]
    assert [usage["output_tokens"] for usage in said["stream_usage"]] == [said["usage"]["output_tokens"]]
    (call,) = said["calls"]
    assert not said["bad_calls"]
    assert call["name"] == "weather"
    assert said["ran"] == [f"{call['args']['days']} days of sun in {call['args']['city']}"]
    for city in said["typed"].values():
        assert isinstance(city["name"], str)
        assert 0 <= city["people"] <= 99_999_999
        assert isinstance(city["coast"], bool)


def test_llama_index(llama_index: Client, keyed: Served, tmp_path: Path) -> None:
    said = llama_index.program(tmp_path, "llama_index_like.py", keyed)
    assert said["complete"]
    assert "".join(said["complete_pieces"]) == said["complete"]
    assert said["chat"]
    assert "".join(piece or "" for piece in said["chat_pieces"]) == said["chat"] == said["asked_as_chat"]
    for pieces in (said["complete_pieces"], said["chat_pieces"]):
        assert len([piece for piece in pieces if piece]) > 5, "the stream came as one piece"
