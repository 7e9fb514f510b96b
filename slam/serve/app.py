"""The HTTP interface of a map; docs/serving.md describes it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from relocalizer.errors import UserError
from slam.serve.uploads import UploadError, read_upload
from slam.serve.worker import LocalizationWorker

MOST_WAITING = 8  # requests that are read or wait for the worker; it bounds the memory that uploads take
RETRY_S = 2  # after how many seconds a client is asked to come again when there are too many
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src blob:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
}


class MapService:
    """The handlers of the requests. All run in the event loop's thread; only the worker computes."""

    def __init__(self, worker: LocalizationWorker, outline: dict[str, Any], facts: dict[str, Any]) -> None:
        self._worker, self._facts = worker, facts
        self._outline = JSONResponse(outline, headers=_HEADERS).body  # encoded once
        self._page = files("slam.serve").joinpath("page.html").read_text(encoding="utf-8")
        self._waiting = self._answered = 0

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers=_HEADERS | _PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        state = {"status": "ok", **self._facts, "answered": self._answered, "waiting": self._waiting}
        return JSONResponse(state, headers=_HEADERS)

    async def map(self, request: Request) -> Response:
        return Response(self._outline, media_type="application/json", headers=_HEADERS)

    async def locate(self, request: Request) -> Response:
        """The pose of the uploaded image, or the reason why it has none; both are answers with status 200."""
        if self._waiting >= MOST_WAITING:
            raise HTTPException(
                503,
                f"{self._waiting} images are waiting already; send this one again in {RETRY_S} seconds",
                headers={"Retry-After": str(RETRY_S)},
            )
        self._waiting += 1
        try:
            answer = await self._worker.locate(await read_upload(request))
        finally:
            self._waiting -= 1
        self._answered += 1
        return JSONResponse(answer, headers=_HEADERS)


def make_app(service: MapService, *, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The application.

    Args:
        hosts: names by which it may be reached. Those of the loopback keep pages of other sites from reading answers
            through a name that they make point here (DNS rebinding); ("*",) accepts all.
    """
    routes = [
        Route("/", service.page),
        Route("/healthz", service.health),
        Route("/map", service.map),
        Route("/locate", service.locate, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refused, UserError: _unusable, Exception: _internal}
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[trusted])


async def _refused(request: Request, error: HTTPException) -> Response:
    sentences = {
        404: "there is no such page; there are / , /healthz, /map and POST /locate",
        405: f"{request.method} is not possible here; POST an image to /locate, GET everything else",
    }
    sentence = sentences.get(error.status_code, error.detail)
    return JSONResponse({"error": sentence}, error.status_code, headers={**_HEADERS, **(error.headers or {})})


async def _unusable(request: Request, error: UserError) -> Response:
    status = error.status if isinstance(error, UploadError) else 422
    return JSONResponse({"error": " ".join(str(error).split())}, status, headers=_HEADERS)


async def _internal(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "an internal error; the log of the service has its traceback"}, 500, headers=_HEADERS)
