"""An S3 server on this machine, for tests that need one."""

from __future__ import annotations

import logging
import os
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
def _environment(endpoint: str) -> Iterator[None]:
    """Point S3 clients of this process, and of those it starts, to a server."""
    with mock.patch.dict(os.environ):  # puts back whatever is changed
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(_SETTINGS, AWS_ENDPOINT_URL=endpoint)
        objects._bucket.cache_clear()  # a client belongs to an endpoint
        try:
            yield
        finally:
            objects._bucket.cache_clear()


@contextmanager
def _moto() -> Iterator[str]:
    """The URL of a running server; it says nothing of the requests it answers."""
    from moto.server import ThreadedMotoServer

    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        server._server.server_close()  # type: ignore[union-attr]  # stop leaves the socket open
        log.setLevel(level)


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server with an empty bucket "corpora", to which the environment points."""
    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing boto3 and moto is not what is tested
            import boto3

            endpoint = stack.enter_context(_moto())
            stack.enter_context(_environment(endpoint))
            # What moto holds is global, and would be there from the server before.
            reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
            urllib.request.urlopen(reset).close()
            client = boto3.client("s3", endpoint_url=endpoint)
            client.create_bucket(Bucket=BUCKET)
            client.close()
        yield endpoint
