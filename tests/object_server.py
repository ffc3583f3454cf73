"""An S3 server on this machine, for tests that need one, and a proxy that makes it unreliable."""

from __future__ import annotations

import http.client
import logging
import os
import random
import socket
import threading
import time
import urllib.parse
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

from featurestore.storage import objects

BUCKET = "corpora"
_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


@contextmanager
def pointed_at(endpoint: str) -> Iterator[None]:
    """Point S3 clients of this process, and of those it starts, to a server."""
    with mock.patch.dict(os.environ):  # puts back whatever is changed
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(_SETTINGS, AWS_ENDPOINT_URL=endpoint)
        _forget_clients()  # a client belongs to an endpoint
        try:
            yield
        finally:
            _forget_clients()


def _forget_clients() -> None:
    objects._bucket.cache_clear()
    with suppress(ImportError):
        from s3fs import S3FileSystem

        S3FileSystem.clear_instance_cache()


@contextmanager
def _moto() -> Iterator[str]:
    """The URL of a running server; it says nothing of the requests it answers."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    one_at_a_time = threading.Lock()
    put = S3Response.put_object

    def atomic(self: S3Response) -> object:
        with one_at_a_time:  # S3 compares and puts in one step, moto in two
            return put(self)

    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with mock.patch.object(S3Response, "put_object", atomic):
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()
            server._server.server_close()  # type: ignore[union-attr]  # stop leaves it open
            log.setLevel(level)


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server with an empty bucket "corpora", to which the environment points."""
    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing boto3 and moto is not what is tested
            import boto3

            endpoint = stack.enter_context(_moto())
            stack.enter_context(pointed_at(endpoint))
            # What moto holds is global, and would be there from the server before.
            reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
            urllib.request.urlopen(reset).close()
            client = boto3.client("s3", endpoint_url=endpoint)
            client.create_bucket(Bucket=BUCKET)
            client.close()
        yield endpoint


# --- an unreliable way there --------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
        method: GET, PUT, ...
        path: of the object, with the bucket, unquoted.
        query: as it was sent.
        headers: names in lower case.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]


# What a proxy does to a request, or None to let it pass:
#   "500", "503", "403"   answered so; the server never hears of it
#   "500 late"            answered so after the server has done it
#   "drop"                the connection ends; the server never hears of it
#   "lost"                the connection ends after the server has done it
#   "cut"                 the connection ends within the answer, after the server has done it
#   "slow"                passed on after `delay_s`
Fault = Callable[[Request], "str | None"]
EVERY_FAULT = ("500", "503", "500 late", "drop", "lost", "cut", "slow")


def some(share: float, kinds: Sequence[str] = EVERY_FAULT, *, seed: int = 0) -> Fault:
    """A share of all requests, each with one of the faults."""
    chance = random.Random(seed)
    lock = threading.Lock()

    def fault(request: Request) -> str | None:
        with lock:
            return chance.choice(kinds) if chance.random() < share else None

    return fault


def first(count: int, kind: str, *, method: str = "", path: str = "") -> Fault:
    """The first requests with this method and this in their path."""
    left = [None] * count

    def fault(request: Request) -> str | None:
        if request.method == (method or request.method) and path in request.path:
            with suppress(IndexError):
                left.pop()
                return kind
        return None

    return fault


class FaultyProxy:
    """An HTTP server on loopback that passes requests on to another one, or does them harm.

    Attributes:
        fault: what is done to a request; may be replaced at any time.
        faults: how often what was done.
        requests: every request, in the order in which they came.
    """

    def __init__(self, target: str, fault: Fault | None = None, *, delay_s: float = 0.05) -> None:
        """`target` is an endpoint such as `s3_server` gives."""
        self.target = urllib.parse.urlsplit(target).netloc
        self.fault = fault or (lambda request: None)
        self.delay_s = delay_s
        self.faults: Counter[str] = Counter()
        self.requests: list[Request] = []
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections, and end those there are."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def sent(self, method: str, path: str = "") -> list[Request]:
        """Requests with this method and this in their path."""
        return [one for one in self.requests if one.method == method and path in one.path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.open: set[socket.socket] = set()

    def finish_request(self, request: socket.socket, address: object) -> None:  # type: ignore[override]
        self.open.add(request)
        try:
            super().finish_request(request, address)  # type: ignore[arg-type]
        finally:
            self.open.discard(request)

    def server_close(self) -> None:
        super().server_close()
        for one in list(self.open):  # which a client keeps for its next request
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, address: object) -> None:
        """A client that goes away is nothing to talk about."""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, urllib.parse.unquote(path), query, headers)
        body = self._body(headers)
        self.proxy.requests.append(request)
        kind = self.proxy.fault(request)
        if kind:
            self.proxy.faults[kind] += 1
        if kind == "slow":
            time.sleep(self.proxy.delay_s)
        if kind == "drop":
            self._end()
        elif kind in ("500", "503", "403"):
            self._refuse(int(kind))
        else:
            status, answer, data = self._forward(body)
            if kind == "500 late":
                self._refuse(500)
            elif kind == "lost":
                self._end()
            else:
                self._answer(status, answer, data, cut=kind == "cut")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if "chunked" not in headers.get("transfer-encoding", ""):
            return self.rfile.read(int(headers.get("content-length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.target, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in (
                    "transfer-encoding",
                    "content-length",
                    "connection",
                    "expect",
                ):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        head = self.command == "HEAD"
        stated = {name.lower(): value for name, value in headers}.get("content-length")
        if status != 204:
            self.send_header("Content-Length", stated if head and stated else str(len(data)))
        if cut and not data:
            self._headers_buffer.append(b"X-Cut: ")  # type: ignore[attr-defined]
            self.flush_headers()
            self._end()
            return
        self.end_headers()
        if not head:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._end()

    def _refuse(self, status: int) -> None:
        code = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}[status]
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code></Error>'
        data = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _end(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
