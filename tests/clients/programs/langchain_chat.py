"""langchain-openai's chat model: an answer, a stream, a forced tool call, an object of a type.

Run as: python langchain_chat.py URL MODEL KEY; prints one line of JSON.
"""

import json
import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field


@tool
def weather(city: str, days: int) -> str:
    """The weather in a city for so many days."""
    return f"{days} days of sun in {city}"


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")  # a small model adds fields until the tokens are spent

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99_999_999)
    coast: bool


def main() -> None:
    url, model, key = sys.argv[1:]
    chat = ChatOpenAI(base_url=url, api_key=key, model=model, temperature=0, max_completion_tokens=24, max_retries=0)
    question = "Say hello to the sea."
    whole = chat.invoke(question)
    pieces = list(chat.stream(question, stream_usage=True))
    roomy = chat.model_copy(update={"max_tokens": 200})
    called = roomy.bind_tools([weather], tool_choice="weather").invoke("How is the weather in Oslo for 3 days?")
    typed = {
        method: roomy.with_structured_output(City, method=method).invoke("Describe Lisbon as JSON.").model_dump()
        for method in ("json_schema", "function_calling")
    }
    print(
        json.dumps(
            {
                "whole": whole.content,
                "usage": whole.usage_metadata,
                "finish": whole.response_metadata["finish_reason"],
                "pieces": [piece.content for piece in pieces],
                "stream_usage": [piece.usage_metadata for piece in pieces if piece.usage_metadata],
                "calls": called.tool_calls,
                "bad_calls": called.invalid_tool_calls,
                "ran": [weather.invoke(call["args"]) for call in called.tool_calls],
                "typed": typed,
            }
        )
    )


main()
