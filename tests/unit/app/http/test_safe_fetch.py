"""What is fetched from elsewhere: over TLS, from where it may be, whole, in time, and nowhere else."""

import gzip
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.publisher import Publisher, certified, publishing, send

from app.http import safe_fetch
from app.http.safe_fetch import Fetched, Fetcher, FetchError, check_url, is_allowed, without_query

ACCEPT = "application/json"


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing() as server:
        yield server


@pytest.fixture(autouse=True)
def _trust_is_read_anew() -> Iterator[None]:
    safe_fetch.system_trust.cache_clear()
    yield
    safe_fetch.system_trust.cache_clear()


def fault(url: str, fetcher: Fetcher | None = None) -> str:
    with pytest.raises(FetchError) as caught:
        (fetcher or Fetcher()).fetch(url, ACCEPT)
    return str(caught.value)


def leading_to(*addresses: str, port: int = 9) -> Any:
    """A resolver by which each name leads to ``addresses``; it counts how often it is asked."""

    def resolve(host: str, _port: int, **_: Any) -> list[Any]:
        resolve.asked.append(host)  # type: ignore[attr-defined]
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port))
            for family, address in zip(families, addresses, strict=True)
        ]

    resolve.asked = []  # type: ignore[attr-defined]
    return resolve


@pytest.mark.parametrize(
    "url",
    [
        "https://client.example.com/jwks.json",
        "https://client.example.com",
        "https://client.example.com:8443/a/b?c=d&e=%20",
        "https://192.0.2.1/",
        "https://[2001:db8::1]:8443/jwks",
        "http://localhost:8080/jwks",
        "http://127.0.0.1/",
        "http://[::1]:1/",
        "https://xn--bcher-kva.example/",
    ],
)
def test_a_url_of_this_form_is_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jwks.json",
        "//client.example.com/",
        "http://client.example.com/",
        "http://10.0.0.1/",
        "http://[::ffff:127.0.0.1]/",
        "ftp://localhost/",
        "file:///etc/passwd",
        "gopher://localhost/",
        "HTTPS://client.example.com/",
        "https://",
        "https:///jwks",
        "https://user@client.example.com/",
        "https://user:password@client.example.com/",
        "https://client.example.com@10.0.0.1/",
        "https://client.example.com/#fragment",
        "https://client.example.com/#",
        "https://client.example.com:0/",
        "https://client.example.com:99999/",
        "https://client.example.com:x/",
        "https://client.example.com:/",
        "https://client.example.com/a b",
        "https://client.example.com/\r\nHost: other",
        "https://client.example.com/é",
        "https://bücher.example/",
        "https://client.example.com\\@other/",
        "https://client.example.com\t/",
        " https://client.example.com/",
        "https://[::1/",
        "https://client..example.com/?\x00",
        "https://client.example.com/" + "a" * 2000,
    ],
)
def test_any_other_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        check_url(url)
    assert fault(url).startswith("the URL must ")


def test_the_document_comes_whole_and_says_how_long_it_may_be_kept(publisher: Publisher) -> None:
    cases = {
        "public, max-age=300": 300,
        "max-age=0": 0,
        "MAX-AGE=7, immutable": 7,
        "s-maxage=9": None,
        "no-store": 0,
        "max-age=300, no-cache": 0,
        "max-age=-1": None,
        "max-age=" + "9" * 30: None,
        "": None,
    }
    for said, expected in cases.items():
        publisher.answer = lambda handler, said=said: send(handler, b"{}" * 3, Cache_Control=said)
        assert Fetcher().fetch(publisher.url, ACCEPT) == Fetched(b"{}" * 3, expected), said
    path, headers = publisher.asked[0]
    assert path == "/jwks.json"
    assert headers == {
        "host": publisher.url.split("/")[2],
        "accept": ACCEPT,
        "accept-encoding": "identity",
        "connection": "close",
        "user-agent": "tokenhouse",
    }


def test_a_query_is_sent_and_not_shown(publisher: Publisher) -> None:
    Fetcher().fetch(f"{publisher.url}?a=b&c=%2F", ACCEPT)
    assert publisher.asked[0][0] == "/jwks.json?a=b&c=%2F"
    assert without_query(f"{publisher.url}?token=secret") == publisher.url


