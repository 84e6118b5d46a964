"""An S3 store on this machine: moto's server, with faults in front of it where a test wants them."""

import io
import threading
import uuid
from contextlib import contextmanager, suppress

from tests.helpers.web_server import reset

ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We failed.</Message></Error>"


DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Front:
    """A WSGI application before moto's own. asked : (method, path) of the requests so far.

    faults : of requests for objects by `methods`. silent : it never answers.
    writes : how many requests that change something are still answered; the others are denied.
    """

    def __init__(self, application):
        self.application, self.asked, self.closing = application, [], threading.Event()
        self.reset()

    def reset(self):
        """Answer everything."""
        self.faults, self.methods, self.silent, self.writes = None, ("GET",), False, None
        self.asked.clear()

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        if self.silent:
            self.closing.wait(60)
        if self.writes is not None and method in ("PUT", "POST", "DELETE"):
            self.writes -= 1
            if self.writes < 0:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("403 Forbidden", [("Content-Length", str(len(DENIED)))])
                return [DENIED]
        is_object = method in self.methods and path.count("/") > 1 and not path.endswith("/")
        fault = self.faults.draw((path, environ.get("HTTP_RANGE"))) if self.faults and is_object else None
        if fault == "reset":
            reset(environ["werkzeug.socket"])
            raise ConnectionResetError
        if fault == "500":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("500 Internal Server Error", [("Content-Length", str(len(ERROR)))])
            return [ERROR]
        answer = self.application(environ, start_response)
        if fault and method != "GET":  # it is done, and the client does not get to know
            reset(environ["werkzeug.socket"])
            raise ConnectionResetError
        return self._broken(b"".join(answer), fault) if fault else answer

    def _broken(self, data, fault):
        yield data[: len(data) // 2]
        if fault == "stall":
            self.closing.wait(self.faults.stall)


@contextmanager
def s3_server():
    """Yield (URL of the server, its `Front`)."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *arguments, **options):
            pass

        def handle(self):
            with suppress(OSError, ValueError):  # of a connection that a fault has closed
                super().handle()

    front = Front(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, front, threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", front
    finally:
        front.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Bucket:
    """A new bucket: its URL, and what is put there through boto3, past s3fs."""

    def __init__(self, endpoint):
        import boto3

        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        self.name = f"b{uuid.uuid4().hex[:12]}"
        self.url = f"s3://{self.name}"
        self.client.create_bucket(Bucket=self.name)

    def put(self, key, data):
        self.client.upload_fileobj(io.BytesIO(data), self.name, key)

    def get(self, key):
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def keys(self):
        return [item["Key"] for item in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]
