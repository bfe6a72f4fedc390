"""Brings what an address names to this machine: checkpoints, tokenizers, images.

Hugging Face goes through its own client: its cache, progress bar, resume, HF_TOKEN,
HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE. What it newly brings is compared with the
checksum that the site states. Another URL is kept under FDJAX_CACHE_DIR/downloads.
"""

import dataclasses
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fdjax.checkpoint import files, network, temporary
from fdjax.checkpoint.address import (
    WEIGHT_SUFFIXES,
    HubAddress,
    LocalAddress,
    UrlAddress,
    parse,
)
from fdjax.checkpoint.errors import CheckpointError

_BLOCK = 1 << 20
_TIMEOUT = 30.0  # seconds that a connection may stand still
_ATTEMPTS = 4
_IN_URLS = "%/:?#[]@!$&'()*+,;=~"
_TRANSPORTS = ("http", "requests.", "urllib3.")
_TRUE = ("1", "true", "yes", "on", "t", "y")


def fetch(source: str | os.PathLike, *, flag: str = "checkpoint_path") -> Path:
    """The local file, index or directory of a checkpoint, downloaded if need be.

    Args:
        source: An address: see `address`. A folder on Hugging Face must hold one
            checkpoint; of a sharded index the shards are fetched too.
        flag: What the user sets to use a local path, for the error messages.

    Raises:
        FileNotFoundError: It cannot be found or fetched: says which file, where to get
            it, and which flag takes a local path.
        ValueError: The address cannot be read, or a checksum is wrong.
    """
    match address := parse(source):
        case HubAddress():
            get = _hub_file if address.is_checkpoint_file else _hub_folder
            return _fetch_hub(address, source, flag, get)
        case UrlAddress():
            return _fetch_url(address, flag)
    temporary.settle(address.path)
    if not os.path.exists(address.path):
        raise FileNotFoundError(
            f"There is no checkpoint at {address.path}; set {flag}."
        )
    return address.path


def fetch_file(source: str | os.PathLike, *, what: str = "input file") -> Path:
    """The one local file that an address names, downloaded if need be.

    Args:
        source: An address: see `address`.
        what: What it is, for the error messages.

    Raises:
        FileNotFoundError: It cannot be found or fetched, or it is a directory.
        ValueError: The address cannot be read, or a checksum is wrong.
    """
    address = parse(source)
    if isinstance(address, HubAddress) and not address.path:
        if "://" in os.fspath(source):
            raise FileNotFoundError(f"{what} {source} must name a file: it is missing.")
        address = LocalAddress(Path(source))
    match address:
        case HubAddress():
            return _fetch_hub(address, source, f"the {what}", _hub_one)
        case UrlAddress():
            return _fetch_url(address, f"the {what}")
    if not os.path.isfile(address.path):
        is_now = "is a directory" if os.path.isdir(address.path) else "does not exist"
        raise FileNotFoundError(f"{what} {files.shorten(address.path)} {is_now}.")
    return address.path


def cached_version(source: str | os.PathLike) -> str:
    """Which version of something remote is on this machine; empty if none is.

    Hugging Face's content hash of a file, or the commit of a folder; for another URL
    the checksum that it states or, by its time, which download it is.

    Raises:
        ValueError, FileNotFoundError: See `address.parse`.
    """
    match address := parse(source):
        case HubAddress():
            return _cached_in_hub(address)
        case UrlAddress():
            path = _kept(address)
            if address.sha256 or not path.exists():
                return address.sha256
            return f"{path.stat().st_size} bytes at {path.stat().st_mtime_ns}"
    return ""


def _cached_in_hub(hub: HubAddress) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    where: dict[str, Any] = {"repo_type": hub.kind, "revision": hub.revision}
    try:
        if hub.is_checkpoint_file:
            found = huggingface_hub.try_to_load_from_cache(hub.repo, hub.path, **where)
            return Path(found).resolve().name if isinstance(found, str) else ""
        root = huggingface_hub.snapshot_download(
            hub.repo, local_files_only=True, **where
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return ""
    return Path(root).name


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in _TRUE for name in names)


def known_sha256(path: Path) -> str | None:
    """The sha256 that Hugging Face's cache states for a file, from its blob's name."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def sha256(path: Path) -> str:
    """Checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path) -> str:
    """Checksum of a file, compared with what its origin states.

    Raises:
        CheckpointError: They differ: the file is corrupt.
    """
    stated, found = known_sha256(path), sha256(path)
    if stated is not None and stated != found:
        raise CheckpointError(
            f"{path} is corrupt: its sha256 must be {stated}, is {found}; delete "
            f"{path.resolve()} and fetch it again"
        )
    return found


# Hugging Face


