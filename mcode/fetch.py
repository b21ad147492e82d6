"""Files from the network, checked before they take their name: manifolds, and weights of metrics' networks."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcode.errors import InputError, ManifoldError
from mcode.manifold import PACKAGED, ManifoldInfo, folders, load, read_info, user_folder
from mcode.whole import give_name

LIMIT_BYTES = 2 << 30
TIMEOUT_S = 30.0
LEAST_BYTES, WINDOW_S = 64 << 10, 60.0
"""A transfer that brings fewer bytes than this in so many seconds, headers and redirections included, is given up."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Pinned:
    """Where a file is, and the SHA-256 (64 hexadecimal digits) that it must have."""

    url: str
    sha256: str


MANIFOLDS: dict[str, Pinned] = {}
"""Manifolds which a release offers beside those in the package, by name."""


@dataclass(frozen=True)
class Fetched:
    """sha256: of the file; checked: whether a hash was given for it. manifold: what the file's header says."""

    path: str
    url: str
    sha256: str
    checked: bool
    file_bytes: int
    manifold: ManifoldInfo


def fetch_manifold(
    name_or_url: str,
    *,
    sha256: str | None = None,
    force: bool = False,
    limit_bytes: int = LIMIT_BYTES,
    progress: Callable[[int, int | None], None] | None = None,
) -> Fetched:
    """A manifold into the user's folder, under the last part of its URL, if its SHA-256 is right and it can be loaded.

    name_or_url: a key of MANIFOLDS, or an http(s) URL that ends in .safetensors. Nothing takes the final name before all
    checks are passed, nor without force the name of a manifold that is there or that comes with MCode. progress(bytes done,
    bytes in all or None). Raises InputError.
    """
    pinned = MANIFOLDS.get(name_or_url)
    if pinned is None and "://" not in name_or_url:
        if any(os.path.isfile(folder / f"{name_or_url}.safetensors") for folder in folders()):
            raise InputError(f"{name_or_url}: is installed already; use it with --manifold {name_or_url}")
        known = f"known here: {', '.join(MANIFOLDS)}" if MANIFOLDS else "this version pins none"
        raise InputError(f"{name_or_url}: no manifold to fetch under this name ({known}); give a URL, best with --sha256")
    url = pinned.url if pinned else name_or_url
    wanted = sha256 or (pinned.sha256 if pinned else None)
    name = urllib.parse.unquote(_split(url).path).rpartition("/")[2]
    if not name.endswith(".safetensors") or name.startswith(".") or "\\" in name or not name.isprintable():
        raise InputError(f"{url}: a manifold's URL ends in NAME.safetensors")
    if len(os.fsencode(name)) > 200:
        raise InputError(f"{url}: a manifold's name is shorter than this")
    folder = user_folder()
    target = folder / name
    if target.exists() and not force:
        raise InputError(f"{target}: exists; add --force to replace it")
    if (PACKAGED / name).exists() and not force:
        raise InputError(f"{url}: would take the place of {target.stem}, which comes with MCode; add --force to let it")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as place:
        part = Path(place) / name
        found = download(url, part, sha256=wanted, limit_bytes=limit_bytes, place=folder, progress=progress)
        try:
            load(part, "cpu")
        except ManifoldError as error:
            raise InputError(f"{url}: {str(error).replace(str(part), name)}") from error
        try:
            give_name(part, target, replace=force)
        except FileExistsError as error:
            raise InputError(f"{target}: exists; add --force to replace it") from error
    return Fetched(str(target), url, found, wanted is not None, target.stat().st_size, read_info(target))


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    limit_bytes: int = LIMIT_BYTES,
    timeout_s: float = TIMEOUT_S,
    window_s: float = WINDOW_S,
    place: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> str:
    """Writes what an http(s) URL holds to target, whole or not at all; returns its SHA-256 in hexadecimal digits.

    timeout_s: without a byte. window_s: see LEAST_BYTES. place: the folder which errors tell the user to put the file into by
    hand; that of target if left out.

    Raises InputError, with what to do, for a network that is not there, an answer other than 200 or 203, more than limit_bytes,
    a transfer cut short or too slow, or another SHA-256 than the one given.
    """
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise InputError(f"--sha256 {sha256}: a SHA-256 is 64 hexadecimal digits")
    if _split(url).scheme not in ("http", "https"):
        raise InputError(f"{url}: give an http or https URL")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest, done = hashlib.sha256(), 0
    watch = _Watch(window_s)
    try:
        with watch, watch.opener().open(url, timeout=timeout_s) as answer, open(part, "wb") as file:
            if answer.status not in (200, 203):  # 203: changed on the way, perhaps; 206: a part of it; 204: nothing
                said = f"{answer.status} {answer.reason!s:.200}"
                raise InputError(f"{url}: the server answers {said} instead of the whole file; check the address")
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            if (total or 0) > limit_bytes:
                raise InputError(f"{url}: {total:,} bytes, and the limit is {limit_bytes:,}; fetch it by other means")
            while block := answer.read1(_BLOCK):
                done += len(block)
                watch.done = done
                if done > limit_bytes:
                    raise InputError(f"{url}: more than the limit of {limit_bytes:,} bytes; fetch it by other means")
                digest.update(block)
                file.write(block)
                if progress:
                    progress(done, total)
        watch.check(url)
        if total is not None and done != total:
            raise InputError(f"{url}: cut short after {done:,} of {total:,} bytes; try again")
        found = digest.hexdigest()
        if sha256 is not None and found != sha256.lower():
            raise InputError(f"{url}: its SHA-256 is {found}, not {sha256.lower()}; do not use this file, or correct --sha256")
        os.replace(part, target)
    except urllib.error.HTTPError as error:
        error.close()
        watch.check(url)
        raise InputError(f"{url}: the server answers {error.code} {error.reason!s:.200}; check the address") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError) as error:
        watch.check(url)
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{url}: cannot be reached ({reason}); fetch it where there is a network and put the file into "
            f"{place or target.parent}"
        ) from error
    except http.client.IncompleteRead as error:
        watch.check(url)
        raise InputError(f"{url}: cut short after {done:,} bytes; try again") from error
    except (http.client.HTTPException, ValueError) as error:
        watch.check(url)
        raise InputError(f"{url}: no usable answer ({type(error).__name__}: {error!s:.200}); check the address") from error
    finally:
        part.unlink(missing_ok=True)
    return found


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        return urllib.parse.urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url}: no URL ({error}); give one as https://HOST/NAME.safetensors") from error


