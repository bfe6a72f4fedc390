"""The ways to name a file or a checkpoint, wherever it is.

    a/path, ~/a/path, /a/path         on this machine
    package://module/path/of/file     inside an installed package
    file:///a/path                    the same, as a URL
    hf://owner/repo[@revision]/file   on Hugging Face; without hf:// too, unless there
                                      is such a local path; its web pages as well
    hf://datasets/owner/repo/file     in a data set there; or in one of its spaces/
    https://host/path#sha256=…        anywhere else, with a checksum or without

A revision is a branch, a tag, a commit, or a reference such as `refs/pr/7`.
"""

import dataclasses
import importlib.util
import os
import pathlib
import re
import urllib.parse
import urllib.request
from typing import Literal

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Endings of files that can hold weights."""

RepoKind = Literal["model", "dataset", "space"]
"""What a repository holds, as Hugging Face's client calls it."""

_BARE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@.+)?(?:/.+)?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOST_SLASH = re.compile(r"(hf|https?|file|s3|gs|package):/?(?=[^/])", re.IGNORECASE)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
_KINDS: dict[str, RepoKind] = {"datasets": "dataset", "spaces": "space"}
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_HUB = "https://huggingface.co"


@dataclasses.dataclass(frozen=True)
class LocalAddress:
    """A path on this machine.

    Attributes:
        path: The path; it need not exist.
    """

    path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """A file or a folder of a Hugging Face repository.

    Attributes:
        repo: "owner/name".
        path: Path in it; "" is the whole repository.
        revision: Branch, tag, commit or reference; None is the main branch.
        kind: What the repository holds.
    """

    repo: str
    path: str = ""
    revision: str | None = None
    kind: RepoKind = "model"

    @property
    def is_checkpoint_file(self) -> bool:
        """Whether the path names a file of a checkpoint, by its ending."""
        return self.path.endswith((*WEIGHT_SUFFIXES, ".json"))

    @property
    def text(self) -> str:
        """The address again, as `parse` reads it."""
        start = {"model": "hf://"}.get(self.kind, f"hf://{self.kind}s/")
        revision = urllib.parse.quote(self.revision or "", safe="")
        path = f"/{self.path}" if self.path else ""
        return f"{start}{self.repo}{'@' * bool(revision)}{revision}{path}"

    @property
    def url(self) -> str:
        """The page where a person finds it."""
        site = _endpoint() + {"model": ""}.get(self.kind, f"{self.kind}s/")
        if not self.path:
            return f"{site}{self.repo}"
        kind = "blob" if pathlib.PurePosixPath(self.path).suffix else "tree"
        revision = urllib.parse.quote(self.revision or "main", safe="")
        return f"{site}{self.repo}/{kind}/{revision}/{self.path}"


@dataclasses.dataclass(frozen=True)
class UrlAddress:
    """A file of a web server.

    Attributes:
        url: Its address, query included.
        sha256: Its checksum in hexadecimal digits; empty if it is not stated.
    """

    url: str
    sha256: str = ""


Address = LocalAddress | HubAddress | UrlAddress


def parse(source: str | os.PathLike) -> Address:
    """Reads an address; a relative path that exists is never taken for a repository.

    Raises:
        ValueError: It starts like a form of the above, but cannot be read as one.
        FileNotFoundError: It names a package that is not installed.
    """
    text = os.fspath(source)
    if scheme := _SCHEME.match(text):
        text = scheme[0].lower() + text[scheme.end() :]
        return _parse_url(text)
    here = os.path.lexists(text)
    path = pathlib.Path(text if here else os.path.expanduser(text))
    if not here and (lost := _LOST_SLASH.match(text)):
        meant = f"{lost[1].lower()}://{text[lost.end() :]}"
        raise ValueError(
            f"{text} must have two slashes behind the colon, {meant}; pass it as a "
            "text, since a Path joins them."
        )
    if not here and os.name == "posix" and _WINDOWS.match(text):
        raise ValueError(f"{text} must be a path of this system; it is one of Windows.")
    bare = isinstance(source, str) and _BARE.fullmatch(text.rstrip("/"))
    if bare and not here and not _is_file_of_folder(text):
        return _parse_repository(text, text)
    return LocalAddress(path)


