"""`legato launch`: settings that work, files that come back as they were, and files that are never touched."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import NAME, Live, echo_assembly, running

from legato.cli import main
from legato.cli.launch_clients import Where, clients
from legato.cli.settings_file import BEGIN, BlockEdit, JsonEdit, toml_problem, undo, write, yaml_problem
from legato.errors import UsageError

WHERE = Where("http://127.0.0.1:9", "a model/7b", "sk-'\"$x")
FILES = [name for name, client in clients(Path("/h")).items() if client.file is not None]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_every_client_is_listed_and_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(listed) == {
        "claude", "codex", "opencode", "continue", "aider", "open-webui", "curl", "python", "langchain",
        "llama-index", "llm",
    }  # fmt: skip
    for name in listed:
        assert main(["launch", name, "--model", "m7", "--url", "http://host:1/v1/", "--api-key", "sk-1"]) == 0
        out = capsys.readouterr().out
        assert "m7" in out or name == "open-webui"
        assert "http://host:1" in out and "/v1/v1" not in out and "sk-1" in out
    assert snapshot(home) == {}


def test_a_name_that_is_not_known(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "Claud", "--model", "m"]) == 2
    assert "did you mean claude?" in capsys.readouterr().err
    assert main(["launch", "zzz", "--model", "m"]) == 2
    assert "known: claude, codex" in capsys.readouterr().err
    assert main(["launch", "curl", "--write", "--model", "m"]) == 2
    assert main(["launch", "codex", "--write", "--undo"]) == 2
    assert main(["launch", "codex", "--url", "localhost:8000", "--model", "m"]) == 2
    assert main(["launch", "codex", "--model", "a\nb"]) == 2


def test_the_model_is_what_the_server_says(echo: Live, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "claude", "--url", echo.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = dict(shlex.split(line)[1].split("=", 1) for line in lines if line.startswith("export"))
    assert values["ANTHROPIC_BASE_URL"] == echo.url and values["ANTHROPIC_MODEL"] == NAME
    assert main(["launch", "claude", "--url", "http://127.0.0.1:9"]) == 2
    assert "legato serve" in capsys.readouterr().err


def test_llama_index_is_told_the_context_which_it_would_guess(
    echo: Live, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "llama-index", "--url", f"http://127.0.0.1:{echo.port}"]) == 0
    shown = capsys.readouterr().out
    context = echo.ask("GET", "/v1/models").json["data"][0]["max_model_len"]
    assert f"context_window={context}," in shown and f"model='{NAME}'" in shown
    compile(shown, "snippet", "exec")


def test_a_server_with_keys_wants_one(alphabet: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(echo_assembly(alphabet, ends=False), api_keys=("sk-secret",)) as locked:
        assert main(["launch", "python", "--url", locked.url]) == 2
        assert "--api-key" in capsys.readouterr().err
        assert main(["launch", "python", "--url", locked.url, "--api-key", "sk-secret"]) == 0
        code = capsys.readouterr().out
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_the_curl_line_works_as_it_is(echo: Live, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    assert main(["launch", "curl", "--url", echo.url]) == 0
    line = capsys.readouterr().out
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_what_is_shown_can_be_read_back() -> None:
    known = clients(Path("/h"))
    codex = tomllib.loads(known["codex"].shown(WHERE))
    assert codex["profiles"]["legato"] == {"model": WHERE.model, "model_provider": "legato"}
    provider = codex["model_providers"]["legato"]
    assert provider["base_url"] == WHERE.v1 and provider["wire_api"] == "responses"
    assert provider["http_headers"] == {"Authorization": f"Bearer {WHERE.key}"}
    assert json.loads(known["opencode"].shown(WHERE))["model"] == f"legato/{WHERE.model}"
    for name in ("python", "langchain"):
        compile(known[name].shown(WHERE), name, "exec")
    for line in known["claude"].shown(WHERE).splitlines()[:-1]:
        assert len(shlex.split(line)) == 2
    assert json.loads(shlex.split(known["curl"].shown(WHERE))[-1])["model"] == WHERE.model


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_written_twice_and_taken_back_where_there_was_nothing(name: str, home: Path) -> None:
    args = ["launch", name, "--model", "m"]
    assert main([*args, "--undo"]) == 0 and snapshot(home) == {}
    assert main([*args, "--write"]) == 0
    once = snapshot(home)
    assert main([*args, "--write"]) == 0 and snapshot(home) == once
    assert main(["launch", name, "--model", "other", "--write"]) == 0 and snapshot(home) != once
    assert main(["launch", name, "--undo"]) == 0 and snapshot(home) == {}


BEFORE = {
    "claude": '{"permissions":{"allow":["Bash"]},"env":{"ANTHROPIC_MODEL":"opus","X":"1"}}',
    "codex": '# mine\nmodel = "gpt"\n\n[model_providers.other]\nname = "x"',
    "opencode": '{\n    "theme": "dark", "provider": {"other": {}}, "model": "other/x"\n}\n',
    "continue": "rules:\n  - be brief\n",
    "aider": "# mine\ndark-mode: true\nread:\n- a.md\n",
    "llm": "- model_id: mine\n  model_name: x\n",
}


@pytest.mark.parametrize("name", FILES)
def test_what_was_there_stays_and_comes_back_to_the_byte(name: str, home: Path) -> None:
    path = clients(home)[name].file
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(BEFORE[name])
    path.chmod(0o640)
    before = snapshot(home)
    assert main(["launch", name, "--model", "m", "--write"]) == 0
    kept = path.with_name(path.name + ".before-legato")
    assert kept.read_text() == BEFORE[name] and path.stat().st_mode & 0o777 == kept.stat().st_mode & 0o777 == 0o640
    written = path.read_text()
    if name in ("claude", "opencode"):
        old, new = json.loads(BEFORE[name]), json.loads(written)
        assert set(old) <= set(new) and ("permissions" not in old or new["permissions"] == old["permissions"])
    else:
        assert written.startswith(BEFORE[name])
    assert main(["launch", name, "--undo"]) == 0 and snapshot(home) == before


@pytest.mark.skipif(sys.platform == "darwin", reason="llm keeps its settings elsewhere there")
@pytest.mark.parametrize(
    ("name", "file"), [("opencode", "opencode/opencode.json"), ("llm", "io.datasette.llm/extra-openai-models.yaml")]
)
def test_settings_are_where_the_system_keeps_them(
    name: str, file: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "elsewhere"))
    assert main(["launch", name, "--model", "m", "--write"]) == 0
    assert set(snapshot(home)) == {f"elsewhere/{file}", f"elsewhere/{file}.before-legato"}
    assert main(["launch", name, "--undo"]) == 0 and snapshot(home) == {}
    for wrong in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CONFIG_HOME", wrong)
        assert main(["launch", name, "--model", "m", "--write"]) == 0
        assert set(snapshot(home)) == {f".config/{file}", f".config/{file}.before-legato"}
        assert main(["launch", name, "--undo"]) == 0 and snapshot(home) == {}


def test_what_others_wrote_meanwhile_is_kept(home: Path) -> None:
    claude, codex = clients(home)["claude"].file, clients(home)["codex"].file
    assert claude is not None and codex is not None
    for path, name in ((claude, "claude"), (codex, "codex")):
        path.parent.mkdir(parents=True)
        path.write_text(BEFORE[name])
        assert main(["launch", name, "--model", "m", "--write"]) == 0
    found = json.loads(claude.read_text())
    found["theme"] = "dark"
    claude.write_text(json.dumps(found))
    codex.write_text('approval_policy = "never"\n' + codex.read_text())
    assert main(["launch", "claude", "--undo"]) == 0 and main(["launch", "codex", "--undo"]) == 0
    assert json.loads(claude.read_text()) == json.loads(BEFORE["claude"]) | {"theme": "dark"}
    assert codex.read_text().strip() == 'approval_policy = "never"\n' + BEFORE["codex"]


UNREADABLE = {
    "claude": '{"env": {} // mine\n}',
    "codex": "model = \n",
    "opencode": "[1, 2]",
    "continue": "models: []\n",
    "aider": "{model: x}\n",
    "llm": "mine: true\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_never_touched(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = clients(home)[name].file
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    for content in (UNREADABLE[name].encode(), b"\xff\xfe\x00"):
        path.write_bytes(content)
        before = snapshot(home)
        assert main(["launch", name, "--model", "m", "--write"]) == 2
        assert "left as it is" in capsys.readouterr().err and snapshot(home) == before


def test_a_file_that_has_our_tables_already_is_left_alone(home: Path) -> None:
    path = clients(home)["codex"].file
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text('[model_providers.legato]\nname = "mine"\n')
    before = snapshot(home)
    assert main(["launch", "codex", "--model", "m", "--write"]) == 2 and snapshot(home) == before


def test_links_stay_links(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles.toml", tmp_path / "config.toml"
    real.write_text("a = 1\n")
    link.symlink_to(real)
    edit = BlockEdit(("b = 2",), toml_problem)
    assert write(link, edit) and link.is_symlink() and BEGIN in real.read_text()
    assert undo(link, edit) and link.is_symlink() and real.read_text() == "a = 1\n"


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcenv"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=120, derandomize=True, deadline=None)
@given(old=st.dictionaries(st.sampled_from("abcenv"), JSON, max_size=4), indent=st.none() | st.integers(0, 4))
def test_any_json_comes_back(old: dict[str, Any], indent: int | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "s.json"
    path.write_text(json.dumps(old, indent=indent))
    before = path.read_bytes()
    edit = JsonEdit({("e", "n"): "x", ("e", "v", "a"): {"y": 1}, ("c",): 3})
    try:
        write(path, edit)
    except UsageError:
        assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
        return
    made = json.loads(path.read_text())
    assert made["e"]["n"] == "x" and made["e"]["v"]["a"] == {"y": 1} and made["c"] == 3
    assert not write(path, edit)
    assert undo(path, edit) and path.read_bytes() == before


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    lines=st.lists(st.sampled_from(["", "a: 1", "b:", "  - x", "# c", "   ", "d: 'y'"]), max_size=6, unique=True),
    end=st.sampled_from(["", "\n", "\n\n", "\n\n\n"]),
)
def test_any_lines_come_back(lines: list[str], end: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("yaml") / "s.yml"
    text = "\n".join(lines) + end
    path.write_text(text)
    edit = BlockEdit(("ours: 1",), yaml_problem(listed=False))
    assert write(path, edit) and not write(path, edit)
    assert write(path, BlockEdit(("ours: 2",), edit.check)) and path.read_text().count(BEGIN) == 1
    assert undo(path, edit)
    assert (path.read_text() if path.exists() else "") == text