class _Watch:
    """Ends a transfer that is too slow, from a thread: a timeout of the socket begins anew with every byte, also in the answer
    of a proxy and in the handshake of TLS.

    done: bytes so far. slow: whether it was ended."""

    def __init__(self, window_s: float) -> None:
        self.window_s, self.done, self.slow = window_s, 0, False
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for one in self._sockets:
            one.close()

    def check(self, url: str) -> None:
        """Raises InputError where the transfer was ended."""
        if self.slow:
            least = f"{LEAST_BYTES >> 10} kB within {self.window_s:g} s"
            raise InputError(f"{url}: too slow, less than {least}; try again later, or fetch it by other means")

    def opener(self) -> urllib.request.OpenerDirector:
        """What opens URLs as urllib.request.urlopen does, with connections which the watch can end."""
        watch = self

        class Http(urllib.request.HTTPHandler):
            def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
                return super().do_open(watch._watched(http_class), req, **options)

        class Https(urllib.request.HTTPSHandler):
            def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
                return super().do_open(watch._watched(http_class), req, **options)

        class Ftp(urllib.request.FTPHandler):
            def ftp_open(self, req: Any) -> Any:
                raise urllib.error.URLError("leads to an ftp address")

        return urllib.request.build_opener(Http, Https, Ftp)

    def _watched(self, kind: Any) -> Callable[..., Any]:
        def make(host: str, **options: Any) -> Any:
            connection = kind(host, **options)

            def connect(*arguments: Any) -> socket.socket:
                made = socket.create_connection(*arguments)
                self._sockets.append(made.dup())  # TLS takes the socket itself out of the object
                if self.slow:
                    self._end()
                return made

            connection._create_connection = connect  # before a proxy is asked, and before TLS
            return connection

        return make

    def _run(self) -> None:
        before = 0
        while not self._over.wait(self.window_s):
            if self.done - before < LEAST_BYTES:
                self.slow = True
                self._end()
                return
            before = self.done

    def _end(self) -> None:
        for one in self._sockets:
            with suppress(OSError):  # it has gone
                one.shutdown(socket.SHUT_RDWR)
