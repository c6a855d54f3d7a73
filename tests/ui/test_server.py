"""What the server adds to the answers: it knows its own pages, the body, the wait and the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scoresde.runs.folder import RunFolder
from scoresde.ui.api import MOST_BYTES, opened
from scoresde.ui.jobs import one_line
from tests.cli.conftest import POINTS, save_model

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.routing import Route

from scoresde.ui.server import METHODS, _answering, _guarded

JSON = {"content-type": "application/json"}
PATIENCE = 90.0


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("named")
    save_model(found / "points.pt", POINTS)
    return found


@pytest.fixture
def ask(root):
    """Ask the API as a browser would, and return the status and the JSON value."""
    leaving: list[bool] = []
    with opened((root,)) as studio:
        answer = _answering(studio, lambda: bool(leaving))
        app = _guarded(Starlette(routes=[Route("/{rest:path}", answer, methods=METHODS)]))

        def asked(method, path, body=b"", headers=JSON, host="127.0.0.1:7860"):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            where, _, query = path.partition("?")
            scope = {
                "type": "http",
                "method": method,
                "path": where,
                "root_path": "",
                "query_string": query.encode(),
                "headers": [
                    (k.encode(), v.encode()) for k, v in ({"host": host} | headers).items()
                ],
            }
            sent: list = []

            async def receive():
                return {"type": "http.request", "body": content, "more_body": False}

            async def send(message):
                sent.append(message)

            asyncio.run(app(scope, receive, send))
            return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent))

        asked.leaving, asked.studio = leaving, studio
        yield asked


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:7860", None, 200),
        ("LOCALHOST:8080", "http://localhost:8080", 200),  # through a tunnel
        ("localhost", "http://localhost", 200),
        ("evil.example:7860", None, 400),  # a name that was led here
        ("127.0.0.1.evil.example", None, 400),
        ("127.0.0.1:1@evil.example", None, 400),
        ("", None, 400),
        ("127.0.0.1:7860", "http://evil.example", 403),
        ("127.0.0.1:7860", "http://127.0.0.1:3000", 403),
        ("127.0.0.1:7860", "null", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_hosts_and_pages_of_other_origins_are_refused(ask, host, origin, status, method):
    headers = JSON | ({} if origin is None else {"origin": origin})
    found, body = ask(method, "/samplers", {}, headers, host)
    if status == 200 and method != "GET":
        status = 405
    assert found == status
    assert status == 200 or "\n" not in body["error"]


def test_a_body_is_json_by_its_header_however_that_is_written(ask):
    body = {"job": "none"}
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/json ;x=y"):
        assert ask("POST", "/interrupt", body, {"content-type": kind})[0] == 404
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/jsonx"}):
        assert ask("POST", "/interrupt", body, headers)[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"\x00", b"\xff\xfe", b'{"a":' * 100_000, b'{"job": NaN}'),
        *(b" " * (MOST_BYTES + 1), b'{"\\ud800": 1}', b'{"' + b"n" * 200_000 + b'": 1}'),
    ],
)
def test_what_is_no_request_is_answered_by_a_short_line(ask, body):
    for path in ("/sample", "/edit", "/compare", "/interrupt", "/png-info"):
        status, found = ask("POST", path, body)
        assert status == 400
        assert "\n" not in found["error"]
        assert len(found["error"]) < 1000


def test_a_wait_that_is_no_time_begins_no_job(ask, root):
    body = {"model": str(root / "points.pt"), "seeds": "0", "steps": 1}
    for wait in ("nan", "-1", "soon", ""):
        status, found = ask("POST", f"/sample?wait={wait}", body)
        assert (status, found["error"][:5]) == (400, "wait:")
    assert ask("POST", "/sample?weit=3", body)[0] == 400
    assert not ask.studio.jobs._jobs
    status, found = ask("POST", "/sample?wait=60", body)
    assert (status, found["state"]) == (200, "done")


def test_who_waits_is_answered_when_the_server_ends(ask):
    job = ask.studio.jobs.submit("test", lambda job: job._stop.wait(PATIENCE) and {})
    ask.leaving.append(True)
    status, found = ask("GET", f"/progress?job={job.id}&wait=60")
    assert (status, found["state"]) == (200, job.state)
    assert not job.finished
    ask.studio.jobs.cancel(job)


def test_long_errors_are_cut():
    assert len(one_line(ValueError("x" * 10**6))) < 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_job_and_a_training_without_a_word_and_saves_the_checkpoint(
    root, tmp_path, name
):
    pytest.importorskip("gradio")
    number, out = getattr(signal, name), root / f"run-{name}"
    program = (
        "import sys, threading, time, pathlib\n"
        "import scoresde.ui.server as server, scoresde.ui.api as api\n"
        "root, out = map(pathlib.Path, sys.argv[1:])\n"
        "made = server.application\n"
        "def application(studio, leaving):\n"
        "    keys = 'data.train=200 data.test=20 network.kind=mlp network.width=8 '\n"
        "    keys += 'train.log_every=5 train.steps=1000000'\n"
        "    studio.trainings.start(str(out), None, 'data.kind=moons ' + keys)\n"
        "    body = {'model': str(root / 'points.pt'), 'seeds': '0-255', 'steps': 10000}\n"
        "    assert api.respond(studio, 'POST', '/sample', {}, body).status == 200\n"
        "    def watch():\n"
        "        while not studio.trainings.report(str(out))['step']: time.sleep(0.2)\n"
        "        print('trains', flush=True)\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
        "    return made(studio, leaving)\n"
        "server.application = application\n"
        "server.serve((root,), 0, ready=lambda line: print(line, flush=True))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root), str(out)],
        **dict.fromkeys(("stdout", "stderr"), subprocess.PIPE), text=True, env=environment,
    )  # fmt: skip
    lines = sorted(process.stdout.readline() for _ in range(2))
    assert lines[0].startswith("scoresde: http://127.0.0.1:"), process.stderr.read()
    assert lines[1] == "trains\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert not list(tmp_path.glob("scoresde-ui-*"))
    assert list(RunFolder(out).checkpoints.glob("step-*.pt"))
