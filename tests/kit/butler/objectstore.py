"""An object store on a loopback address that speaks S3, and a repository whose files are in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer

from tests.kit.butler.repos import MockRepository
from tests.kit.butler.sites import make_moody

__all__ = ["ObjectStore", "object_store"]

_BUCKET = "bucket"

_CONFIG = """
datastore:
  cls: lsst.daf.butler.datastores.fileDatastore.FileDatastore
  root: s3://{bucket}/{folder}
  cached: {{default: true, expiry: {{mode: datasets, threshold: 100}}}}
"""


class ObjectStore(logging.Handler):
    """What a server has in its one bucket, and what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []
        """Method and path of each, as ``GET /bucket/key``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Note a line of the server's log."""
        _, _, rest = record.getMessage().partition('"')
        self.requests.append(rest.partition(" HTTP")[0])

    def repository(self, folder: Path) -> MockRepository:
        """Make a repository with moody tasks; local copies are kept of all that is read or written."""
        return make_moody(folder, _CONFIG.format(bucket=_BUCKET, folder=folder.name))

    def n_fetched(self, part: str) -> int:
        """Return how many times a file was fetched whose name has this part."""
        return sum(request.startswith("GET ") and part in request for request in self.requests)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start a server; the environment says where it is, to this process and those that it starts."""
    log = logging.getLogger("werkzeug")
    level, propagate, store = log.level, log.propagate, ObjectStore()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(store)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with mock.patch.dict(os.environ, variables):
            boto3.client("s3", endpoint_url=variables["S3_ENDPOINT_URL"]).create_bucket(Bucket=_BUCKET)
            yield store
    finally:
        server.stop()
        log.removeHandler(store)
        log.setLevel(level)
        log.propagate = propagate
