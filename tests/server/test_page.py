"""The page's files: how they are sent, what they do not contain, and what its Markdown makes of texts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from live import Live

from legato.server import page
from legato.server.page import Asset, assets

FOLDER = Path(str(files("legato.server"))) / "ui"
ALLOWED = {  # what the policy must say, word for word
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
VOID = {"meta", "link", "input", "br", "hr", "img"}
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, never fetched


class Document(HTMLParser):
    """Tags must close in order; everything a test asks about is collected."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.script_text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.script_text += data.strip()

    def all(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


@pytest.fixture(scope="module")
def shown() -> list[Asset]:
    return assets()


@pytest.fixture(scope="module")
def document() -> Document:
    return Document((FOLDER / "index.html").read_text())


def sources(*suffixes: str) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(FOLDER.iterdir()) if p.suffix in suffixes}


# -- how it is sent ---------------------------------------------------------------------------------------------------


def test_every_file_is_sent_with_the_strict_policy_and_without_a_key(letters: Live, shown: list[Asset]) -> None:
    for asset in shown:
        reply = letters.ask("GET", asset.path)
        assert reply.status == 200 and reply.body == asset.body, asset.path
        assert reply.headers["content-type"].encode() == asset.kind
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
        assert policy == ALLOWED and "unsafe" not in str(policy)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"


def test_the_page_is_asked_for_anew_and_its_parts_are_kept(letters: Live, shown: list[Asset]) -> None:
    first, *rest = shown
    assert first.path == "/" and rest
    for asset in shown:
        again = letters.ask("GET", asset.path, if_none_match=f'"other", {asset.etag.decode()}')
        assert again.status == 304 and not again.body and again.headers["etag"].encode() == asset.etag
        assert letters.ask("GET", asset.path, if_none_match='"other"').status == 200
        assert letters.ask("HEAD", asset.path).status == 200
        keep = again.headers["cache-control"]
        assert keep == "no-cache" if asset is first else "immutable" in keep
    assert letters.ask("GET", "/ui/0123456789abcdef/app.js").status == 404
    assert letters.ask("POST", "/", {}).status == 405


def test_changed_files_have_other_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "ui"
    shutil.copytree(FOLDER, copy)
    before = {asset.path for asset in assets()}
    monkeypatch.setattr(page, "files", lambda name: tmp_path)
    assert {asset.path for asset in assets()} == before
    (copy / "dom.js").write_text((copy / "dom.js").read_text() + "\n")
    after = assets()
    assert {asset.path for asset in after} & before == {"/"}
    assert after[0].body != (FOLDER / "index.html").read_bytes()


def test_all_that_the_page_loads_is_there(shown: list[Asset]) -> None:
    paths = {asset.path for asset in shown}
    html = Document(shown[0].body.decode())
    wanted = [href for href in html.all("href") if not href.startswith("#")] + html.all("src")
    assert len(wanted) >= 4 and {f"/{name}" for name in wanted} <= paths
    names = {Path(path).name for path in paths}
    for name, text in sources(".js").items():
        for other in re.findall(r"from '\./([^']+)'", text):
            assert other in names, (name, other)


# -- what it contains -------------------------------------------------------------------------------------------------


def test_it_is_small(shown: list[Asset]) -> None:
    assert sum(len(asset.body) for asset in shown) < 300_000
    for name, text in sources(".js").items():
        assert text.count("\n") <= 500, name
    assert {p.suffix for p in FOLDER.iterdir() if p.is_file()} <= set(page.KINDS), "a file that would not be sent"