def _parse_url(text: str) -> Address:
    """Reads an address that has a scheme."""
    if text.startswith("package://"):
        return LocalAddress(_in_package(text))
    if text.startswith("file://"):
        return LocalAddress(_in_file_url(text))
    if text.startswith("hf://"):
        return _parse_repository(text, text.removeprefix("hf://"))
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in ("http", "https"):
        raise ValueError(
            f"{text}: must be a local path, hf://OWNER/REPO/FILE or an https address; "
            f"what {parts.scheme}:// names has to be fetched by other means."
        )
    if not parts.hostname:
        raise ValueError(f"{text} must name a server, as https://HOST/PATH.")
    if parts.netloc in _HUB_HOSTS or text.startswith(_endpoint()):
        return _parse_page(text)
    url, _, fragment = text.partition("#")
    sums = urllib.parse.parse_qs(fragment).get("sha256", [""])
    return UrlAddress(url, sums[0].lower())


def _is_file_of_folder(text: str) -> bool:
    """Whether FOLDER/FILE.pt can be no OWNER/REPO: no repository is named like that."""
    endings = (*WEIGHT_SUFFIXES, ".json")
    parts = text.split("/")
    parts = parts[1:] if parts[0] in _KINDS else parts
    return len(parts) <= 2 and text.endswith(endings)


def local_path(source: str | os.PathLike) -> pathlib.Path | None:
    """The path that an address names on this machine; None if it is elsewhere.

    Raises:
        ValueError: See `parse`.
        FileNotFoundError: It names a package that is not installed.
    """
    address = parse(source)
    return address.path if isinstance(address, LocalAddress) else None


def _in_package(text: str) -> pathlib.Path:
    module, _, name = text.removeprefix("package://").partition("/")
    try:
        found = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"{text}: no package {module!r} is installed.")
    return pathlib.Path(found.submodule_search_locations[0]) / name


def _in_file_url(text: str) -> pathlib.Path:
    host, slash, path = text.removeprefix("file://").partition("/")
    if host not in ("", "localhost") or not slash:
        raise ValueError(f"{text} must look like file:///PATH.")
    return pathlib.Path(urllib.request.url2pathname(slash + path))


def _parse_repository(source: str, text: str) -> HubAddress:
    """Reads `[datasets/]owner/repo[@revision][/path]`."""
    kind, text = _take_kind(text)
    if not _BARE.fullmatch(text.rstrip("/")):
        raise ValueError(f"{source} must look like hf://OWNER/REPO[@REVISION]/FILE.")
    owner, name, *rest = text.strip("/").split("/")
    name, at, revision = name.partition("@")
    if not at:
        return HubAddress(f"{owner}/{name}", "/".join(rest), kind=kind)
    revision, path = _take_revision([urllib.parse.unquote(revision), *rest])
    if not (name and revision):
        raise ValueError(f"{source} must name a revision behind the @.")
    return HubAddress(f"{owner}/{name}", path, revision, kind)


def _parse_page(source: str) -> HubAddress:
    """Reads the address of a page or a file of the site."""
    start = _endpoint() if source.startswith(_endpoint()) else ""
    path = source.removeprefix(start) if start else urllib.parse.urlsplit(source).path
    kind, path = _take_kind(urllib.parse.urlsplit(path).path.strip("/"))
    parts = [urllib.parse.unquote(part) for part in path.split("/")]
    if len(parts) == 2 and all(parts):
        return HubAddress("/".join(parts), kind=kind)
    if len(parts) < 4 or parts[2] not in ("blob", "resolve", "tree"):
        raise ValueError(
            f"{source} must look like {_HUB}/OWNER/REPO/resolve/REVISION/FILE."
        )
    revision, path = _take_revision(parts[3:])
    return HubAddress("/".join(parts[:2]), path, revision, kind)


def _take_kind(text: str) -> tuple[RepoKind, str]:
    """Splits (kind, rest) of `datasets/owner/repo/…`; models have no such word."""
    first, _, rest = text.partition("/")
    return (_KINDS[first], rest) if first in _KINDS else ("model", text)


def _take_revision(parts: list[str]) -> tuple[str, str]:
    """Splits (revision, path); the slashes of `refs/pr/7` belong to the revision."""
    count = 3 if parts[0] == "refs" else 1
    return "/".join(parts[:count]), "/".join(parts[count:])


def _endpoint() -> str:
    """The site that HF_ENDPOINT puts in the place of Hugging Face's, with a slash."""
    return os.environ.get("HF_ENDPOINT", _HUB).rstrip("/") + "/"
