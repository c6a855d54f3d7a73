"""Serves the page and the JSON API, to this machine alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from scoresde.ui.api import MOST_BYTES, ROUTES, Answer, Studio, opened, respond

HOST = "127.0.0.1"
HOSTS = [HOST, "localhost"]
"""The names by which a browser may ask: another, led here by its owner, is refused."""
FILES = "/gradio_api/file="
PAUSE, LONGEST = 0.05, 60.0
"""Seconds between two looks at a job that a request waits for, and the longest that it may."""
METHODS = ["GET", "POST"]


def serve(
    roots: tuple[Path, ...],
    port: int,
    *,
    open_page: bool = False,
    device: str = "cpu",
    ready: Callable[[str], None] = print,
) -> None:
    """Serve until an interrupt. Raises ValueError if the port is in use or gradio is missing."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen(128)  # who asks before all is imported waits
        except OSError as error:
            raise ValueError(f"port: {port}: {error.strerror}; give another") from None
        with opened(roots, device) as studio:
            app = application(studio)
            import uvicorn

            address = f"http://{HOST}:{listening.getsockname()[1]}"
            ready(f"scoresde: {address} (Ctrl-C stops it)")
            if open_page:
                threading.Timer(1.0, webbrowser.open, (address,)).start()
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
            # uvicorn repeats the signal that stopped it, which would end the program at once.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run([listening])


def application(studio: Studio) -> Any:
    """The page and the API as one application. Raises ValueError if gradio is missing."""
    # Read when gradio is imported: it would report to its makers, and keep files elsewhere.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(studio.work / "gradio")
    try:
        import gradio
        from fastapi import FastAPI
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise ValueError("ui: needs gradio; pip install scoresde[ui]") from None
    from scoresde.ui.page import CSS, built

    app = FastAPI(title="scoresde", docs_url=None, redoc_url=None, openapi_url=None)
    for path in (*ROUTES, "/jobs/{rest:path}"):
        app.add_route(path, _answering(studio), methods=METHODS)
    page = gradio.mount_gradio_app(
        app, built(studio), "/", server_name=HOST, allowed_paths=[str(studio.work / "jobs")],
        max_file_size=MOST_BYTES, show_error=True, css=CSS, ssr_mode=False, mcp_server=False,
        enable_monitoring=False, pwa=False, footer_links=[],
    )  # fmt: skip
    return TrustedHostMiddleware(_guarded(page), allowed_hosts=HOSTS)


def _answering(studio: Studio) -> Callable[[Any], Awaitable[Any]]:
    """A handler of requests to the API."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import FileResponse, JSONResponse

    async def answer(request: Any) -> Any:
        try:
            body = await _body(request) if request.method == "POST" else None
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        path, query = request.url.path, dict(request.query_params)
        found: Answer = await run_in_threadpool(respond, studio, request.method, path, query, body)
        if found.status == 200 and isinstance(found.body, Path):
            return FileResponse(found.body)
        if found.status == 200 and "wait" in query and "job" in found.body:
            await _waited(studio, found.body["job"], query["wait"])
            job = f"/jobs/{found.body['job']}"
            found = await run_in_threadpool(respond, studio, "GET", job, {})
        return JSONResponse(found.body, found.status)

    return answer


async def _waited(studio: Studio, name: str, seconds: str) -> None:
    """Wait for a job some seconds, without a thread."""
    job = studio.jobs.get(name)
    try:
        end = min(max(float(seconds), 0.0), LONGEST)
    except ValueError:
        end = 0.0
    for _ in range(round(end / PAUSE)):
        if job.finished:
            return
        await asyncio.sleep(PAUSE)


async def _body(request: Any) -> Any:
    """The JSON value of a request. Raises ValueError."""
    # Another page can post a form here unasked, but not this type.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise ValueError("body: send JSON, with the header content-type: application/json")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise ValueError(f"body: more than {MOST_BYTES:,} bytes; send less")
    try:
        return json.loads(bytes(content))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: no JSON ({error})") from None


def _guarded(app: Any) -> Any:
    """Answer a file outside the allowed folders as one that is not there.

    And take a browser that is closed in the middle of a request for no error.
    """
    from starlette.requests import ClientDisconnect

    async def wrapped(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 403:
                message = {**message, "status": 404}
            await send(message)

        ask = scope["type"] == "http" and scope["path"].startswith(FILES)
        with suppress(ClientDisconnect):
            await app(scope, receive, sent if ask else send)

    return wrapped
