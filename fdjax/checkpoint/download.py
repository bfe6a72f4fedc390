"""Finds checkpoints: local paths, files and folders on Hugging Face, plain URLs.

Hugging Face goes through its own client: its cache, progress bar, resume, HF_TOKEN,
HF_HOME and HF_HUB_OFFLINE. A plain URL is kept under FDJAX_CACHE_DIR/downloads.
"""

import dataclasses
import errno
import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from fdjax.checkpoint import files
from fdjax.checkpoint import io as checkpoint_io

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Endings of files that can hold weights."""

_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(.*)")
_BARE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+?)?(?:/.+)?")
_BLOCK = 1 << 20
_TIMEOUT = 30.0  # seconds that a connection may stand still
_ATTEMPTS = 4
_TRANSPORTS = ("http", "requests.", "urllib3.")
_TRUE = ("1", "true", "yes", "on", "t", "y")


@dataclasses.dataclass(frozen=True)
class HubSource:
    """A file or a folder of a Hugging Face model repository.

    Attributes:
        repo: "owner/name".
        path: Path in it; "" is the whole repository.
        revision: Branch, tag or commit; None is the main branch.
    """

    repo: str
    path: str = ""
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether the path names a file, by its ending."""
        return self.path.endswith((*SUFFIXES, ".json"))

    @property
    def url(self) -> str:
        """The page where a person finds it."""
        if not self.path:
            return f"https://huggingface.co/{self.repo}"
        kind = "blob" if self.is_file else "tree"
        revision = self.revision or "main"
        return f"https://huggingface.co/{self.repo}/{kind}/{revision}/{self.path}"


def parse_hub(source: str) -> HubSource | None:
    """Reads a way to name something on Hugging Face; None if it is something else.

    Accepted: `hf://owner/repo[@revision][/path]`, the same without `hf://`, and the
    addresses of the site (`/blob/`, `/resolve/` and `/tree/` pages, or the repository).

    Raises:
        ValueError: It starts like one of these, but cannot be read.
    """
    if match := _HUB.fullmatch(source):
        parts = urllib.parse.urlsplit(match[1]).path.strip("/").split("/")
        parts = [urllib.parse.unquote(part) for part in parts]
        if len(parts) == 2:
            return HubSource("/".join(parts))
        if len(parts) < 4 or parts[2] not in ("blob", "resolve", "tree"):
            raise ValueError(
                f"{source} must look like https://huggingface.co/OWNER/REPO/resolve/"
                "REVISION/FILE"
            )
        return HubSource("/".join(parts[:2]), "/".join(parts[4:]), parts[3])
    text = source.removeprefix("hf://")
    if text == source and (source.startswith((".", "/", "~")) or "://" in source):
        return None
    if not _BARE.fullmatch(text.rstrip("/")):
        if text != source:
            raise ValueError(f"{source} must look like hf://OWNER/REPO[@REVISION]/FILE")
        return None
    owner, name, *path = text.strip("/").split("/")
    name, _, revision = name.partition("@")
    return HubSource(f"{owner}/{name}", "/".join(path), revision or None)


def fetch(source: str | os.PathLike, *, flag: str = "checkpoint_path") -> Path:
    """The local file, index or directory of a checkpoint, downloaded if need be.

    Args:
        source: A local path; `hf://owner/repo/file`, `owner/repo/file` or a
            huggingface.co address; another URL, with `#sha256=…` to have it checked.
        flag: What the user sets to use a local path, for the error messages.

    Raises:
        FileNotFoundError: It cannot be found or fetched: says which file, where to get
            it, and which flag takes a local path.
        ValueError: The address cannot be read, or the checksum is wrong.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.exists():
        return path
    if hub := parse_hub(text):
        return _fetch_hub(hub, text, flag)
    if urllib.parse.urlsplit(text).scheme in ("http", "https"):
        return _fetch_url(text, flag)
    if "://" in text:
        raise ValueError(
            f"{text}: must be a local path, hf://OWNER/REPO/FILE or an https address"
        )
    raise FileNotFoundError(f"There is no checkpoint at {path}; set {flag}.")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in _TRUE for name in names)


def known_sha256(path: Path) -> str | None:
    """The sha256 that Hugging Face's cache states for a file, from its blob's name."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


# Hugging Face


def _fetch_hub(hub: HubSource, source: str, flag: str) -> Path:
    from huggingface_hub import errors

    try:
        with checkpoint_io.explain_full_disk(Path("the Hugging Face cache (HF_HOME)")):
            return _fetch_hub_file(hub) if hub.is_file else _fetch_hub_folder(hub)
    except errors.GatedRepoError:
        reason = (
            f"the repository asks for a licence: accept it at {hub.url} and log in "
            "with `hf auth login` or HF_TOKEN"
        )
    except errors.RepositoryNotFoundError:
        reason = f"Hugging Face has no repository {hub.repo}, or you have no access"
        if "://" not in source:
            reason += f", and there is no local file {source}"
    except errors.RevisionNotFoundError:
        reason = f"{hub.repo} has no revision {hub.revision}"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        where = "offline mode is on (HF_HUB_OFFLINE)" if is_offline() else str(error)
        reason = f"it is not in the cache, and {where}"
    except errors.EntryNotFoundError:
        reason = f"{hub.repo} has no such file"
    except Exception as error:
        # The client's transport (requests or httpx, by version) has errors of its own.
        transport = type(error).__module__.startswith(_TRANSPORTS)
        known = isinstance(error, (errors.HfHubHTTPError, errors.HFValidationError))
        full = getattr(error, "errno", None) == errno.ENOSPC
        if full or not (transport or known or isinstance(error, OSError)):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise FileNotFoundError(
        f"{hub.path or hub.repo} cannot be fetched: {reason}. Get it from {hub.url} "
        f"and set {flag} to the local file or folder."
    )


