"""Random worlds with saved sessions: conversations go on, fork, are saved, evicted and restored, by other engines too.

The page-echo model writes tokens into pages and reads them back, so that a page restored at the wrong place, or of
another conversation, is a wrong token at once.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from echo_sessions import echo_sessions
from page_echo import PageEcho, plain_answer

from legato.core.request import Request, SamplingParams
from legato.engine import Engine
from legato.errors import SessionError, UsageError

VOCAB = 50
WORLDS = 60


class Process:
    """One engine with its sessions, from start to end."""

    def __init__(self, folder: Path, page_size: int, num_pages: int, kv: str) -> None:
        self.runner = PageEcho(num_pages, page_size, VOCAB)
        self.engine = Engine(
            self.runner, num_pages=num_pages, page_size=page_size, max_tokens=16, max_seqs=4, context_length=200,
            vocab_size=VOCAB,
        )  # fmt: skip
        self.sessions = echo_sessions(folder, self.runner, self.engine.scheduler.cache, kv)
        self.count = 0

    def answer(self, ids: list[int], salt: str, max_tokens: int) -> list[int]:
        """Runs one request; its tokens, which must be those of plain decoding."""
        self.count += 1
        request = Request(f"q{self.count}", tuple(ids), SamplingParams(max_tokens=max_tokens), salt=salt)
        self.engine.add(request)
        out: list[int] = []
        while self.engine.has_work:
            for event in self.engine.step():
                out += event.token_ids
                assert event.error is None
            self.engine.scheduler.check()
        expected, _, _ = plain_answer(request, 0, VOCAB, frozenset(), len(ids) + max_tokens)
        assert out == expected
        return out


def run_world(seed: int, folder: Path) -> dict[str, int]:
    """Returns how often things happened."""
    rng, fresh = random.Random(seed), itertools.count()
    page_size = rng.choice([1, 2, 4, 8])
    num_pages = (100 + rng.choice([0, 60, 1000])) // page_size + 2
    talks: dict[str, list[int]] = {}  # what every saved session must hold
    salts: dict[str, str] = {}
    seen = dict.fromkeys(("loaded", "cached", "damaged", "forked", "other kv"), 0)
    for _ in range(rng.randint(2, 4)):
        process = Process(folder, page_size, num_pages, rng.choice(["int8"] * 4 + ["bf16"]))
        sessions = process.sessions
        for _ in range(rng.randint(3, 12)):
            action = rng.choice(["new", "go on", "go on", "go on", "fork", "noise", "damage", "delete"])
            name = rng.choice(sorted(talks)) if talks else ""
            if action == "new" or not talks:
                name = f"t{next(fresh)}"
                ids = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))]
                salts[name] = rng.choice(["", "", "x"])
                talks[name] = ids + process.answer(ids, salts[name], rng.randint(1, 6))
                sessions.save(name, talks[name], salt=salts[name])
            elif action == "go on":
                restored = sessions.restore(name)
                process.engine.scheduler.check()
                assert restored.token_ids == talks[name] and restored.salt == salts[name]
                seen["loaded"] += restored.loaded_tokens > 0
                seen["cached"] += restored.cached_tokens > 0
                seen["damaged"] += "damaged" in (restored.note or "")
                seen["other kv"] += "kv was" in (restored.note or "")
                ids = talks[name][:80] + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 8))]
                before = process.runner.num_rows
                talks[name] = ids + process.answer(ids, salts[name], rng.randint(1, 6))
                if restored.note is None and len(restored.token_ids) < 80:
                    held = (restored.cached_tokens + restored.loaded_tokens) // page_size * page_size
                    assert process.runner.num_rows - before <= len(talks[name]) - held, "what was restored is used"
                sessions.save(name, talks[name], salt=salts[name])
            elif action == "fork":
                copy = f"f{next(fresh)}"
                sessions.fork(name, copy)
                talks[copy], salts[copy] = list(talks[name]), salts[name]
                seen["forked"] += 1
            elif action == "noise":
                process.answer([rng.randrange(VOCAB) for _ in range(60)], rng.choice(["", "x"]), 5)
            elif action == "damage":
                path = folder / f"{name}.session"
                data = bytearray(path.read_bytes())
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                path.write_bytes(data)
            elif action == "delete":
                sessions.delete(name)
                del talks[name]
                with pytest.raises(UsageError):
                    sessions.restore(name)
            assert {info.name for info in sessions.list()} == set(talks)
        sessions.close()
    return seen


def test_every_answer_equals_plain_decoding_whatever_was_saved_and_restored(tmp_path: Path) -> None:
    total: dict[str, int] = {}
    for seed in range(WORLDS):
        try:
            seen = run_world(seed, tmp_path / str(seed))
        except SessionError as error:
            assert "it cannot be restored" in str(error), f"world {seed}: {error}"  # both headers were hit
            continue
        except Exception as error:
            raise AssertionError(f"world {seed}: {type(error).__name__}: {error}") from error
        total = {key: total.get(key, 0) + count for key, count in seen.items()}
    assert all(count >= 3 for count in total.values()), f"the worlds do not reach what they are for: {total}"