def test_chunks_are_put_together(publisher: Publisher) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")

    publisher.answer = answer
    assert Fetcher().fetch(publisher.url, ACCEPT).body == b"{}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(publisher: Publisher, status: int) -> None:
    publisher.answer = lambda handler: send(handler, b"", status, Location=publisher.url)
    assert fault(publisher.url) == f"the answer has status {status}, and redirects are not followed"
    assert len(publisher.asked) == 1


@pytest.mark.parametrize("status", [201, 204, 206, 304, 401, 404, 500, 503])
def test_another_status_is_no_document(publisher: Publisher, status: int) -> None:
    publisher.answer = lambda handler: send(handler, b"", status)
    assert fault(publisher.url).startswith(f"the answer has status {status}")


@pytest.mark.parametrize("is_told", [True, False])
def test_a_document_has_an_end(publisher: Publisher, *, is_told: bool) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if is_told:
            handler.send_header("Content-Length", str(10**9))
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 10_000)

    publisher.answer = answer
    assert fault(publisher.url) == "the answer has more than 64 KiB"
    publisher.answer = lambda handler: send(handler, b"x" * 65_536)
    assert len(Fetcher().fetch(publisher.url, ACCEPT).body) == 65_536


def test_half_a_document_is_none(publisher: Publisher) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"{}")
        handler.close_connection = True

    publisher.answer = answer
    assert "ended early" in fault(publisher.url) or "IncompleteRead" in fault(publisher.url)


def test_what_is_compressed_is_refused(publisher: Publisher) -> None:
    bomb = gzip.compress(b" " * 10**7)
    publisher.answer = lambda handler: send(handler, bomb, Content_Encoding="gzip")
    assert fault(publisher.url) == "the answer is compressed, which was not asked for"


@pytest.mark.parametrize("part", ["head", "body"])
def test_who_sends_a_byte_now_and_then_holds_nobody(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(safe_fetch, "TOTAL_SECONDS", 0.3)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if part == "body" else b"X: "))
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    publisher.answer = answer
    began = time.monotonic()
    assert fault(publisher.url) == "the answer did not end within 0 s"
    assert time.monotonic() - began < 5


def test_a_handshake_that_does_not_end_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_fetch, "TOTAL_SECONDS", 0.3)
    monkeypatch.setattr(safe_fetch, "CONNECT_SECONDS", 20)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert fault(f"https://127.0.0.1:{silent.getsockname()[1]}/") == "the answer did not end within 0 s"


def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_fetch, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert fault(f"http://127.0.0.1:{silent.getsockname()[1]}/") == "nothing came for 0 s"


@pytest.mark.parametrize("raw", [b"", b"x", b"HTTP/9.9 hello\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"\x00" * 100])
def test_what_is_no_http_is_an_error_and_not_quoted(publisher: Publisher, raw: bytes) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(raw)
        handler.close_connection = True

    publisher.answer = answer
    told = fault(publisher.url)
    assert told.startswith("the connection failed: ")
    assert "SSH" not in told


def test_a_port_where_nobody_listens_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert fault(f"http://127.0.0.1:{port}/") == "the connection failed: Connection refused"


def test_a_name_without_address_is_told() -> None:
    assert fault("https://no-such-name.invalid/") == "no-such-name.invalid has no address"
    assert fault("https://a.example/", Fetcher(resolve=leading_to())) == "a.example has no address"


NOT_PUBLIC = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",  # noqa: S104 - An address that nobody shall connect to.
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::1",
    "2002:a00:1::",
    "2001::1",
    "2001:db8::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%2",
    "fec0::1",
    "ff02::1",
    "100::1",
    "168.63.129.16",
    "192.0.0.192",
    "192.88.99.1",
    "::ffff:168.63.129.16",
    "3fff::1",
    "3fff:fff:ffff::1",
    "2606:2800:220:1:0:5efe:10.0.0.1",
    "2606:2800:220:1:200:5efe:169.254.169.254",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_name_that_leads_into_our_own_network_is_not_followed(address: str) -> None:
    resolve = leading_to(address)
    told = fault("https://client.example.com/", Fetcher(resolve=resolve))
    assert told == (
        f"client.example.com leads to {address}, which is no public address: "
        "TOKENHOUSE_JWKS_URI_NETWORKS names others that are allowed"
    )


class SilentSocket(socket.socket):
    """Nothing answers it; it notes how long would have been waited for whom."""

    waited: ClassVar[list[tuple[str, float]]] = []

    def connect(self, address: Any) -> None:
        self.waited.append((address[0], self.gettimeout() or 0))
        raise TimeoutError


def test_silent_addresses_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SilentSocket, "waited", [])
    monkeypatch.setattr(socket, "socket", SilentSocket)
    addresses = [f"93.184.216.{number}" for number in range(1, 6)]
    assert fault("https://a.example/", Fetcher(resolve=leading_to(*addresses))) == "nothing came for 5 s"
    assert [address for address, _ in SilentSocket.waited] == addresses[:3]
    # In truth the first two would have taken their time, and the last had what is left.
    assert all(0 < seconds <= safe_fetch.CONNECT_SECONDS for _, seconds in SilentSocket.waited)
    assert SilentSocket.waited[0][1] <= safe_fetch.TOTAL_SECONDS / 3


def test_a_resolver_that_hangs_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_fetch, "TOTAL_SECONDS", 0.2)
    is_over = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        is_over.wait(30)
        return []

    assert fault("https://a.example/", Fetcher(resolve=hang)) == "a.example could not be resolved within 0 s"
    is_over.set()


