"""The server's addresses: the page, its socket, and HTTP for programs."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from fdjax.serve import access, metrics, videos
from fdjax.serve.access import Role
from fdjax.serve.connection import Connection
from fdjax.serve.engine import Engine
from fdjax.serve.lobby import Lobby
from fdjax.serve.model import Model
from fdjax.serve.parcels import Parcels
from fdjax.serve.settings import ServeSettings

_PAGE = pathlib.Path(__file__).parent / "page"
_MOST_JSON = 64 * 1024
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Handler = Callable[[Request], Awaitable[Response]]


class Refusal(Exception):
    """An answer that is no success: its HTTP status, and why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Server:
    """What the addresses answer from."""

    def __init__(
        self, model: Model, settings: ServeSettings, on_failure: Callable[[], None]
    ) -> None:
        """Starts nothing; the application's beginning does.

        Args:
            model: That is served.
            settings: Limits and access.
            on_failure: Called where the model could not be loaded.
        """
        self.settings = settings
        self.parcels = Parcels(2 * settings.max_upload_mb * 10**6)
        self.engine = Engine(
            model,
            self._on_progress,
            max_sessions=settings.max_sessions,
            lanes=settings.lanes,
        )
        self.lobby = Lobby(self.engine, settings, self.parcels)
        self.videos = videos.Videos(settings.max_videos, self._begin_video)
        self._on_failure = on_failure
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs the engine, and looks after idle sessions."""
        del app
        self._loop = asyncio.get_running_loop()
        self.engine.start()
        watch = asyncio.ensure_future(self.lobby.watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.to_thread(self.engine.stop)

    def _on_progress(self) -> None:
        """On the engine's thread: the page hears of it."""
        if self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.lobby.look)
            if self.engine.phase == "failed":
                self._loop.call_soon_threadsafe(self._on_failure)

    def _begin_video(self, video: videos.Video) -> None:
        self.engine.call(lambda: self.engine.add_job(video))

    # Who may ask

    def guarded(self, role: Role, handler: Handler) -> Handler:
        """A handler for those of a role; errors become JSON."""

        async def answer(request: Request) -> Response:
            try:
                self._check(request, role)
                return await handler(request)
            except Refusal as refusal:
                error = {"message": refusal.text, "code": refusal.status}
                return JSONResponse({"error": error}, refusal.status)

        return answer

    def _check(self, request: Request, role: Role) -> None:
        headers = request.headers
        if not access.is_allowed_origin(
            headers.get("origin"), headers.get("host"), self.settings
        ):
            raise Refusal(403, "Pages of other sites may not ask this server.")
        given = access.bearer(headers.get("authorization"))
        if access.role_of(given, self.settings) < role:
            raise Refusal(
                401, f"Give the {role.name.lower()}'s token: Authorization: Bearer ..."
            )

    # What they ask for

    async def page(self, request: Request) -> Response:
        """The page."""
        del request
        return FileResponse(_PAGE / "index.html", headers=_HEADERS)

    async def health(self, request: Request) -> Response:
        """Whether sessions can begin."""
        del request
        engine = self.engine
        status = {"ready": "ok"}.get(engine.phase, engine.phase)
        body = {"status": status, "text": engine.text, "progress": engine.progress}
        return JSONResponse(body, 200 if engine.phase == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        del request
        body = metrics.text(self.engine, self.lobby)
        return PlainTextResponse(body, media_type="text/plain; version=0.0.4")

    async def sessions(self, request: Request) -> Response:
        """Every session, for the operator."""
        del request
        now = asyncio.get_running_loop().time()
        found = []
        for guest in self.lobby.playing:
            live = guest.live
            # The engine's thread may be about to put others in their place.
            timeline = None if live is None else live.timelines.get(live.selected)
            if live is not None and timeline is not None:
                found.append(
                    {
                        "id": live.id,
                        "state": timeline.session.state.value,
                        "connected": guest.left is None,
                        "playing": live.playing,
                        "committed_step_id": len(timeline.chunks),
                        "prompt": timeline.prompt,
                        "timelines": len(live.timelines),
                        "watchers": len(live.watchers),
                        "began": live.began,
                        "idle_seconds": round(now - guest.last_input, 1),
                        "chunk_ms": round(1e3 * live.chunk_seconds, 1),
                    }
                )
        return JSONResponse({"sessions": found, "waiting": len(self.lobby.waiting)})

    async def end_session(self, request: Request) -> Response:
        """Ends one."""
        if not self.lobby.end(request.path_params["name"]):
            raise Refusal(404, "There is no such session.")
        return Response(status_code=204)

    async def make_video(self, request: Request) -> Response:
        """Begins a video."""
        try:
            body = json.loads(await _body(request, _MOST_JSON))
            model = self.engine.model
            video = videos.Video(model, videos.read_request(body, model))
        except (ValueError, RecursionError) as error:
            raise Refusal(400, str(error)) from None
        if not self.videos.add(video):
            raise Refusal(429, "Too many videos wait; come back later.")
        return JSONResponse(video.answer(), 202)

    async def list_videos(self, request: Request) -> Response:
        """Every video."""
        del request
        data = [video.answer() for video in self.videos.all()]
        return JSONResponse({"object": "list", "data": data})

    async def get_video(self, request: Request) -> Response:
        """How far a video is."""
        return JSONResponse(self._video(request).answer())

    async def delete_video(self, request: Request) -> Response:
        """Stops and forgets a video."""
        self.videos.remove(self._video(request).id)
        return Response(status_code=204)

    async def video_content(self, request: Request) -> Response:
        """Its mp4."""
        video = self._video(request)
        if video.data is None:
            raise Refusal(409, f"The video is {video.status}; ask again later.")
        return Response(video.data, media_type="video/mp4")

    def _video(self, request: Request) -> videos.Video:
        video = self.videos.get(request.path_params["name"])
        if video is None:
            raise Refusal(404, "There is no such video.")
        return video

    async def put_file(self, request: Request) -> Response:
        """Takes a file, which a session's command then names."""
        data = await _body(request, self.settings.max_upload_mb * 10**6)
        name = self.parcels.put(data, "application/octet-stream", "upload")
        return JSONResponse({"file": name}, 201)

    async def get_file(self, request: Request) -> Response:
        """A file that a session has made; its address is good once."""
        parcel = self.parcels.take(request.path_params["name"])
        if parcel is None:
            raise Refusal(404, "There is no such file, or it was fetched before.")
        disposition = f'attachment; filename="{parcel.name}"'
        headers = {"Content-Disposition": disposition, "Cache-Control": "no-store"}
        return Response(parcel.data, media_type=parcel.media_type, headers=headers)

    async def socket(self, socket: WebSocket) -> None:
        """A page's connection."""
        await Connection(socket, self.engine, self.lobby, self.settings).run()


async def _body(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Refusal(413, f"A body must have at most {limit:,} bytes.")
        parts.append(part)
    return b"".join(parts)


class _Page(StaticFiles):
    """The page's files, with the headers that all of it has."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """A file's answer."""
        response = super().file_response(*arguments, **options)
        response.headers.update(_HEADERS)
        return response


def make_app(server: Server) -> Starlette:
    """The application of a server."""
    player, director = Role.PLAYER, Role.DIRECTOR

    def route(path: str, method: str, role: Role, handler: Handler) -> Route:
        return Route(path, server.guarded(role, handler), methods=[method])

    video = "/v1/videos/{name}"
    return Starlette(
        routes=[
            Route("/", server.page),
            Mount("/page", _Page(directory=_PAGE)),
            Route("/healthz", server.health),
            route("/metrics", "GET", director, server.metrics),
            route("/v1/sessions", "GET", director, server.sessions),
            route("/v1/sessions/{name}", "DELETE", director, server.end_session),
            route("/v1/videos", "POST", player, server.make_video),
            route("/v1/videos", "GET", director, server.list_videos),
            route(video, "GET", player, server.get_video),
            route(video, "DELETE", player, server.delete_video),
            route(f"{video}/content", "GET", player, server.video_content),
            route("/v1/files", "POST", player, server.put_file),
            route("/v1/files/{name}", "GET", Role.NONE, server.get_file),
            WebSocketRoute("/v1/live", server.socket),
        ],
        lifespan=server.lifespan,
    )