def test_nothing_is_fetched_from_elsewhere_and_nothing_is_inline(document: Document) -> None:
    for name, text in sources(".js", ".css", ".html", ".svg").items():
        found = [u for u in re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s'\"]*", text) if u != NAMESPACE]
        assert not found, (name, found)
        assert "@import" not in text and "url(" not in text, name
    assert document.script_text == ""
    for tag, attrs in document.tags:
        assert "style" not in attrs and not [a for a in attrs if a.startswith("on")], (tag, attrs)


def test_no_text_is_ever_read_as_html_or_code() -> None:
    doors = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|DOMParser|Range\(\)"
    for name, text in sources(".js").items():
        assert not re.search(doors, text), name
        assert not re.search(r"setAttribute\('style'|setTimeout\('", text), name


def test_the_markup_holds_together(document: Document) -> None:
    ids = document.all("id")
    assert len(ids) == len(set(ids))
    named = document.all("for") + document.all("aria-controls") + document.all("aria-labelledby")
    named += document.all("aria-describedby")
    named += [h[1:] for h in document.all("href") if h.startswith("#")]
    assert set(named) <= set(ids)
    used = {i for text in sources(".js").values() for i in re.findall(r"\$\('([a-z-]+)'\)", text)}
    assert used - {"again"} <= set(ids), used - set(ids)
    assert dict(document.tags[0][1]) == {"lang": "en"}
    assert all("type" in attrs for tag, attrs in document.tags if tag == "button")


def test_the_style_sheet_closes_its_braces_and_names_every_colour_once() -> None:
    text = re.sub(r"/\*.*?\*/", "", (FOLDER / "style.css").read_text(), flags=re.S)
    assert text.count("{") == text.count("}")
    own, rest = text.split("}", 1)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b", rest), "a colour outside of :root"
    assert set(re.findall(r"var\((--[a-z-]+)\)", rest)) <= set(re.findall(r"(--[a-z-]+):", own))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize(
    ("front", "back"),
    [
        ("ink", "paper"),
        ("ink", "panel"),
        ("soft", "paper"),
        ("soft", "panel"),
        ("accent", "paper"),
        ("bad", "raised"),
        ("on-accent", "accent"),
        ("accent", "raised"),
        ("soft", "raised"),
        ("ink", "faint"),
    ],
)
def test_text_can_be_read_in_both_themes(theme: int, front: str, back: str) -> None:
    """Contrast of at least 4.5 to 1, WCAG's AA for text."""
    text = (FOLDER / "style.css").read_text()
    named = dict(re.findall(r"--([a-z-]+): light-dark\((#\w{6}, #\w{6})\)", text))
    one, two = (luminance(named[name].split(", ")[theme]) for name in (front, back))
    assert (max(one, two) + 0.05) / (min(one, two) + 0.05) >= 4.5


# -- what it does, as far as it can be asked without a browser --------------------------------------------------------


def node(script: str, *arguments: str) -> str:
    if (found := shutil.which("node")) is None:
        pytest.skip("no node on this system: the page's scripts are not run here")
    command = [found, "--input-type=module", "--eval", script, "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(sources(".js")))
def test_scripts_parse(name: str) -> None:
    if (found := shutil.which("node")) is None:
        pytest.skip("no node on this system: the page's scripts are not parsed here")
    text = (FOLDER / name).read_text()
    done = subprocess.run([found, "--input-type=module", "--check"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def trees(texts: list[str]) -> Any:
    """Each text's blocks, the spans of each block's text beside them."""
    script = f"""
      import {{ parse, spans, safeLink }} from {json.dumps(str(FOLDER / "markdown.js"))};
      const deep = (b) => ({{ ...b, raw: undefined, ...(b.text !== undefined && b.type !== 'code' ? {{ spans: spans(b.text) }} : {{}}),
        ...(b.children ? {{ children: b.children.map(deep) }} : {{}}),
        ...(b.items ? {{ items: b.items.map((i) => i.children.map(deep)) }} : {{}}) }});
      const texts = JSON.parse(process.argv.at(-1));
      console.log(JSON.stringify(texts.map((t) => parse(t).map(deep))));
    """  # noqa: E501
    return json.loads(node(script, json.dumps(texts)))


SAMPLES: list[tuple[str, list[str]]] = [
    ("# Title\ntext", ["heading", "paragraph"]),
    ("a\nb\n\nc", ["paragraph", "paragraph"]),
    ("```python\nx = 1\n\n# no heading\n```\nafter", ["code", "paragraph"]),
    ("```\nstill open", ["code"]),
    ("~~~\n```\n~~~", ["code"]),
    ("- a\n- b\n  - c\n\n1. d\n2. e", ["list", "list"]),
    ("text\n- a\n- b", ["paragraph", "list"]),
    ("in 1999. it was\n2. not a list", ["paragraph"]),
    ("> quoted\n> - list\n\nafter", ["quote", "paragraph"]),
    ("| a | b |\n|---|--:|\n| 1 | 2 |\n\nx", ["table", "paragraph"]),
    ("a | b\nno table", ["paragraph"]),
    ("---\n***\n- - -", ["rule", "rule", "rule"]),
    ("<script>alert(1)</script>", ["paragraph"]),
    ("", []),
]


def test_markdown_becomes_the_blocks_that_it_means() -> None:
    for (text, kinds), tree in zip(SAMPLES, trees([text for text, _ in SAMPLES]), strict=True):
        assert [block["type"] for block in tree] == kinds, text
    nested = trees(["1. a\n2. b\n   - c\n   - d\nlazy\n3. e"])[0]
    assert [len(nested), len(nested[0]["items"]), len(nested[0]["items"][1][1]["items"])] == [1, 3, 2]
    code, lists, table = trees([SAMPLES[2][0], SAMPLES[5][0], SAMPLES[9][0]])
    assert code[0]["text"] == "x = 1\n\n# no heading" and code[0]["language"] == "python"
    assert [b["type"] for b in lists[0]["items"][1]] == ["paragraph", "list"] and lists[1]["ordered"]
    assert table[0]["rows"] == [["1", "2"]] and table[0]["align"] == ["", "end"]


SPANS: list[tuple[str, Any]] = [
    ("**a** b", [{"type": "strong", "children": ["a"]}, " b"]),
    ("*a **b***", [{"type": "emphasis", "children": ["a ", {"type": "strong", "children": ["b"]}]}]),
    ("***a***", [{"type": "strong", "children": [{"type": "emphasis", "children": ["a"]}]}]),
    ("snake_case_name and 2 * 3 * 4", ["snake_case_name and 2 * 3 * 4"]),
    ("_a_ ~~b~~", [{"type": "emphasis", "children": ["a"]}, " ", {"type": "struck", "children": ["b"]}]),
    ("`*a*` ``b`c``", [{"type": "code", "text": "*a*"}, " ", {"type": "code", "text": "b`c"}]),
    ("`open **a**", ["`open ", {"type": "strong", "children": ["a"]}]),
    ("\\*a\\* <b>x</b>", ["*a* <b>x</b>"]),
    ("a  \nb\nc", ["a", {"type": "break"}, "b", {"type": "break"}, "c"]),
]


def test_markdown_becomes_the_spans_that_it_means() -> None:
    for (text, expected), tree in zip(SPANS, trees([text for text, _ in SPANS]), strict=True):
        assert tree[0]["spans"] == expected, text


HARMFUL = [
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](\tjava\nscript:alert(1))",
    "[x](data:text/html;base64,AAAA)",
    "[x](vbscript:x)",
    "[x](//elsewhere.invalid/path)",
    "[x](/local)",
    "![x](javascript:alert(1))",
    "<javascript:alert(1)>",
    "[x](&#106;avascript:alert(1))",
    "[x](file:///etc/passwd)",
    "[x](blob:abc)",
]


def links(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, dict):
        own = [tree] if tree.get("type") == "link" else []
        return own + [link for value in tree.values() for link in links(value)]
    return [link for value in tree for link in links(value)] if isinstance(tree, list) else []


def test_only_whole_addresses_of_harmless_kinds_are_followed() -> None:
    assert all(link["href"] is None for tree in trees(HARMFUL) for link in links(tree))
    good = [
        "[x](https://a.invalid/b_(c)?d=e)",
        "see http://a.invalid.",
        "<mailto:a@b.invalid>",
        '[x](https://a.invalid "t")',
    ]
    found = [[link["href"] for link in links(tree)] for tree in trees(good)]
    assert found == [
        ["https://a.invalid/b_(c)?d=e"],
        ["http://a.invalid/"],
        ["mailto:a@b.invalid"],
        ["https://a.invalid/"],
    ]


def test_markdown_takes_time_in_proportion() -> None:
    """Texts that make careless parsers take the square of their length, or more."""
    script = f"""
      import {{ parse, spans }} from {json.dumps(str(FOLDER / "markdown.js"))};
      const n = 20000;
      const hard = ['*', '_', '**a ', '*a ', '`', '``a ', '[', '![', '[a](', '](', '<', '~~', '> ', '- ', '  - ', '|', '| a |\\n',
        '\\\\', 'http://', '#', '*_', '**_ a', '[a](<', '1. ', '((((', '[x](((', '***a '];
      for (const part of hard) {{
        const text = part.repeat(n / part.length);
        const begun = performance.now();
        const walk = (b) => {{ if (b.text) spans(b.text); b.children?.forEach(walk); b.items?.forEach((i) => i.children.forEach(walk)); }};
        parse(text).forEach(walk);
        const took = performance.now() - begun;
        if (took > 2000) throw new Error(`${{JSON.stringify(part)}} took ${{took}} ms`);
      }}
    """  # noqa: E501
    node(script)


def test_the_wall_and_the_split_are_what_the_figures_say() -> None:
    """pace.js: the line under the dots, and the parts of an answer's time."""
    script = f"""
      globalThis.document = {{ hidden: true }};
      const {{ wallOf, splitOf }} = await import({json.dumps(str(FOLDER / "pace.js"))});
      const wall = wallOf({{ read_gb_s: 10, weight_bytes: 100e6, kv_bytes_per_token: 10e3 }});
      const timings = {{ queue_ms: 1, prefill_ms: 2, decode_ms: 100 }};
      const of = (at, t = timings) => splitOf({{ timings: t, pace: {{ at }} }}, wall);
      console.log(JSON.stringify([wall(0), wall(1000), of([1000, 2000]), of([1000, 2000], {{ decode_ms: 11.5 }}),
        wallOf(null), wallOf({{ read_gb_s: 0 }})]));
    """
    at_0, at_1000, split, short, *unknown = json.loads(node(script))
    assert (at_0, at_1000, unknown) == (10, 11, [None, None])
    assert split == {"queue": 1, "prefill": 2, "weights": 20, "kv": 3, "rest": 77}
    assert short["weights"] == pytest.approx(10) and short["kv"] == pytest.approx(1.5) and short["rest"] == 0


def test_tokens_are_placed_and_timed() -> None:
    """chat.js: tokens that come together share their time; the first has none; thoughts are not text."""
    script = f"""
      globalThis.document = {{}};
      const {{ Coming, bodyOf }} = await import({json.dumps(str(FOLDER / "chat.js"))});
      const coming = new Coming('m');
      const chunk = (text, n, at_ms) => coming.take({{ at: 0, data: {{ choices: [{{ delta: {{ content: text }} }}],
        usage: {{ prompt_tokens: 7, completion_tokens: n }}, ...(at_ms ? {{ timings: {{ at_ms }} }} : {{}}) }} }});
      chunk('', 0); chunk('a', 1, 50); chunk('b', 2, 60); chunk('cd', 4, 90);
      coming.take({{ at: 0, data: {{ choices: [{{ delta: {{ reasoning_content: 'hm' }} }}] }} }});
      coming.take({{ data: {{ choices: [{{ delta: {{}}, finish_reason: 'stop' }}], timings: {{ ttft_ms: 50 }} }} }});
      const messages = [{{ role: 'user', content: 'x', extra: 1 }}, {{ role: 'assistant', content: '' }}];
      const body = bodyOf({{ system: ' s ', messages }}, 'm', {{ temperature: 0, top_p: '', seed: null }});
      console.log(JSON.stringify([coming.message, body]));
    """
    message, body = json.loads(node(script))
    assert message["content"] == "abcd" and message["thoughts"] == "hm" and message["finish"] == "stop"
    assert message["pace"] == {"at": [8, 9, 10], "ms": [10, 15, 15]} and message["timings"] == {"ttft_ms": 50}
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    assert body["temperature"] == 0 and "top_p" not in body and "seed" not in body and body["timings_per_token"]


def test_step_times_come_when_they_are_asked_for(letters: Live) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 6, "stream": True, "temperature": 0}
    plain = letters.post("/v1/chat/completions", asked).events
    assert not [e for e in plain[:-2] if "timings" in e]
    events = letters.post("/v1/chat/completions", asked | {"timings_per_token": True}).events
    at = [e["timings"]["at_ms"] for e in events[1:7]]
    assert at == sorted(at) and len(set(at)) == 6 and at[0] > 0
    assert events[-2]["timings"].keys() >= {"ttft_ms", "decode_ms"}
