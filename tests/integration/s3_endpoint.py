"""A bucket on this machine that speaks S3, for tests of what is read from `s3://`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "records"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Bucket:
    """Where it is reached, and the URI of what is in it."""

    endpoint: str

    def put(self, key: str, file: Path) -> None:
        """Copy a file into the bucket."""
        client = boto3.client("s3", endpoint_url=self.endpoint)
        client.upload_file(str(file), BUCKET, key)

    def uri(self, key: str) -> str:
        """Return the URI of a key, with how pyarrow reaches it."""
        host = self.endpoint.removeprefix("http://")
        return f"s3://{BUCKET}/{key}?endpoint_override={host}&scheme=http"


@contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """Serve an empty bucket; credentials are in the environment meanwhile, where workers that start now find them."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    bucket = Bucket(f"http://{host}:{port}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=bucket.endpoint).create_bucket(Bucket=BUCKET)
        try:
            yield bucket
        finally:
            server.stop()
