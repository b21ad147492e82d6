"""Fetching from a server on this machine: nothing takes its name before hash, size and content are checked."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mcode import fetch, manifold
from mcode.cli import main
from mcode.errors import InputError

from .test_manifold import HEIGHT, WIDTH, M, save


class Server(ThreadingHTTPServer):
    """files: path -> (bytes to send, length to announce, transfer encoding or None)."""

    files: dict[str, tuple[bytes, int | str | None]]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path not in self.server.files:
            self.send_error(404)
            return
        content, length = self.server.files[self.path]
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length" if isinstance(length, int) else "Transfer-Encoding", str(length))
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
def homeless(monkeypatch):
    """A user without a home, as in a container."""

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)


@pytest.fixture
def content(tmp_path) -> bytes:
    """The bytes of a small manifold."""
    path = tmp_path / "tiny.safetensors"
    save(path)
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"card": []}, "tiny.safetensors: damaged manifold header .card is no table"),
        ({"config": {"m": M + 1, "frame_size": [WIDTH, HEIGHT], "qualities": 2}}, "tiny.safetensors: weights do not fit"),
        ({"config": {"m": M, "frame_size": [WIDTH, HEIGHT], "qualities": 1}}, "tiny.safetensors: "),
    ],
)
def test_a_manifold_that_is_whole_and_cannot_be_used_is_not_installed(changes, words, server, home, tmp_path, monkeypatch):
    with monkeypatch.context() as careless:  # MCode itself writes no such header
        careless.setattr(manifold, "parse", lambda metadata: None)
        save(tmp_path / "bad.safetensors", **changes)
    server.files["/tiny.safetensors"] = ((tmp_path / "bad.safetensors").read_bytes(), None)
    refused(home, words, address(server))


def test_the_name_of_a_manifold_that_comes_with_mcode_is_taken_with_force_only(server, home, content):
    server.files["/general.safetensors"] = (content, None)
    refused(home, "place of general.*--force", address(server, "/general.safetensors"))
    assert fetch.fetch_manifold(address(server, "/general.safetensors"), force=True).manifold.name == "tiny"


@pytest.mark.parametrize("path", ["%00", "a%00b", "a%1b[31m", "a%0ab", "%5c", "a%e2%80%ae", ".hidden", "x" * 300])
def test_names_that_are_no_file_names_are_one_line_and_status_2(path, server, home, content, capsys):
    server.files[f"/{path}.safetensors"] = (content, None)
    assert main(["manifolds", "fetch", address(server, f"/{path}.safetensors")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mcode: error: ") and err.count("\n") == 1 and err[:-1].isprintable()


@pytest.mark.parametrize("url", ["http://[::1/a.safetensors", "http://h:99999999/a.safetensors", "http://a b/c.safetensors"])
def test_urls_that_are_none_are_one_line_and_status_2(url, home, capsys):
    assert main(["manifolds", "fetch", url]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mcode: error: ") and err.count("\n") == 1


@pytest.fixture
def dripping():
    """A server that sends its first bytes at once and then one every 20 ms: a function from those bytes to a URL."""
    over, threads, listeners = threading.Event(), [], []

    def serve(listener: socket.socket, first: bytes, rest: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(4096)
                    connection.sendall(first)
                    for byte in rest * 10_000:
                        if over.wait(0.02):
                            return
                        connection.sendall(bytes([byte]))
                except OSError:
                    continue

    def start(first: bytes, rest: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, first, rest), daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/a.safetensors"

    yield start
    over.set()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(5)


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"", b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 90),
        (b"HTTP/1.0 404 ", b"x"),
    ],
)
def test_a_server_that_drips_is_given_up(first, rest, dripping, home, tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match=r"too slow, less than 64 kB within 0\.3 s"):
        fetch.download(dripping(first, rest), tmp_path / "a", window_s=0.3)
    assert time.monotonic() - began < 10 and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("proxied", "first", "rest"),
    [
        (True, b"", b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 90),  # the answer to CONNECT
        (True, b"HTTP/1.0 200 OK\r\n\r\n", b"\x16\x03\x03\x03\x03"),  # then TLS, a record of 771 bytes
        (False, b"", b"\x16\x03\x03\x03\x03"),
    ],
)
def test_what_drips_before_https_is_given_up(proxied, first, rest, dripping, tmp_path, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    url = dripping(first, rest)
    monkeypatch.setenv("https_proxy", url.rpartition("/")[0] if proxied else "")
    with pytest.raises(InputError, match=r"too slow, less than 64 kB within 0\.3 s"):
        fetch.download(url.replace("http", "https") if not proxied else "https://h.example/a", tmp_path / "a", window_s=0.3)


@pytest.mark.parametrize("status", [b"204 No Content", b"206 Partial Content", b"207 Other"])
def test_an_answer_that_is_not_the_whole_file_is_refused(status, dripping, home):
    url = dripping(b"HTTP/1.0 " + status + b"\r\n\r\n", b"")
    refused(home, f"the server answers {status.decode()} instead of the whole file; check the address", url)


def test_progress_is_told_of_what_has_come(dripping, tmp_path):
    told = []
    with pytest.raises(InputError, match="too slow"):
        url = dripping(b"HTTP/1.0 200 OK\r\n\r\n", b"x")
        fetch.download(url, tmp_path / "a", window_s=0.5, progress=lambda *at: told.append(at))
    assert len(told) > 2


def test_a_chunked_transfer_that_is_cut_is_to_be_tried_again(server, home):
    server.files["/cut.safetensors"] = (b"5\r\nabcde\r\n400\r\nabc", "chunked")
    refused(home, r"cut short after .* bytes; try again$", address(server, "/cut.safetensors"))


def test_a_slow_server_that_does_send_is_waited_for(dripping, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LEAST_BYTES", 2)
    first = b"HTTP/1.0 200 OK\r\nContent-Length: 40\r\n\r\n"
    fetch.download(dripping(first, b"x"), tmp_path / "a", window_s=0.3)
    assert (tmp_path / "a").read_bytes() == b"x" * 40


def test_a_reason_tells_the_terminal_nothing(dripping, home, capsys):
    assert main(["manifolds", "fetch", dripping(b"HTTP/1.0 404 \x1b]0;pwned\x07\x1b[31mred\r\n\r\n", b"x")]) == 2
    err = capsys.readouterr().err
    assert "answers 404 ?]0;pwned" in err and err[:-1].isprintable()


def test_what_cannot_be_asked_for_is_said_in_one_line(server, home):
    refused(home, "this version pins none", "general-large")
    refused(home, "ends in NAME.safetensors", address(server, "/tiny.zip"))
    refused(home, "ends in NAME.safetensors", address(server, "/"))
    refused(home, "64 hexadecimal digits", address(server), sha256="abc")
    refused(home, "http or https", "file:///etc/tiny.safetensors")


def test_a_name_that_is_installed_needs_no_fetching(home):
    with pytest.raises(InputError, match="general: is installed already; use it with --manifold general"):
        fetch.fetch_manifold("general")
    with pytest.raises(InputError, match="genera: no manifold to fetch under this name"):
        fetch.fetch_manifold("genera")


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


def test_a_file_that_comes_meanwhile_is_not_replaced(server, home, content, monkeypatch):
    server.files["/tiny.safetensors"] = (content, None)
    load = fetch.load

    def late(*arguments):
        (home / "tiny.safetensors").write_text("mine")
        return load(*arguments)

    monkeypatch.setattr(fetch, "load", late)
    with pytest.raises(InputError, match="tiny.safetensors: exists; add --force to replace it$"):
        fetch.fetch_manifold(address(server))
    assert (home / "tiny.safetensors").read_text() == "mine" and len(list(home.iterdir())) == 1
    fetch.fetch_manifold(address(server), force=True)
    assert (home / "tiny.safetensors").read_bytes() == content


def test_the_help_tells_whether_this_version_pins_any(capsys):
    main(["manifolds", "fetch", "--help"])
    assert ("none so far" in " ".join(capsys.readouterr().out.split())) == (not fetch.MANIFOLDS)


def test_without_a_home_it_says_what_to_set(server, content, monkeypatch, homeless, capsys):
    server.files["/tiny.safetensors"] = (content, None)
    assert main(["manifolds", "fetch", address(server)]) == 2
    assert (
        capsys.readouterr().err == "mcode: error: this user has no home folder; set XDG_DATA_HOME to a folder for manifolds\n"
    )


def test_the_command_prints_the_hash_to_pin(server, home, content, capsys):
    server.files["/tiny.safetensors"] = (content, None)
    assert main(["manifolds", "fetch", address(server), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == hashlib.sha256(content).hexdigest()
    assert main(["manifolds", "fetch", address(server)]) == 2
    assert capsys.readouterr().err.startswith("mcode: error: ")
    assert main(["manifolds", "fetch", address(server), "--force"]) == 0
    assert "--manifold tiny" in capsys.readouterr().out
