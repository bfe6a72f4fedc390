"""Prompts and downloads in; outputs that appear whole or not at all."""

import contextlib
import importlib.util
import os
import pathlib
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

_TIMEOUT = 30.0  # seconds that a download may stand still


def cache_dir() -> pathlib.Path:
    """Where fdjax keeps what it can make again: FDJAX_CACHE_DIR or ~/.cache/fdjax."""
    given = os.environ.get("FDJAX_CACHE_DIR")
    return pathlib.Path(given or "~/.cache/fdjax").expanduser()


def read_prompt(value: str | os.PathLike) -> str:
    """The prompt that a config field stands for.

    A path, or a text that ends in `.txt`, is a file: its first line that is not empty
    is the prompt. Any other text is the prompt itself.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The text, or the file, is empty or not UTF-8.
    """
    if isinstance(value, str) and not value.strip().endswith(".txt"):
        if not value.strip():
            raise ValueError(
                "prompt must be a text or a path to a .txt file, got an empty text."
            )
        return value
    path = pathlib.Path(value if not isinstance(value, str) else value.strip())
    if not path.is_file():
        raise FileNotFoundError(f"prompt file {path} does not exist.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {path} must be UTF-8 text: {error}.") from None
    for line in lines:
        if line.strip():
            return line.strip()
    raise ValueError(f"prompt file {path} has no line that is not empty.")


def check_output_dir(path: str | os.PathLike) -> pathlib.Path:
    """Makes a directory and writes a probe into it; returns its path.

    Raises:
        PermissionError: It cannot be made or written; the message says why.
    """
    path = pathlib.Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".fdjax-probe-"):
            pass
    except OSError as error:
        reason = "it is a file" if path.is_file() else (error.strerror or str(error))
        raise PermissionError(
            f"output directory {path} cannot be written: {reason}."
        ) from None
    return path


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """A hidden name beside `path`, with its suffix, for what is not complete yet."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


@contextlib.contextmanager
def atomic_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, and renames it to `path` on success."""
    temporary = temporary_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file that appears whole or not at all."""
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def local_path(source: str | os.PathLike) -> pathlib.Path:
    """The path that a config names: a file, or `package://module/path/of/file`.

    The second form is data inside an installed package; a config that uses it is the
    same wherever that package is installed.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    text = os.fspath(source)
    if not text.startswith("package://"):
        return pathlib.Path(text).expanduser()
    module, _, name = text.removeprefix("package://").partition("/")
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"{text}: no package {module!r} is installed.")
    return pathlib.Path(found.submodule_search_locations[0]) / name


def resolve_input(value: str | os.PathLike) -> pathlib.Path:
    """The local file of a path, an http(s) URL or `hf://owner/repo/path/of/file`.

    What is remote is downloaded once: into fdjax's cache, or Hugging Face's.

    Raises:
        FileNotFoundError: A path does not exist, or a URL cannot be fetched.
    """
    url = urllib.parse.urlsplit(os.fspath(value))
    if url.scheme == "hf":
        return _from_hub(os.fspath(value))
    if url.scheme in ("http", "https"):
        name = pathlib.PurePosixPath(urllib.parse.unquote(url.path)).name
        folder = cache_dir() / "inputs" / url.netloc.replace(":", "_")
        return download(os.fspath(value), folder / (name or "downloaded_file.bin"))
    path = pathlib.Path(value).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"input file {path} does not exist.")
    if path.is_dir():
        raise FileNotFoundError(f"input file {path} is a directory.")
    return path


def _from_hub(url: str) -> pathlib.Path:
    import huggingface_hub

    owner, _, rest = url.removeprefix("hf://").partition("/")
    repository, _, name = rest.partition("/")
    if not (owner and repository and name):
        raise FileNotFoundError(f"{url} must be hf://owner/repository/path/of/file.")
    try:
        local = huggingface_hub.hf_hub_download(f"{owner}/{repository}", name)
    except (OSError, ValueError) as error:  # what the package raises derives from them
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise FileNotFoundError(
            f"{url} cannot be downloaded: {reason}. With the file at hand, give its "
            f"path instead; it is {name} of https://huggingface.co/{owner}/{repository}."
        ) from None
    return pathlib.Path(local)


def download(url: str, path: pathlib.Path) -> pathlib.Path:
    """Fetches a URL to a file that is not there yet; returns its path.

    Raises:
        FileNotFoundError: It cannot be fetched; nothing is left behind.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            atomic_output(path) as temporary,
            urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
            temporary.open("wb") as file,
        ):
            while block := response.read(1 << 20):
                file.write(block)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise FileNotFoundError(f"{url} cannot be downloaded: {error}.") from None
    return path
