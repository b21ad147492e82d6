"""Fetching from a server on this machine: nothing takes its name before hash, size and content are checked."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mcode import fetch, manifold
from mcode.cli import main
from mcode.coders import CodeTables
from mcode.errors import InputError


class Server(ThreadingHTTPServer):
    """files: path -> (bytes to send, length to announce or None)."""

    files: dict[str, tuple[bytes, int | None]]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path not in self.server.files:
            self.send_error(404)
            return
        content, length = self.server.files[self.path]
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.files = {}
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where fetched manifolds go."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(manifold.SEARCH_VARIABLE, raising=False)
    return tmp_path / "home" / "mcode" / "manifolds"


@pytest.fixture
def content(tmp_path) -> bytes:
    """The bytes of a small manifold."""
    path = tmp_path / "tiny.safetensors"
    manifold.save(
        path,
        kind="hific",
        name="tiny",
        config={"qualities": 1, "stride": 16, "network": {}},
        tables=[CodeTables.fit([np.zeros((2, 1, 1), np.int16)])],
        tensors={"gain": np.ones((1, 2), np.float32)},
        card={},
    )
    return path.read_bytes()


def address(server: Server, path: str = "/tiny.safetensors") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_a_manifold_comes_whole_under_its_name(server, home, content):
    server.files["/tiny.safetensors"] = (content, len(content))
    told = []
    digest = hashlib.sha256(content).hexdigest()
    found = fetch.fetch_manifold(address(server), sha256=digest.upper(), progress=lambda *at: told.append(at))
    assert (home / "tiny.safetensors").read_bytes() == content
    assert (found.sha256, found.checked, found.manifold.name) == (digest, True, "tiny")
    assert told[-1] == (len(content), len(content))
    assert [p.name for p in home.iterdir()] == ["tiny.safetensors"]
    assert manifold.find("tiny") == home / "tiny.safetensors"


def test_a_pinned_name_brings_its_own_hash(server, home, content, monkeypatch):
    server.files["/v1/tiny.safetensors?x=1"] = (content, None)
    pinned = fetch.Pinned(address(server, "/v1/tiny.safetensors?x=1#y"), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(fetch.MANIFOLDS, "tiny", pinned)
    assert fetch.fetch_manifold("tiny").checked
    monkeypatch.setitem(fetch.MANIFOLDS, "tiny", fetch.Pinned(pinned.url, "0" * 64))
    with pytest.raises(InputError, match="its SHA-256 is"):
        fetch.fetch_manifold("tiny", force=True)
    assert (home / "tiny.safetensors").read_bytes() == content  # the one that was there stays


def refused(home: Path, words: str, *arguments, **options) -> None:
    with pytest.raises(InputError, match=words) as error:
        fetch.fetch_manifold(*arguments, **options)
    assert "\n" not in str(error.value)
    assert not home.exists() or not list(home.iterdir())


def test_what_is_wrong_never_takes_the_name(server, home, content):
    size = len(content)
    server.files |= {
        "/tiny.safetensors": (content, size),
        "/cut.safetensors": (content[:-9], size),
        "/shorter.safetensors": (content[:-2], None),
        "/damaged.safetensors": (content[:-1] + b"!", size),
        "/page.safetensors": (b"<html>not found</html>", None),
        "/long.safetensors": (content, None),
    }
    refused(home, "its SHA-256 is", address(server), sha256="ab" * 32)
    refused(home, "cut short after|no usable answer", address(server, "/cut.safetensors"))
    refused(home, "damaged manifold", address(server, "/shorter.safetensors"))
    refused(home, "but the file says", address(server, "/damaged.safetensors"))
    refused(home, "page.safetensors: not a manifold", address(server, "/page.safetensors"))
    refused(home, f"{size:,} bytes, and the limit is 100", address(server), limit_bytes=100)
    refused(home, "more than the limit of 100 bytes", address(server, "/long.safetensors"), limit_bytes=100)
    refused(home, "the server answers 404", address(server, "/absent.safetensors"))


def test_what_cannot_be_asked_for_is_said_in_one_line(server, home):
    refused(home, "this version pins none", "general-large")
    refused(home, "ends in NAME.safetensors", address(server, "/tiny.zip"))
    refused(home, "ends in NAME.safetensors", address(server, "/"))
    refused(home, "64 hexadecimal digits", address(server), sha256="abc")
    refused(home, "http or https", "file:///etc/tiny.safetensors")


def test_without_a_network_it_says_where_to_put_the_file(home):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    refused(home, f"cannot be reached .*put the file into {home}", f"http://127.0.0.1:{port}/tiny.safetensors")


def test_a_file_that_is_there_is_not_replaced(server, home, content):
    server.files["/tiny.safetensors"] = (content, None)
    home.mkdir(parents=True)
    (home / "tiny.safetensors").write_text("mine")
    with pytest.raises(InputError, match="exists; add --force"):
        fetch.fetch_manifold(address(server))
    assert (home / "tiny.safetensors").read_text() == "mine"
    assert not fetch.fetch_manifold(address(server), force=True).checked


def test_the_command_prints_the_hash_to_pin(server, home, content, capsys):
    server.files["/tiny.safetensors"] = (content, None)
    assert main(["manifolds", "fetch", address(server), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == hashlib.sha256(content).hexdigest()
    assert main(["manifolds", "fetch", address(server)]) == 2
    assert capsys.readouterr().err.startswith("mcode: error: ")
    assert main(["manifolds", "fetch", address(server), "--force"]) == 0
    assert "--manifold tiny" in capsys.readouterr().out