def _fetch_hub_file(hub: HubSource) -> Path:
    """One file; of a sharded index, its shards too."""
    import huggingface_hub

    def get(name: str) -> Path:
        found = huggingface_hub.hf_hub_download(hub.repo, name, revision=hub.revision)
        return Path(found)

    path = get(hub.path)
    if path.name.endswith(".index.json"):
        names = json.loads(path.read_text("utf-8")).get("weight_map", {})
        folder = hub.path.removesuffix(path.name)
        for name in sorted(set(names.values())):
            get(folder + name)
    return path


def _fetch_hub_folder(hub: HubSource) -> Path:
    """The one checkpoint of a folder; what is in it decides, without downloading."""
    import huggingface_hub

    if is_offline():
        root = huggingface_hub.snapshot_download(
            hub.repo, revision=hub.revision, local_files_only=True
        )
        return Path(root) / hub.path
    names = huggingface_hub.HfApi().list_repo_files(hub.repo, revision=hub.revision)
    folder = hub.path.strip("/") + "/" if hub.path else ""
    inside = [name for name in names if name.startswith(folder)]
    flat = [name for name in inside if "/" not in name.removeprefix(folder)]
    chosen = [name for name in flat if name.endswith(".index.json")]
    chosen = chosen or [name for name in flat if name.endswith(SUFFIXES)]
    if len(chosen) == 1:
        return _fetch_hub_file(dataclasses.replace(hub, path=chosen[0]))
    weights = [name for name in inside if name.endswith((*SUFFIXES, ".index.json"))]
    what = "holds several checkpoints" if chosen else "holds no checkpoint"
    listed = ", ".join((chosen or weights)[:12]) or "none"
    raise FileNotFoundError(f"the folder {what}, name one file: {listed}")


# Other addresses


def _fetch_url(source: str, flag: str) -> Path:
    url, _, fragment = source.partition("#")
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = files.cache_dir() / "downloads" / key / (name or "checkpoint")
    if path.exists():
        return path
    if is_offline():
        raise FileNotFoundError(
            f"{url} is not in the cache, and offline mode is on (HF_HUB_OFFLINE). "
            f"Fetch it by other means and set {flag} to the local file."
        )
    with checkpoint_io.file_lock(path.with_name(".lock")):
        if path.exists():
            return path
        part = path.with_name(path.name + ".part")
        try:
            _download(url, part)
        except (urllib.error.URLError, OSError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            raise FileNotFoundError(
                f"{url} cannot be fetched: {error}. What has arrived is kept, the next "
                f"run goes on from there. Or fetch it by other means and set {flag} to "
                "the local file."
            ) from None
        wanted = urllib.parse.parse_qs(fragment).get("sha256", [""])[0].lower()
        if wanted and (found := sha256(part)) != wanted:
            part.unlink()
            raise ValueError(
                f"{url} must have sha256 {wanted}, the downloaded file has {found}; it "
                "was removed"
            )
        part.rename(path)
    return path


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path) -> None:
    """Fetches to `part`, going on from what is there if the server still has it."""
    for attempt in range(_ATTEMPTS):
        try:
            _download_once(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == _ATTEMPTS - 1:
                raise
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            if attempt == _ATTEMPTS - 1:
                raise
        time.sleep(0.5 * 2**attempt)


def _download_once(url: str, part: Path) -> None:
    """One connection; raises ConnectionError if it ends early."""
    from tqdm import tqdm

    tag = part.with_name(part.name + ".tag")  # which version of the file it is
    start = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"User-Agent": "fdjax"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag.read_text("utf-8")}
    request = urllib.request.Request(url, headers=headers)
    try:
        response: Any = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is as long as the file, or longer
            raise
        part.unlink()
        raise ConnectionError("the server has no more of the file") from None
    with response:
        goes_on = response.status == 206
        start = start if goes_on else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        checkpoint_io.check_free_space(part, int(length or 0))
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            tag.write_text(version, encoding="utf-8")
        else:
            tag.unlink(missing_ok=True)
        with (
            part.open("ab" if goes_on else "wb") as file,
            tqdm(
                desc=part.stem, total=total, initial=start, unit="B", unit_scale=True
            ) as progress,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                progress.update(len(block))
            size = file.tell()
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")
    tag.unlink(missing_ok=True)
