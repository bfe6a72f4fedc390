"""Stand-ins for Hugging Face and for a plain web server, on this machine."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager


class Server:
    """What the handler serves, and what it has been asked.

    Attributes:
        files: Content by path, e.g. "owner/repo/folder/a.safetensors" or "plain/a.pt".
        requests: (method, path, Range header) in order.
        drop_after: Bytes after which connections break, as often as the list says.
        status: HTTP status to answer with, by path.
        tags: Checksums to state in place of the true ones, by path.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.drop_after: list[int] = []
        self.status: dict[str, int] = {}
        self.tags: dict[str, str] = {}
        self.url = ""


def _make_handler(server: Server):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, with_body):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip(
                "/"
            )
            wanted = self.headers.get("Range")
            server.requests.append((self.command, path, wanted))
            if path in server.status:
                return self.send(server.status[path], b"", {})
            if path.startswith("api/models/"):
                return self.list_files(path)
            if "/resolve/" in path:
                plain = path.removeprefix("datasets/").removeprefix("spaces/")
                owner, repo, _, revision, *rest = plain.split("/")
                rest = rest[2:] if revision == "refs" else rest
                return self.send_file("/".join([owner, repo, *rest]), wanted, with_body)
            return self.send_file(path, wanted, with_body)

        def list_files(self, path):
            repo = "/".join(path.split("/")[2:4])
            names = [n for n in server.files if n.startswith(repo + "/")]
            if not names:
                headers = {"X-Error-Code": "RepoNotFound"}
                return self.send(404, b"{}", headers)
            if "/tree/" not in path:
                body = json.dumps({"id": repo, "sha": "0" * 40, "siblings": []})
                return self.send(
                    200, body.encode(), {"Content-Type": "application/json"}
                )
            body = json.dumps(
                [
                    {
                        "type": "file",
                        "path": n.removeprefix(repo + "/"),
                        "size": len(server.files[n]),
                        "oid": "0" * 40,
                    }
                    for n in names
                ]
            )
            self.send(200, body.encode(), {"Content-Type": "application/json"})

        def send_file(self, name, wanted, with_body):
            content = server.files.get(name)
            if content is None:
                repo = "/".join(name.split("/")[:2]) + "/"
                known = any(n.startswith(repo) for n in server.files)
                code = "EntryNotFound" if known else "RepoNotFound"
                return self.send(404, b"", {"X-Error-Code": code})
            stated = server.tags.get(name, hashlib.sha256(content).hexdigest())
            tag = f'"{stated}"'
            headers = {
                "ETag": tag,
                "X-Repo-Commit": "0" * 40,
                "Accept-Ranges": "bytes",
            }
            start, status = 0, 200
            if wanted and self.headers.get("If-Range", tag) == tag:
                start, status = int(wanted.split("=")[1].split("-")[0]), 206
                end = wanted.split("-")[1]
                headers["Content-Range"] = (
                    f"bytes {start}-{end or len(content) - 1}/{len(content)}"
                )
                if start >= len(content):
                    return self.send(416, b"", {})
            self.send(status, content[start:], headers, with_body)

        def send(self, status, body, headers, with_body=True):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not with_body:
                return
            if server.drop_after and len(body) > 64:
                self.wfile.write(body[: server.drop_after.pop(0)])
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(body)

    return Handler


class _QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Connections are broken on purpose."""


@contextmanager
def serve() -> Iterator[Server]:
    """Serves until the context ends."""
    server = Server()
    web = _QuietServer(("127.0.0.1", 0), _make_handler(server))
    web.daemon_threads = True
    server.url = f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        web.shutdown()
        web.server_close()
        thread.join()
