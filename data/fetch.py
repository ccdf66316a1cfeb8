"""One file from an http or https server to disk: redirects, room on the disk, broken connections.

Sizes are bytes. Everything that can go wrong is a ``Refused`` that says what, and what to do.
"""

import hashlib
import http.client
import re
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from data.unpack import CHUNK, RESERVE, Refused, show_size

TIMEOUT = 30.0  # seconds without a byte


class Fetched(NamedTuple):
    """What is known of a file that has arrived whole."""

    sha256: str  # 64 hexadecimal digits, lower case
    size: int


def fetch_file(url: str, path: Path, *, expected: int | None = None) -> Fetched:
    """Write the body of ``url`` to ``path``; ``expected``: the size it should have, where that is known.

    A short body is an error; a body of unknown length may be as long as there is room. What an archive holds
    is taken to be as large as the archive, as pictures are compressed already, and needs room beside it.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "ltrb"})
    try:
        with urllib.request.build_opener(_Redirects()).open(request, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length") or ""
            size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
            print(f"fetching {url} ({'size unknown' if size is None else show_size(size)})", flush=True)
            if None not in (size, expected) and size != expected:
                raise Refused(f"the server offers {size:,} bytes, `size` in the YAML says {expected:,}")
            needed, room = 2 * (size or expected or 0), max(0, shutil.disk_usage(path.parent).free - RESERVE)
            if needed > room:
                text = f"needs {show_size(needed)} on the disk, where {show_size(room)} are free"
                raise Refused(f"{text}; --data-root chooses another")
            fetched = _write_body(response, path, total=size, room=room)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise Refused(f"{_explain(error)}. Try again later, or fetch it yourself") from error
    if size is not None and fetched.size != size:
        raise Refused(f"broke off after {fetched.size:,} of {size:,} bytes; run the same command again")
    return fetched


def _write_body(response: http.client.HTTPResponse, path: Path, *, total: int | None, room: int) -> Fetched:
    size, digest = 0, hashlib.sha256()
    bar = tqdm(total=total, desc="fetching", unit="B", unit_scale=True, leave=False, disable=None)
    with open(path, "wb") as file, bar:
        while data := response.read(CHUNK):
            size += len(data)
            if size > room:
                raise Refused(f"the server sends more than the {show_size(room)} that are free for it")
            digest.update(data)
            file.write(data)
            bar.update(len(data))
    return Fetched(digest.hexdigest(), size)


def _explain(error: Exception) -> str:
    cause = getattr(error, "reason", error)  # URLError carries what happened
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {' '.join(str(error.reason).split())}"
    if isinstance(cause, TimeoutError):
        return f"the server has been silent for {TIMEOUT:.0f} s"
    if isinstance(cause, socket.gaierror):
        return f"the server's name cannot be looked up ({cause.strerror}); no network, or a mistyped URL"
    return f"broke off: {type(cause).__name__}: {' '.join(str(cause).split())}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To http and https only, and never from https back to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            raise Refused(
                f"redirects to {newurl}; only http and https are followed, and not from https to http"
            )
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        fp.close()  # urllib reads the body of a redirect whole, into memory: of one that is closed, nothing
        return new