def test_one_such_address_among_public_ones_is_enough() -> None:
    for addresses in (("93.184.216.34", "10.0.0.1"), ("10.0.0.1", "93.184.216.34")):
        assert "leads to 10.0.0.1" in fault("https://a.example/", Fetcher(resolve=leading_to(*addresses)))


@given(st.ip_addresses())
def test_no_address_is_allowed_that_python_calls_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert not is_allowed(address, ()) or (address.is_global and not address.is_multicast)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"])
def test_other_spellings_of_this_machine_are_not_its_name(host: str) -> None:
    assert "is no public address" in fault(f"https://{host}/")


def test_a_name_of_this_machine_leads_to_it_alone() -> None:
    for address in ("93.184.216.34", "10.0.0.1", "::ffff:127.0.0.1"):
        assert f"leads to {address}" in fault("http://localhost/", Fetcher(resolve=leading_to(address)))


def test_networks_of_the_settings_are_allowed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, trusted = certified(tmp_path, "client.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with publishing(tls) as publisher:
        port = publisher.server_address[1]
        inside = leading_to("127.0.0.1", port=port)
        allowed = Fetcher([ipaddress.ip_network("127.0.0.0/30")], resolve=inside)
        assert allowed.fetch(f"https://client.example.com:{port}/", ACCEPT).body == b"{}"
        assert publisher.asked[0][1]["host"] == f"client.example.com:{port}"
        other = Fetcher([ipaddress.ip_network("127.0.0.4/30")], resolve=inside)
        assert "is no public address" in fault(f"https://client.example.com:{port}/", other)
        assert len(publisher.asked) == 1


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere when it is asked for a second time is not asked for a second time."""
    resolve = leading_to("127.0.0.1", port=publisher.server_address[1])
    Fetcher(resolve=resolve).fetch("http://localhost:1/", ACCEPT)
    assert resolve.asked == ["localhost"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name is looked up again"))
    Fetcher(resolve=resolve).fetch("http://localhost:1/", ACCEPT)


def test_the_next_address_is_tried(publisher: Publisher) -> None:
    port = publisher.server_address[1]
    resolve = lambda *_, **__: [  # noqa: E731
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
    ]
    assert Fetcher(resolve=resolve).fetch("http://localhost/", ACCEPT).body == b"{}"


def test_a_certificate_must_be_trusted_and_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, trusted = certified(tmp_path, "localhost")
    with publishing(tls) as publisher:
        assert fault(publisher.url) == "the certificate is not valid: self-signed certificate"
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        safe_fetch.system_trust.cache_clear()
        assert Fetcher().fetch(publisher.url, ACCEPT).body == b"{}"
        by_address = publisher.url.replace("localhost", "127.0.0.1")
        assert "the certificate is not valid: IP address mismatch" in fault(by_address)
        assert len(publisher.asked) == 1


def test_plain_http_where_tls_is_spoken_and_the_reverse(publisher: Publisher) -> None:
    assert fault(publisher.url.replace("http:", "https:")).startswith("TLS failed: ")


def test_no_proxy_of_the_environment_is_asked(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert Fetcher().fetch(publisher.url, ACCEPT).body == b"{}"


def test_nothing_is_left_open(publisher: Publisher) -> None:
    before = threading.active_count()
    for _ in range(5):
        Fetcher().fetch(publisher.url, ACCEPT)
    publisher.answer = lambda handler: send(handler, b"", 404)
    fault(publisher.url)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
