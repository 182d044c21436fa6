"""llama-index's OpenAILike: a completion, a chat, both as streams.

Run as: python llama_index_like.py URL MODEL KEY; prints one line of JSON.
"""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def main() -> None:
    url, model, key = sys.argv[1:]
    shared = {"api_base": url, "api_key": key, "model": model, "temperature": 0.0, "max_tokens": 24, "max_retries": 0}
    plain = OpenAILike(is_chat_model=False, **shared)
    chat = OpenAILike(is_chat_model=True, **shared)
    prompt, messages = "The three primary colours are", [ChatMessage(role="user", content="Say hello to the sea.")]
    print(
        json.dumps(
            {
                "complete": plain.complete(prompt).text,
                "complete_pieces": [piece.delta for piece in plain.stream_complete(prompt)],
                "chat": chat.chat(messages).message.content,
                "chat_pieces": [piece.delta for piece in chat.stream_chat(messages)],
                "asked_as_chat": chat.complete("Say hello to the sea.").text,
            }
        )
    )


main()
