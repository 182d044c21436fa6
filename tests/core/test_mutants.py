"""The tests can fail: each fault below, put into the sources of a fresh process, is caught at once.

A mutant is a piece of text that occurs exactly once in a file, what stands there instead, and who must notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from zygote import KILLED, SOURCES, SURVIVED, Zygote

TESTS = Path(__file__).parent
WORLDS = "worlds:400"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    noticed_by: str = WORLDS


POOL, TREE, CACHE, PLAN, ACCEPT = (
    f"schedule/{name}.py" for name in ("page_pool", "prefix_tree", "cache_manager", "scheduler", "accept")
)
MUTANTS = [
    Mutant("slot mapping one page off", "page_echo.py", "seq.pages[position //", "seq.pages[-1 - position //"),
    Mutant("slot mapping one slot off", "page_echo.py", "+ position % self", "+ (position + 1) % self"),
    Mutant("publish a page that is not full", CACHE, "full = seq.num_computed_tokens", "full = (seq.num_tokens + 1)"),
    Mutant("publish what was only planned", CACHE, "full = seq.num_computed_tokens", "full = seq.num_tokens"),
    Mutant("publish under the wrong parent", CACHE, "parent = self._tree.at(seq.pages[first - 1]) if first else None",
           "parent = None"),
    Mutant("keep what a failed sequence computed", PLAN, "keep=event.error is None", "keep=True", "test_scheduler"),
    Mutant("no release at the end", PLAN, "self.cache.release(seq, keep=event.error is None)", "pass"),
    Mutant("no release when preempted", PLAN, "self.cache.release(seq)\n        seq.draft_ids.clear()",
           "seq.num_computed_tokens = 0\n        seq.draft_ids.clear()"),
    Mutant("no release after a step in flight", PLAN, "for seq in self._landing:", "for seq in ():"),
    Mutant("release in the middle of a step", PLAN, "any(piece.seq is seq for piece in self._flying.slices)", "False"),
    Mutant("free twice", CACHE, "left = self._pool.drop(page)", "self._pool.drop(page); left = self._pool.drop(page)"),
    Mutant("an exchange that nobody is told of", CACHE, "                seq.num_remaps += 1\n", ""),
    Mutant("pages taken away in silence", CACHE, "        seq.num_remaps += 1\n        seq.pages", "        seq.pages"),
    Mutant("a copy given up is never freed", CACHE, "self._pool.drop(own)", "pass"),
    Mutant("a copy joined is never held", CACHE, "                self._use(parent)\n", "                pass\n"),
    Mutant("an evicted page is never freed", CACHE, "self._pool.drop(self._tree.evict(", "int(self._tree.evict("),
    Mutant("evict what is in use", CACHE, "self._tree.wake(node)", "pass"),
    Mutant("evict the most recent first", TREE, "popitem(last=False)", "popitem(last=True)"),
    Mutant("evict parents before children", CACHE, "in reversed(seq.pages)", "in list(seq.pages)"),
    Mutant("idle pages in any order", TREE, "self._idle[node.page] = node",
           "self._idle[node.page] = node; self._idle.move_to_end(node.page, node.page % 2 == 0)"),
    Mutant("match the last token too", CACHE, "seq.first_logit_row // self", "len(seq.token_ids) // self"),
    Mutant("match a page too many", CACHE, "most = seq.first_logit_row // self.page_size",
           "most = -(-seq.first_logit_row // self.page_size)"),
    Mutant("match without holding", CACHE, "            self._use(node)\n            seq", "            seq"),
    Mutant("salts ignored", CACHE, "self._tree.walk(seq.request.salt,", 'self._tree.walk("",', "test_prefix_cache"),
    Mutant("the wrong branch is named", TREE, "common > best.common", "common < best.common", "test_miss"),
    Mutant("what is computed again stays gone", TREE, "node.gone = self._gone.revive(", "(lambda *_: None)(",
           "test_miss"),
    Mutant("tails are forgotten", CACHE, "            self._note_tail(seq)\n", "            pass\n", "test_miss"),
    Mutant("evictions without a date", CACHE, "self._tree.evict(self.now,", "self._tree.evict(0.0,", "test_miss"),
    Mutant("a miss one token off", CACHE, "Miss(MissCause.TEXT, matched, matched + common, ours",
           "Miss(MissCause.TEXT, matched, matched + common + 1, ours", "test_miss"),
    Mutant("another salt is not looked for", TREE, "if s != salt)", "if s == salt)", "test_miss"),
    Mutant("the gone are never forgotten", "schedule/gone.py", "if len(self._order) > self._most:", "if False:",
           "test_miss"),
    Mutant("a restored page at the wrong place", "sessions.py", "seq.pages[held:end], pages",
           "seq.pages[held:end][::-1], pages", "test_session_worlds"),
    Mutant("a restored page under the wrong salt", "sessions.py", "[: (first + len(pages_NB)) * size], salt)",
           '[: (first + len(pages_NB)) * size], "")', "test_session_worlds"),
    Mutant("damage is not looked for", "runtime/session_file.py", "!= digests[at : at + DIGEST_BYTES]", "== b''",
           "test_session_worlds"),
    Mutant("any fingerprint will do", "sessions.py", "if difference is None:", "if True:", "test_session_worlds"),
    Mutant("what was found is loaded again", "sessions.py", "file.pages(cached // size)", "file.pages(0)",
           "test_session_worlds"),
    Mutant("prompt logprobs from the cache", "core/sequence.py", "return self.num_prompt_logprobs\n",
           "return len(self.token_ids) - 1\n"),
    Mutant("drafts not rewound", ACCEPT, "-= len(seq.draft_ids) - (len(result.token_ids) - 1)", "-= 0"),
    Mutant("drafts rewound one too far", ACCEPT, "(len(result.token_ids) - 1)", "(len(result.token_ids) - 2)",
           "test_scheduler"),
    Mutant("drafts kept when preempted", PLAN, "        seq.draft_ids.clear()\n", ""),
    Mutant("drafts past the end", PLAN, "seq.max_length - len(seq.token_ids) - 1", "seq.max_length",
           "test_scheduler"),
    Mutant("a stop token ignored", ACCEPT, "if stops:", "if stops and taken > 1:"),
    Mutant("min_tokens one short", ACCEPT, ">= params.min_tokens", "> params.min_tokens"),
    Mutant("one token too many", ACCEPT, ">= seq.max_length", "> seq.max_length"),
    Mutant("a chunk starts one late", PLAN, "        start = seq.num_computed_tokens\n",
           "        start = seq.num_computed_tokens + 1\n"),
    Mutant("computed again from the wrong place", CACHE, "pages.clear()\n        seq.num_computed_tokens = 0\n",
           "pages.clear()\n", "test_scheduler_pages"),
    Mutant("naive decoding that remembers", PLAN, "if not self._use_cache:", "if False:", "test_scheduler"),
    Mutant("siblings never let go", PLAN, "        self._let_go(seq)\n        if event", "        if event",
           "test_scheduler"),
    Mutant("an aborted one is committed", PLAN, "if not piece.seq.finished:", "if piece.seq:"),
    Mutant("preempted without end", PLAN, "MAX_PREEMPTIONS = 8", "MAX_PREEMPTIONS = 10**9", "test_progress"),
    Mutant("pinned ones admitted blindly", PLAN, "if self._is_pinned(seq):", "if False:", "test_scheduler_pages"),
    Mutant("admitted without room", PLAN, "if needed <= available:", "if True:"),
    Mutant("admitted after a preemption", PLAN, "if self.num_preemptions == preempted:", "if True:",
           "test_scheduler_pages"),
    Mutant("the runner is not told", "engine.py", "self._runner.forget(ended)", "pass"),
    Mutant("an interrupt leaves the plan in flight", "engine.py", "self.scheduler.abandon(plan)", "pass",
           "test_engine_loop"),
    Mutant("a fault fails everybody", "engine.py", "except Exception as error:", "except ImportError as error:"),
]  # fmt: skip


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


def judge(mutant: Mutant, zygote: Zygote) -> None:
    """Raises `AssertionError` unless those who must notice do."""
    path = TESTS / mutant.file if (TESTS / mutant.file).exists() else SOURCES / "legato" / mutant.file
    base = TESTS if path.parent == TESTS else SOURCES
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} holds this text {text.count(mutant.old)} times: {mutant.old}"
    module = ".".join(path.relative_to(base).with_suffix("").parts)
    verdict = zygote.judge({module: text.replace(mutant.old, mutant.new)}, [mutant.noticed_by])
    assert verdict.status == KILLED, f"nobody noticed: {mutant.name}\n{verdict.output}"
    assert "SyntaxError" not in verdict.output and "ImportError" not in verdict.output


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_fault_is_noticed(mutant: Mutant, zygote: Zygote) -> None:
    judge(mutant, zygote)


@pytest.mark.slow
def test_what_is_right_is_let_pass(zygote: Zygote) -> None:
    """The judge does not condemn everything: the sources as they are pass what the faults above fail."""
    names = sorted({mutant.noticed_by for mutant in MUTANTS} - {WORLDS})
    text = (SOURCES / "legato" / PLAN).read_text()
    verdict = zygote.judge({"legato.schedule.scheduler": text}, ["worlds:30", *names])
    assert verdict.status == SURVIVED, verdict.output
