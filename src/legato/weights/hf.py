"""Models of the Hugging Face hub, `hf:ORG/NAME[/FILE.gguf][@REVISION]`, through the optional huggingface_hub.

Knows: which files of a repository make a model. Does not know: their contents, other sources.

Files go into the hub library's own cache, shared with other programs. Python files and pickled weights are never
fetched, nor weights of a second kind (ONNX, a copy in another layout): exact names are asked for, not patterns.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from legato.errors import DownloadError, UsageError
from legato.weights.catalog import Report
from legato.weights.filemap import shown

_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:/([\w./ -]+\.gguf))?(?:@([\w./-]+))?")
_WEIGHTS = "model*.safetensors"
_TEXT = ("*.json", "*.jinja")


def fetch_from_hub(name: str, report: Report) -> Path:
    """The folder of a safetensors model, or the GGUF file. Offline, what is in the cache is used.

    Raises `UsageError` for a malformed name, a missing extra, or a repository with several GGUF files and none named;
    `DownloadError` when the hub cannot be reached or has no such model.
    """
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise UsageError(f"{shown(name)} is not of the form hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE.gguf")
    repo, file, revision = match.groups()
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UsageError(f"{name} needs the hub extra: pip install 'legato[hub]'") from None
    try:
        info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # the library has a dozen, and those of its HTTP client
        return _from_cache(hub, repo, file, revision, error)
    sizes = {item.rfilename: item.size or 0 for item in info.siblings or ()}
    wanted = _choose(repo, file, sizes)
    licences = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    total = sum(sizes[item] for item in wanted) / 1e6
    licence = licences[0] if licences else "not stated"
    report.start(0, f"{repo}: {len(wanted)} files, {total:.0f} MB, licence {licence}, kept in the Hugging Face cache")
    try:
        folder = Path(hub.snapshot_download(repo, revision=info.sha, allow_patterns=wanted))
    except Exception as error:
        raise DownloadError(f"{name}: {_first_line(error)}; what was fetched is kept, try again") from None
    finally:
        report.done()
    return _result(folder, wanted)


def _from_cache(hub: Any, repo: str, file: str | None, revision: str | None, reason: Exception) -> Path:
    try:
        folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
        names = [os.path.relpath(os.path.join(at, n), folder) for at, _, found in os.walk(folder) for n in found]
    except Exception:
        raise DownloadError(f"hf:{repo}: {_first_line(reason)}; and it is not in the cache") from None
    return _result(folder, _choose(repo, file, names))


def _choose(repo: str, file: str | None, names: Iterable[str]) -> list[str]:
    """The files to fetch: the named GGUF, else safetensors with their JSON, else the only GGUF."""
    names = sorted(names)
    if file is not None:
        if file not in names:
            raise UsageError(f"hf:{repo} has no file {shown(file)}; {_list_ggufs(repo, names)}")
        return [file]
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if fnmatch(name, _WEIGHTS)]
    if weights:
        return weights + [name for name in top if any(fnmatch(name, pattern) for pattern in _TEXT)]
    ggufs = [name for name in top if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    raise UsageError(f"hf:{repo} has no model.safetensors; {_list_ggufs(repo, names)}")


def _list_ggufs(repo: str, names: list[str]) -> str:
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not ggufs:
        return "it has no GGUF file either, and pickled weights are never fetched"
    more = f" and {len(ggufs) - 8} more" if len(ggufs) > 8 else ""
    return f"name one of its GGUF files, hf:{repo}/FILE: {', '.join(map(shown, ggufs[:8]))}{more}"


def _result(folder: Path, wanted: list[str]) -> Path:
    return folder / wanted[0] if wanted[0].endswith(".gguf") else folder


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no details'}"
