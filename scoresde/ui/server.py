"""Serves the page and the JSON API, to this machine alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from scoresde.ui.api import MOST_BYTES, ROUTES, Answer, Studio, opened, respond
from scoresde.ui.jobs import NotFound

HOST = "127.0.0.1"
HOSTS = re.compile(rf"({re.escape(HOST)}|localhost)(:\d+)?", re.IGNORECASE)
"""The names by which a browser may ask: another, led here by its owner, is refused."""
FILES = "/gradio_api/file="
PAUSE, LONGEST = 0.05, 60.0
"""Seconds between two looks at a job that a request waits for, and the longest that it may."""
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def serve(
    roots: tuple[Path, ...],
    port: int,
    *,
    open_page: bool = False,
    device: str = "cpu",
    ready: Callable[[str], None] = print,
) -> None:
    """Serve until an interrupt. Raises ValueError if the port is in use or gradio is missing."""
    _on_endings(signal.default_int_handler)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen(128)  # who asks before all is imported waits
        except OSError as error:
            raise ValueError(f"port: {port}: {error.strerror}; give another") from None
        with opened(roots, device) as studio:
            app = application(studio, lambda: server.should_exit)
            import uvicorn

            address = f"http://{HOST}:{listening.getsockname()[1]}"
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
            server = uvicorn.Server(config)
            # What is cut off at the end is no error.
            logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
            _on_endings(server.handle_exit)
            ready(f"scoresde: {address} (Ctrl-C stops it)")
            if open_page:
                threading.Timer(1.0, webbrowser.open, (address,)).start()
            server.run([listening])
            _on_endings(signal.default_int_handler)  # a second one does not wait for a training


def _on_endings(handler: Callable[..., Any]) -> None:
    """What is done at Ctrl-C, at SIGTERM, and at SIGHUP, which a closed terminal sends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has not all of them
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as of nohup
            signal.signal(number, handler)


def application(studio: Studio, leaving: Callable[[], bool] = lambda: False) -> Any:
    """The page and the API as one application, which is asked whether it is to end.

    Raises ValueError if gradio is missing.
    """
    # Read when gradio is imported: it would report to its makers, and keep files elsewhere.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(studio.work / "gradio")
    try:
        import gradio
        from fastapi import FastAPI
    except ImportError:
        raise ValueError("ui: needs gradio; pip install scoresde[ui]") from None
    from scoresde.ui.page import CSS, built

    app = FastAPI(title="scoresde", docs_url=None, redoc_url=None, openapi_url=None)
    for path in (*ROUTES, "/jobs/{rest:path}"):
        app.add_route(path, _answering(studio, leaving), methods=METHODS)
    page = gradio.mount_gradio_app(
        app, built(studio), "/", server_name=HOST, allowed_paths=[str(studio.work / "jobs")],
        max_file_size=MOST_BYTES, show_error=True, css=CSS, ssr_mode=False, mcp_server=False,
        enable_monitoring=False, pwa=False, footer_links=[],
    )  # fmt: skip
    return _guarded(page)


def _answering(studio: Studio, leaving: Callable[[], bool]) -> Callable[[Any], Awaitable[Any]]:
    """A handler of requests to the API."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import FileResponse

    async def answer(request: Any) -> Any:
        method = "GET" if request.method == "HEAD" else request.method
        path, query = request.url.path, dict(request.query_params)
        try:
            wait = _seconds(query.pop("wait", "0"))
            body = await _body(request) if method == "POST" else None
        except ValueError as error:
            return _in_json(400, {"error": str(error)})
        found: Answer = await run_in_threadpool(respond, studio, method, path, query, body)
        if found.status == 200 and isinstance(found.body, Path):
            return FileResponse(found.body)
        if found.status == 200 and wait and "job" in found.body:
            with suppress(NotFound):  # forgotten meanwhile
                await _waited(studio, found.body["job"], wait, leaving)
            job = f"/jobs/{found.body['job']}"
            found = await run_in_threadpool(respond, studio, "GET", job, {})
        return _in_json(*found)

    return answer


def _in_json(status: int, body: Any) -> Any:
    """An answer in JSON of ASCII characters, which hold any name of a file and any text."""
    from starlette.responses import Response

    return Response(json.dumps(body), status, media_type="application/json")


def _seconds(text: str) -> float:
    """The time to wait for a job. Raises ValueError."""
    with suppress(ValueError):
        if (seconds := float(text)) >= 0:
            return min(seconds, LONGEST)
    raise ValueError(f"wait: need seconds, such as 30, got {text!r:.40}")


async def _waited(studio: Studio, name: str, seconds: float, leaving: Callable[[], bool]) -> None:
    """Wait for a job some seconds, without a thread. Raises NotFound."""
    for _ in range(round(seconds / PAUSE)):
        if studio.jobs.get(name).finished or leaving():
            return
        await asyncio.sleep(PAUSE)


async def _body(request: Any) -> Any:
    """The JSON value of a request. Raises ValueError."""
    # Another page can post a form here unasked, but not this type.
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind.strip().lower() != "application/json":
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
    """Refuse other hosts and pages of other origins.

    Answer a file outside the allowed folders as one that is not there, and take a browser that is
    closed in the middle of a request for no error.
    """
    from starlette.requests import ClientDisconnect

    async def wrapped(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 403:
                message = {**message, "status": 404}
            await send(message)

        headers = dict(scope.get("headers", ()))
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if scope["type"] != "lifespan" and not HOSTS.fullmatch(host):
            answer = _in_json(400, {"error": f"host: {host!r:.80} is not served; ask {HOST}"})
        elif origin and origin.lower() != f"http://{host.lower()}":
            answer = _in_json(403, {"error": f"origin: a page of {origin!r:.80} may not ask"})
        else:
            answer = app
        ask = scope["type"] == "http" and scope["path"].startswith(FILES)
        with suppress(ClientDisconnect):
            await answer(scope, receive, sent if ask else send)

    return wrapped
