"""Which checkpoints a run reads and downloads, looked at before it starts."""

import logging
import pathlib
import shutil
from collections.abc import Iterable

from fdjax.checkpoint import address, fetch, files
from fdjax.checkpoint.address import WEIGHT_SUFFIXES, HubAddress, parse
from fdjax.contract.component import ParametricComponent
from fdjax.run.memory import size_text

_TIMEOUT = 5.0  # seconds
_log = logging.getLogger(__name__)


def announce(sources: Iterable[str]) -> None:
    """Says how much is to be downloaded, where to, and what is free there.

    Says nothing where everything is on this machine. Where the site does not answer,
    that is left to the download itself.

    Args:
        sources: Addresses of checkpoints.

    Raises:
        OSError: The disk has no room for it.
    """
    hubs = [hub for source in dict.fromkeys(sources) if (hub := _missing(source))]
    if not hubs or fetch.is_offline():
        return
    sizes = _sizes(hubs)
    known = sum(size for size in sizes.values() if size is not None)
    unknown = [hub.url for hub, size in sizes.items() if size is None]
    folder = _cache()
    free = shutil.disk_usage(_existing(folder)).free
    what = [size_text(known)] if known else []
    what += [f"{url} of unknown size" for url in unknown]
    what_for = ", ".join(what)
    _log.info(
        "To download, once: %s; to %s (%s free).", what_for, folder, size_text(free)
    )
    files.check_free_space(folder, known)


def check_local(parts: Iterable[ParametricComponent]) -> None:
    """Finds missing files before the first one is read.

    Args:
        parts: Whose checkpoints a run reads.

    Raises:
        FileNotFoundError: A path on this machine has no file; names it and its field.
    """
    for part in parts:
        source = part.checkpoint_path
        path = None if source is None else address.local_path(source)
        if path is not None and not path.exists():
            raise FileNotFoundError(
                f"There is no checkpoint at {source} "
                f"({type(part.params_owner.config).__name__}.checkpoint_path)."
            )


def _cache() -> pathlib.Path:
    from huggingface_hub import constants

    return pathlib.Path(constants.HF_HUB_CACHE)


def _existing(path: pathlib.Path) -> pathlib.Path:
    while not path.exists():
        path = path.parent
    return path


def _missing(source: str) -> HubAddress | None:
    """The address, if it is of Hugging Face and not in the cache yet."""
    import huggingface_hub

    hub = parse(source)
    if not isinstance(hub, HubAddress) or not hub.path:
        return None
    known = huggingface_hub.try_to_load_from_cache(
        hub.repo, hub.path, revision=hub.revision
    )
    return None if isinstance(known, str) else hub


def _sizes(hubs: Iterable[HubAddress]) -> dict[HubAddress, int | None]:
    """Bytes of each file, or of an index and its shards; None where nobody says.

    One request per repository, and none after one that was not answered: that waits.
    """
    listings: dict[tuple[str, str | None], dict[str, int]] = {}
    answers = True
    for hub in hubs:
        repository = hub.repo, hub.revision
        if answers and repository not in listings:
            try:
                listings[repository] = _listing(*repository)
            except Exception as error:  # the client's transport has errors of its own
                _log.debug("%s: no size (%s).", hub.url, error)
                answers = False
    return {hub: _size(hub, listings.get((hub.repo, hub.revision))) for hub in hubs}


def _listing(repo: str, revision: str | None) -> dict[str, int]:
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(
        repo, revision=revision, files_metadata=True, timeout=_TIMEOUT
    )
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _size(hub: HubAddress, sizes: dict[str, int] | None) -> int | None:
    if sizes is None or not hub.path.endswith(".index.json"):
        return (sizes or {}).get(hub.path)
    folder, _, name = hub.path.rpartition("/")
    stem = name.removesuffix(".index.json").rpartition(".")[0]
    return sum(
        size
        for file, size in sizes.items()
        if file.rpartition("/")[0] == folder
        and file.rpartition("/")[2].startswith(stem)
        and file.endswith(WEIGHT_SUFFIXES)
    )
