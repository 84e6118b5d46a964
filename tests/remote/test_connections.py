"""Connections that are kept from request to request, and what ends them."""

import os
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from bottleneck.remote import connections, http, retries
from bottleneck.remote.filesystem import RemoteStore
from bottleneck.remote.retries import Retrier
from tests.helpers.encoded import image
from tests.helpers.web_server import Handler


@pytest.fixture
def keeping(server, monkeypatch):
    """A server that keeps connections open, and counts those that were made to it."""
    made = []

    def setup(self):
        made.append(self.client_address)
        super(Handler, self).setup()

    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    monkeypatch.setattr(Handler, "setup", setup, raising=False)
    server.files |= {f"/{number}.png": image(number) for number in range(5)}
    server.made = made
    return server


def cat(url):
    return RemoteStore(http.WebFileSystem(), url, Retrier()).cat(url)


def in_a_thread(work):
    """Call `work` in a thread, which has no connection yet, and return the result."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def read_all(server, more=()):
    files = http.WebFileSystem()
    for number in range(5):
        assert files.info(f"{server.url}/{number}.png")["size"] == len(image(number))
        assert cat(f"{server.url}/{number}.png") == image(number)
    for path in more:
        with pytest.raises(FileNotFoundError):
            cat(server.url + path)
    return len(server.made)


def test_a_thread_has_one_connection_to_a_host(keeping):
    assert in_a_thread(lambda: read_all(keeping)) == 1
    assert in_a_thread(lambda: read_all(keeping)) == 2  # another thread has its own


def test_an_error_ends_its_connection(keeping):
    assert in_a_thread(lambda: (read_all(keeping, ["/none.png"]), read_all(keeping))) == (1, 2)


def test_a_connection_that_the_server_closed_meanwhile_is_made_again(keeping, monkeypatch):
    def close_after(self):
        super(Handler, self).handle_one_request()
        self.close_connection = True  # without saying so in the answer

    monkeypatch.setattr(Handler, "handle_one_request", close_after, raising=False)
    monkeypatch.setattr(retries, "RETRIES", 0)
    assert in_a_thread(lambda: read_all(keeping)) == 10


def test_an_answer_that_was_cut_off_leaves_no_bytes_to_the_next(keeping, monkeypatch):
    monkeypatch.setattr(http, "MOST_BYTES", 60)
    keeping.files["/large.png"] = bytes(5000)

    def read():
        for _ in range(3):
            with pytest.raises(Exception, match="is larger"):
                cat(f"{keeping.url}/large.png")
            keeping.files["/small.png"] = b"small"
            assert cat(f"{keeping.url}/small.png") == b"small"

    in_a_thread(read)


def test_a_thread_keeps_few_connections(keeping, monkeypatch):
    monkeypatch.setattr(connections, "MOST_KEPT", 1)

    def read():
        for host in ("127.0.0.1", "localhost", "127.0.0.1"):
            cat(f"http://{host}:{keeping.server_port}/1.png")
        return len(connections._own.kept)

    assert in_a_thread(read) == 1
    assert len(keeping.made) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_connections_of_its_own(keeping):
    def read():
        cat(f"{keeping.url}/0.png")
        connections._forget()  # what a child does
        cat(f"{keeping.url}/1.png")
        return len(keeping.made)

    assert in_a_thread(read) == 2


def test_a_proxy_of_the_environment_is_used(keeping, monkeypatch):
    monkeypatch.setenv("http_proxy", keeping.url)
    monkeypatch.delenv("no_proxy", raising=False)
    opener = http.urllib.request.build_opener(connections.Handler, connections.SecureHandler, http._Redirects)
    monkeypatch.setattr(http, "_OPENER", opener)  # urllib reads the environment when one is made
    keeping.files["http://far.example/1.png"] = image(1)
    assert in_a_thread(lambda: [cat("http://far.example/1.png") for _ in range(3)]) == [image(1)] * 3
    assert len(keeping.made) == 1


@pytest.fixture
def certificate(tmp_path):
    """The path of a new certificate of 127.0.0.1, with its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    host = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = made.add_extension(host, critical=False).sign(key, hashes.SHA256())
    path = tmp_path / "certificate.pem"
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()) + made.public_bytes(pem))
    return path


@pytest.mark.parametrize("trusted", [True, False])
def test_encrypted_connections_are_kept_and_certificates_are_checked(
    keeping, certificate, monkeypatch, trusted
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    keeping.socket = context.wrap_socket(keeping.socket, server_side=True)
    keeping.url = keeping.url.replace("http:", "https:")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    connections.certificates.cache_clear()
    try:
        if trusted:
            assert in_a_thread(lambda: read_all(keeping)) == 1
        else:
            with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
                cat(f"{keeping.url}/1.png")
            assert keeping.asked == []
    finally:
        connections.certificates.cache_clear()


def test_a_request_whose_time_is_over_before_it_is_connected_ends(server, monkeypatch):
    """A name may have many addresses, each of which is tried; no timer is left for the answer then."""
    connect = socket.create_connection
    monkeypatch.setattr(retries, "TIMEOUT", 0.05)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **o: (time.sleep(0.3), connect(*a, **o))[1])
    server.files["/a"] = b"1"
    with pytest.raises(retries.Passing, match="no connection in time"):
        http.WebFileSystem().cat_file(f"{server.url}/a")
