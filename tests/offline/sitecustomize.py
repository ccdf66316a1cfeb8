"""A Python process that imports this reaches no host but its own: whatever else is tried is noted and raises.

Python imports a module of this name by itself as it starts, if it finds one. ``tests/conftest.py`` imports it
into the tests' process and puts its folder on ``PYTHONPATH`` for those that tests start, their children and
the processes of loaders. It is an audit hook, so no library gets around it by holding ``socket.socket``, and
none can take it off again; sockets that other languages open are not seen.

Free are sockets of files, 127.0.0.0/8, ::1, the wildcards, and looking up this machine's own name.
``LTRB_ATTEMPTS`` names the file that attempts are noted in, as a library may well swallow the error.
"""

import os
import sys

CONNECT = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOK_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
HOST = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
OWN_NAMES = ("", "localhost", "localhost.localdomain", HOST.lower())


class NetworkBlockedError(RuntimeError):
    """No ``OSError``, which programs expect from a network and go on after."""


def is_here(host) -> bool:
    """Whether a name or an address means this machine."""
    from ipaddress import ip_address  # not above: that would make every process start later

    name = (os.fsdecode(host) if isinstance(host, str | bytes) else str(host or "")).lower()
    if name in OWN_NAMES:
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _watch(event: str, arguments: tuple) -> None:
    if event in CONNECT:
        target = arguments[1]
        if isinstance(target, tuple) and not is_here(target[0]):  # else a socket of a file, or one connected
            _refuse(event, target[0])
    elif event in LOOK_UP and not is_here(arguments[0]):
        _refuse(event, arguments[0])


def _refuse(event: str, target: object) -> None:
    text = f"{event} {target!r} by {sys.argv[:2]} in {os.environ.get('PYTEST_CURRENT_TEST', 'no test')}"
    if path := os.environ.get("LTRB_ATTEMPTS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text + "\n")
    raise NetworkBlockedError(text)


sys.addaudithook(_watch)
