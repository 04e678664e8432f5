"""An S3 endpoint on this machine (moto), and in front of it what can go wrong between here and there."""

import logging
import os
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SECRET = "zqxs3secret"  # must not be found in anything that a run says or writes
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
_CONDITIONS = {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"}
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL")


@dataclass
class Fault:
    """Something that happens to requests of a method whose path and query have a text in them, so many times."""

    method: str
    what: str
    text: str = ""
    times: int = 10**9
    status: int = 503
    seen: int = 0

    def meets(self, environ: dict[str, Any]) -> bool:
        place = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        if environ["REQUEST_METHOD"] != self.method or self.text not in place or self.seen >= self.times:
            return False
        self.seen += 1
        return True


@dataclass
class Endpoint:
    """A running endpoint; `faults` may be changed at any time."""

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }

    def make_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()

    @contextmanager
    def with_faults(self, *faults: Fault) -> Iterator[tuple[Fault, ...]]:
        self.faults += faults
        try:
            yield faults
        finally:
            self.faults.clear()


@contextmanager
def running_endpoint() -> Iterator[Endpoint]:
    """Start an endpoint, and let this process find it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    endpoint = Endpoint()
    behind = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, _with_faults(behind, endpoint), threaded=True)
    endpoint.url = f"http://127.0.0.1:{server.port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = {name: os.environ.pop(name, None) for name in {*_KEYS, *endpoint.environment}}
    os.environ.update(endpoint.environment)
    try:
        yield endpoint
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        server.shutdown()


def _with_faults(behind: Application, endpoint: Endpoint) -> Application:
    lock, one_by_one = threading.Lock(), threading.Lock()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with lock:
            endpoint.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            fault = next((each for each in endpoint.faults if each.meets(environ)), None)
        if fault is None and environ["REQUEST_METHOD"] == "PUT" and _CONDITIONS & environ.keys():
            with one_by_one:  # moto looks and writes apart; the service does both at once
                return list(behind(environ, start_response))
        if fault is None:
            return behind(environ, start_response)
        if fault.what == "status":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = {403: "AccessDenied", 503: "SlowDown"}.get(fault.status, "InternalError")
            start_response(f"{fault.status} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><AWSAccessKeyId>{SECRET}</AWSAccessKeyId></Error>".encode()]
        if fault.what == "slow":
            time.sleep(1)
            return behind(environ, start_response)
        if fault.what == "half":
            return _half(environ, b"".join(behind(environ, start_response)))
        if fault.what == "lost reply":
            b"".join(behind(environ, lambda *_: None))
        return _reset(environ)

    return application


def _half(environ: dict[str, Any], body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    _reset(environ)


def _reset(environ: dict[str, Any]) -> list[bytes]:
    connection: socket.socket = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    return []
