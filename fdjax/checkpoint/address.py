"""The ways to name a file or a checkpoint, wherever it is.

    a/path, ~/a/path, /a/path         on this machine
    package://module/path/of/file     inside an installed package
    hf://owner/repo[@revision]/file   on Hugging Face; without hf:// too, unless there
                                      is such a local path; its web pages as well
    https://host/path#sha256=…        anywhere else, with a checksum or without

A revision is a branch, a tag, a commit, or a reference such as `refs/pr/7`.
"""

import dataclasses
import importlib.util
import os
import pathlib
import re
import urllib.parse

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Endings of files that can hold weights."""

_BARE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@.+)?(?:/.+)?")
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
    """A file or a folder of a Hugging Face model repository.

    Attributes:
        repo: "owner/name".
        path: Path in it; "" is the whole repository.
        revision: Branch, tag, commit or reference; None is the main branch.
    """

    repo: str
    path: str = ""
    revision: str | None = None

    @property
    def is_checkpoint_file(self) -> bool:
        """Whether the path names a file of a checkpoint, by its ending."""
        return self.path.endswith((*WEIGHT_SUFFIXES, ".json"))

    @property
    def url(self) -> str:
        """The page where a person finds it."""
        site = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
        if not self.path:
            return f"{site}/{self.repo}"
        kind = "blob" if pathlib.PurePosixPath(self.path).suffix else "tree"
        revision = urllib.parse.quote(self.revision or "main", safe="")
        return f"{site}/{self.repo}/{kind}/{revision}/{self.path}"


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
    if text.startswith("package://"):
        return LocalAddress(_in_package(text))
    if text.startswith("hf://"):
        return _parse_repository(text, text.removeprefix("hf://"))
    parts = urllib.parse.urlsplit(text)
    if parts.scheme in ("http", "https"):
        if parts.netloc in _HUB_HOSTS or text.startswith(_endpoint()):
            return _parse_page(text)
        url, _, fragment = text.partition("#")
        sums = urllib.parse.parse_qs(fragment).get("sha256", [""])
        return UrlAddress(url, sums[0].lower())
    if "://" in text:
        raise ValueError(
            f"{text}: must be a local path, hf://OWNER/REPO/FILE or an https address."
        )
    path = pathlib.Path(text).expanduser()
    bare = isinstance(source, str) and _BARE.fullmatch(text.rstrip("/"))
    if bare and not path.exists():
        return _parse_repository(text, text)
    return LocalAddress(path)


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


def _parse_repository(source: str, text: str) -> HubAddress:
    """Reads `owner/repo[@revision][/path]`."""
    if not _BARE.fullmatch(text.rstrip("/")):
        raise ValueError(f"{source} must look like hf://OWNER/REPO[@REVISION]/FILE.")
    owner, name, *rest = text.strip("/").split("/")
    name, at, revision = name.partition("@")
    if not at:
        return HubAddress(f"{owner}/{name}", "/".join(rest))
    revision, path = _take_revision([urllib.parse.unquote(revision), *rest])
    if not (name and revision):
        raise ValueError(f"{source} must name a revision behind the @.")
    return HubAddress(f"{owner}/{name}", path, revision)


def _parse_page(source: str) -> HubAddress:
    """Reads the address of a page or a file of the site."""
    start = _endpoint() if source.startswith(_endpoint()) else ""
    path = source.removeprefix(start) if start else urllib.parse.urlsplit(source).path
    parts = urllib.parse.urlsplit(path).path.strip("/").split("/")
    parts = [urllib.parse.unquote(part) for part in parts]
    if len(parts) == 2:
        return HubAddress("/".join(parts))
    if len(parts) < 4 or parts[2] not in ("blob", "resolve", "tree"):
        raise ValueError(
            f"{source} must look like {_HUB}/OWNER/REPO/resolve/REVISION/FILE."
        )
    revision, path = _take_revision(parts[3:])
    return HubAddress("/".join(parts[:2]), path, revision)


def _take_revision(parts: list[str]) -> tuple[str, str]:
    """Splits (revision, path); the slashes of `refs/pr/7` belong to the revision."""
    count = 3 if parts[0] == "refs" else 1
    return "/".join(parts[:count]), "/".join(parts[count:])


def _endpoint() -> str:
    """The site that HF_ENDPOINT puts in the place of Hugging Face's, with a slash."""
    return os.environ.get("HF_ENDPOINT", _HUB).rstrip("/") + "/"
