"""Whether a server can be reached at all, found out before anybody waits for it."""

import functools
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request

_PATIENCE = 3.5  # seconds, for name and connection together
_PORTS = {"http": 80, "https": 443}


def unreachable(url: str) -> str:
    """Why no connection to the server of a URL comes about; empty if one does.

    Only a connection is opened, to the proxy where one is set. A name server that does
    not answer would hold up a program for half a minute, and clients that try again
    and again as well.
    """
    scheme, host, port = _target(url)
    try:
        _connect(host, port or _PORTS.get(scheme, 443))
    except OSError as error:
        return reason(error)
    return ""


def reason(error: BaseException) -> str:
    """What went wrong with a connection, on one line and without wrappings."""
    inner = getattr(error, "reason", None)
    if isinstance(error, urllib.error.URLError) and isinstance(inner, BaseException):
        return reason(inner)
    text = error.strerror if isinstance(error, OSError) and error.strerror else error
    return str(text).partition("\n")[0] or type(error).__name__


def _target(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port that a client connects to for a URL."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.scheme, parts.hostname or "", parts.port


@functools.lru_cache(maxsize=64)  # of what could be reached: errors are not kept
def _connect(host: str, port: int) -> None:
    """Opens a connection and closes it.

    Raises:
        OSError: It does not come about, or not in time.
    """
    outcome: list[OSError | None] = []

    def work() -> None:
        try:
            socket.create_connection((host, port), timeout=_PATIENCE).close()
        except OSError as error:
            outcome.append(error)
        except UnicodeError:  # a label that is empty or too long
            outcome.append(OSError(f"{host!r} is no name of a server"))
        else:
            outcome.append(None)

    # A thread, as nothing interrupts a search for a name.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not outcome:
        raise TimeoutError(f"{host} does not answer")
    if outcome[0] is not None:
        raise outcome[0]
