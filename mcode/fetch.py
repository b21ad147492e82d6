"""Files from the network, checked before they take their name: manifolds, and weights of metrics' networks."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcode.errors import InputError, ManifoldError
from mcode.manifold import ManifoldInfo, folders, read_info, verify

LIMIT_BYTES = 2 << 30
TIMEOUT_S = 30.0
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
    """A manifold into the user's folder, under the last part of its URL, if its SHA-256 is right and its content is whole.

    name_or_url: a key of MANIFOLDS, or an http(s) URL that ends in .safetensors. Nothing takes the final name before all
    checks are passed. progress(bytes done, bytes in all or None). Raises InputError, ManifoldError.
    """
    pinned = MANIFOLDS.get(name_or_url)
    if pinned is None and "://" not in name_or_url:
        known = f"known here: {', '.join(MANIFOLDS)}" if MANIFOLDS else "this version pins none"
        raise InputError(f"{name_or_url}: no manifold to fetch under this name ({known}); give a URL, best with --sha256")
    url = pinned.url if pinned else name_or_url
    wanted = sha256 or (pinned.sha256 if pinned else None)
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not name.endswith(".safetensors") or name == ".safetensors" or "\\" in name:
        raise InputError(f"{url}: a manifold's URL ends in NAME.safetensors")
    folder = folders()[-2]
    target = folder / name
    if target.exists() and not force:
        raise InputError(f"{target}: exists; add --force to replace it")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as place:
        part = Path(place) / name
        found = download(url, part, sha256=wanted, limit_bytes=limit_bytes, place=folder, progress=progress)
        try:
            verify(part)
        except ManifoldError as error:
            raise InputError(f"{url}: {str(error).replace(str(part), name)}") from error
        os.replace(part, target)
    return Fetched(str(target), url, found, wanted is not None, target.stat().st_size, read_info(target))


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    limit_bytes: int = LIMIT_BYTES,
    timeout_s: float = TIMEOUT_S,
    place: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> str:
    """Writes what an http(s) URL holds to target, whole or not at all; returns its SHA-256 in hexadecimal digits.

    place: the folder which errors tell the user to put the file into by hand; that of target if left out.

    Raises InputError, with what to do, for a network that is not there, an answer other than 200, more than limit_bytes, a
    transfer cut short, or another SHA-256 than the one given.
    """
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise InputError(f"--sha256 {sha256}: a SHA-256 is 64 hexadecimal digits")
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url}: give an http or https URL")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest, done = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer, open(part, "wb") as file:
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            if (total or 0) > limit_bytes:
                raise InputError(f"{url}: {total:,} bytes, and the limit is {limit_bytes:,}; fetch it by other means")
            while block := answer.read(_BLOCK):
                done += len(block)
                if done > limit_bytes:
                    raise InputError(f"{url}: more than the limit of {limit_bytes:,} bytes; fetch it by other means")
                digest.update(block)
                file.write(block)
                if progress:
                    progress(done, total)
        if total is not None and done != total:
            raise InputError(f"{url}: cut short after {done:,} of {total:,} bytes; try again")
        found = digest.hexdigest()
        if sha256 is not None and found != sha256.lower():
            raise InputError(f"{url}: its SHA-256 is {found}, not {sha256.lower()}; do not use this file, or correct --sha256")
        os.replace(part, target)
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{url}: the server answers {error.code} {error.reason}; check the address") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{url}: cannot be reached ({reason}); fetch it where there is a network and put the file into "
            f"{place or target.parent}"
        ) from error
    except (http.client.HTTPException, ValueError) as error:
        raise InputError(f"{url}: no usable answer ({type(error).__name__}: {error}); check the address") from error
    finally:
        part.unlink(missing_ok=True)
    return found
