"""Our tokenizer as the hub's cache would hold it, for clients that cut or count tokens themselves.

Knows: the cache's layout, the tokenizer's two files and their fields. Does not know: clients.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer as Core
from tokenizers import decoders

from legato.text.tokenizer import Tokenizer

NAME = "made/up"
REVISION = "0" * 40


def write_tokenizer(tokenizer: Tokenizer, home: Path) -> Path:
    """Writes a byte-level tokenizer below `home`, a client's HF_HOME, as `NAME`; the folder of its files."""
    repository = home / "hub" / "models--made--up"
    folder = repository / "snapshots" / REVISION
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION, encoding="ascii")
    core = Core.from_str(tokenizer._core.to_str())
    core.decoder = decoders.ByteLevel()  # ours turns ids into bytes itself
    core.save(str(folder / "tokenizer.json"))
    configured = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": tokenizer.chat_template}
    said = json.dumps(configured | tokenizer.special_tokens)
    (folder / "tokenizer_config.json").write_text(said, encoding="utf-8")
    return folder