def _fetch_hub(
    hub: HubAddress,
    source: str | os.PathLike,
    flag: str,
    get: Callable[[HubAddress, bool], Path],
) -> Path:
    """Calls `get(hub, local)`, and says what a user can do about what goes wrong."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import logging

    logging.disable_propagation()  # it has a handler of its own: told once
    # The client would try for half a minute, and tell of each time.
    cut_off = "" if is_offline() else network.unreachable(constants.ENDPOINT)
    try:
        with files.explain_full_disk(Path("the Hugging Face cache (HF_HOME)")):
            return get(hub, bool(cut_off) or is_offline())
    except CheckpointError:
        raise
    except errors.GatedRepoError:
        reason = (
            f"the repository asks for a licence: accept it at {hub.url} and log in "
            "with `hf auth login` or HF_TOKEN"
        )
    except errors.RepositoryNotFoundError:
        reason = f"Hugging Face has no repository {hub.repo}, or you have no access"
        if "://" not in os.fspath(source):
            reason += f", and there is no local file {source}"
    except errors.RevisionNotFoundError:
        reason = f"{hub.repo} has no revision {hub.revision}"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        where = "offline mode is on (HF_HUB_OFFLINE)" if is_offline() else str(error)
        if cut_off:
            where = f"{constants.ENDPOINT} cannot be reached ({cut_off})"
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
        if isinstance(error, PermissionError):
            reason += "; set HF_HOME to a folder that can be written"
    raise FileNotFoundError(
        f"{hub.path or hub.repo} cannot be fetched: {reason}. Get it from {hub.url} "
        f"and set {flag} to the local file or folder."
    )


def _hub_one(hub: HubAddress, local: bool) -> Path:
    """One file; what is not in the cache yet is checked when it has arrived."""
    import huggingface_hub

    where: dict[str, Any] = {"repo_type": hub.kind, "revision": hub.revision}
    known = huggingface_hub.try_to_load_from_cache(hub.repo, hub.path, **where)
    found = Path(
        huggingface_hub.hf_hub_download(
            hub.repo, hub.path, local_files_only=local, **where
        )
    )
    if not isinstance(known, str) or Path(known).resolve() != found.resolve():
        try:
            check_sha256(found)
        except CheckpointError:
            found.resolve().unlink(missing_ok=True)  # several may find out
            raise
    return found


def _hub_file(hub: HubAddress, local: bool) -> Path:
    """One file; of a sharded index, its shards too."""
    path = _hub_one(hub, local)
    if path.name.endswith(".index.json"):
        names = json.loads(path.read_text("utf-8")).get("weight_map", {})
        folder = hub.path.removesuffix(path.name)
        for name in sorted(set(names.values())):
            _hub_one(dataclasses.replace(hub, path=folder + name), local)
    return path


def _hub_folder(hub: HubAddress, local: bool) -> Path:
    """The one checkpoint of a folder; what is in it decides, without downloading."""
    import huggingface_hub

    where: dict[str, Any] = {"repo_type": hub.kind, "revision": hub.revision}
    if local:
        root = huggingface_hub.snapshot_download(
            hub.repo, local_files_only=True, **where
        )
        if not (Path(root) / hub.path).exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("it was not fetched")
        return Path(root) / hub.path
    names = huggingface_hub.HfApi().list_repo_files(hub.repo, **where)
    folder = hub.path.strip("/") + "/" if hub.path else ""
    inside = [name for name in names if name.startswith(folder)]
    flat = [name for name in inside if "/" not in name.removeprefix(folder)]
    chosen = [name for name in flat if name.endswith(".index.json")]
    chosen = chosen or [name for name in flat if name.endswith(WEIGHT_SUFFIXES)]
    if len(chosen) == 1:
        return _hub_file(dataclasses.replace(hub, path=chosen[0]), local)
    endings = (*WEIGHT_SUFFIXES, ".index.json")
    weights = [name for name in inside if name.endswith(endings)]
    what = "holds several checkpoints" if chosen else "holds no checkpoint"
    listed = ", ".join((chosen or weights)[:12]) or "none"
    raise FileNotFoundError(f"the folder {what}, name one file: {listed}")


# Other addresses


def _fetch_url(address: UrlAddress, flag: str) -> Path:
    url, wanted = address.url, address.sha256
    path = _kept(address)
    if path.exists():
        return path
    if is_offline():
        raise FileNotFoundError(
            f"{url} is not in the cache, and offline mode is on (HF_HUB_OFFLINE). "
            f"Fetch it by other means and set {flag} to the local file."
        )
    folder = path.parent
    with files.explain_cache(folder.parent), temporary.resumable(folder) as place:
        if path.exists():
            return path
        place.mkdir(exist_ok=True)
        part = place / path.name
        try:
            if reason := network.unreachable(url):
                raise OSError(reason)
            _download(url, part)
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            arrived = part.exists() and part.stat().st_size
            if not arrived:
                shutil.rmtree(place)
            raise FileNotFoundError(
                f"{url} cannot be fetched: {network.reason(error)}. "
                + ("What has arrived is kept, the next run goes on from there. ")
                * bool(arrived)
                + f"Fetch it by other means and set {flag} to the local file."
            ) from None
        if wanted and (found := sha256(part)) != wanted:
            shutil.rmtree(place)
            raise ValueError(
                f"{url} must have sha256 {wanted}, the downloaded file has {found}; it "
                "was removed"
            )
        place.rename(folder)
    return path


def _kept(address: UrlAddress) -> Path:
    """Where the file of a URL is kept; its whole address and checksum decide."""
    key = hashlib.sha256(f"{address.url}#{address.sha256}".encode()).hexdigest()[:32]
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(address.url).path)).name
    name = re.sub(r"[\0-\x1f/\\\\]", "_", name)[-100:]
    name = "file" if name in ("", ".", "..") else name
    return files.cache_dir() / "downloads" / key / name


def _download(url: str, part: Path) -> None:
    """Fetches to `part`, going on from what is there if the server still has it."""
    for attempt in range(_ATTEMPTS):
        try:
            _download_once(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == _ATTEMPTS - 1:
                raise
        except (
            urllib.error.URLError,
            TimeoutError,
            ConnectionError,
            http.client.IncompleteRead,
        ):
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
    plain = urllib.parse.quote(url, safe=_IN_URLS)  # of a browser, with letters in it
    request = urllib.request.Request(plain, headers=headers)
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
        files.check_free_space(part, int(length or 0))
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
