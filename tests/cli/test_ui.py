"""``scoresde ui``: one line for what keeps it from serving."""

from __future__ import annotations

import socket
import sys

import pytest

from scoresde.cli.main import main


def refusal(capsys, *arguments: str) -> str:
    assert main(["ui", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_folder_that_is_not_there(capsys, tmp_path):
    assert f"{tmp_path / 'none'}: no such folder" in refusal(capsys, str(tmp_path / "none"))


def test_a_port_in_use(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port: {port}: Address already in use" in refusal(
            capsys, str(tmp_path), "--port", port
        )
    assert "--port" in refusal(capsys, str(tmp_path), "--port", "70000")


def test_without_gradio_it_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    found = refusal(capsys, str(tmp_path), "--port", "0")
    assert "pip install scoresde[ui]" in found


@pytest.mark.parametrize("folders", [("a", "b"), ()])
def test_folders_are_positional_and_any_number(folders, monkeypatch, tmp_path):
    seen: list[tuple] = []
    monkeypatch.chdir(tmp_path)
    for name in (*folders, "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("scoresde.ui.server.serve", lambda *given, **more: seen.append(given))
    assert main(["ui", *folders, "--device", "cpu"]) == 0
    roots, port = seen[0]
    assert [str(root) for root in roots] == list(folders or ("runs",))
    assert port == 7860
