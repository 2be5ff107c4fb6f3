"""Functions that a fuzzer calls with arbitrary bytes. A target raises if the bytes break a rule."""

import contextlib
import io
import ipaddress
import json
import os
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlencode

import jwt
from conftest import SettableClock
from support.assertions import ASSERTION_TYPE, ISSUER, by_hand, signer
from support.framing import CHUNKED, as_gunicorn_reads_it, assert_read_alike, take_all
from unit.harness import Harness, open_harness
from werkzeug.test import EnvironBuilder

from app.clients.fields import ClientFields
from app.clients.trust_rules import Trust
from app.config.settings import Settings
from app.config.values import parse_trusted_proxies
from app.crypto.jws import decode, parse_unverified
from app.crypto.key_set import KeySet
from app.errors import InvalidDpopProof, InvalidRequest
from app.http.forms import FORM, read_form
from app.http.forwarded_headers import find_source
from app.oauth.client_certificates import ClientCertificates
from app.oauth.replay_store import SKEW_SECONDS
from app.oauth.sender_constraints.dpop import check_target, read_proof
from app.tokens.validation import validate_token

Check = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """A function for a fuzzer, and its first inputs."""

    open: Callable[[], AbstractContextManager[Check]]
    seeds: tuple[bytes, ...]


# Framing: RFC 9112.

FRAMING_SEEDS = (
    b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a:8\r\nAuthorization: Basic YQ\r\nContent-Length: 3\r\n\r\na=bGET / HTTP/1.0\r\n\r\n",
    CHUNKED + b"3\r\nabc\r\n2;a=b\r\nde\r\n0\r\nA: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\nConnection: close\r\n\r\na",
    b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nX-A: 1\r\nX-A: 2\r\nx_a: 3\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n\r\nFROB /%41 HTTP/1.1\r\nHost:\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


def check_framing(data: bytes) -> None:
    """Requests are the same however their bytes are split, and gunicorn's parser reads the first in the same way."""
    whole = take_all([data])
    assert take_all([data[place : place + 1] for place in range(len(data))]) == whole
    middle = len(data) // 2
    assert take_all([data[:middle], data[middle:]]) == whole
    assert_read_alike(data)
    stream = data.removeprefix(CHUNKED)
    if stream != data and isinstance(whole[0], tuple):
        read = as_gunicorn_reads_it(stream)
        # gunicorn refuses some fields in trailers; the worker reads no trailers at all (RFC 9110 section 6.5.1).
        assert read is None or whole[0] == ("POST", read[0])


# Forms: RFC 6749 section 3.2 and appendix B.

FORM_SEEDS = (
    b"grant_type=client_credentials&scope=read+write&resource=https%3A%2F%2Fa.example&resource=https%3A%2F%2Fb.example",
    b"client_id=a&client_secret=%C3%A9%E2%82%AC&&=&a&b=&scope=",
    b"grant_type=a&grant_type=b",
    b"a=%ff&b=%zz;c=d\0",
)
_KNOWN = {"grant_type", "scope", "client_id", "client_secret"}


def check_form(data: bytes) -> None:
    """A form is refused, or is what a few lines read: each parameter once, nothing lost, nothing from elsewhere."""
    environ = {"CONTENT_TYPE": FORM, "CONTENT_LENGTH": str(len(data)), "wsgi.input": io.BytesIO(data)}
    try:
        pairs = read_form(environ, _KNOWN)
    except InvalidRequest:
        return
    assert pairs == [pair for piece in data.split(b"&") if (pair := _read_pair(piece))[1]]
    names = [name for name, _ in pairs if name != "resource"]
    assert len(set(names)) == len(names)
    environ = {"CONTENT_TYPE": FORM, "wsgi.input": io.BytesIO(urlencode(pairs).encode()), "wsgi.input_terminated": True}
    assert read_form(environ, _KNOWN) == pairs


def _read_pair(piece: bytes) -> tuple[str, str]:
    name, _, value = piece.partition(b"=")
    return unquote_to_bytes(name.replace(b"+", b" ")).decode(), unquote_to_bytes(value.replace(b"+", b" ")).decode()


# Forwarded headers: RFC 7239.

FORWARDED_SEEDS = (
    b'for=203.0.113.66, for="203.0.113.66',
    b"203.0.113.66, 10.9.9.9",
    b'for="[2001:db8::1]:4711";proto=https;by=10.0.0.1, for=203.0.113.66',
    b'for="\\"",for=unknown;host="a,b",for=_hidden',
    b"::ffff:10.0.0.1, nonsense, 1.2.3.4:5",
)
_PROXY, _CALLER, _STRANGER = "10.1.2.3", "198.51.100.4", "192.0.2.9"
_TRUSTED = parse_trusted_proxies("10.0.0.0/8, fd00::/8, unix")


def check_forwarded(data: bytes) -> None:
    """Nothing that a caller writes makes it another caller: its proxy adds the address that it sees at the end."""
    written = data.decode("latin-1")
    added_for, added_forwarded = f"{written}, {_CALLER}", f"{written}, for={_CALLER}"
    assert find_source(_PROXY, added_for, None, _TRUSTED) == _CALLER
    # What is malformed counts for nothing: the proxy itself is named.
    assert find_source(_PROXY, None, added_forwarded, _TRUSTED) in {_CALLER, _PROXY}
    assert find_source(_PROXY, added_for, added_forwarded, _TRUSTED) in {_CALLER, _PROXY}
    assert find_source(_STRANGER, written, written, _TRUSTED) == _STRANGER
    for source in (find_source(_PROXY, written, None, _TRUSTED), find_source(_PROXY, None, written, _TRUSTED)):
        assert str(ipaddress.ip_address(source)) == source


# JWS: RFC 7515, as assertions of clients (RFC 7523) and as tokens of ours (RFC 9068).

CLIENT_ID = "fuzzed"
_SIGNER = signer("ES256")
_CLOCK = SettableClock()
_NOW = int(_CLOCK().timestamp())
_CLAIMS = {"iss": CLIENT_ID, "sub": CLIENT_ID, "aud": ISSUER, "iat": _NOW, "exp": _NOW + 60, "jti": "a"}
_TYPES = {None, "jwt", "client-authentication+jwt"}
_FEDERATED_ID, _PLATFORM = "federated", "https://platform.example"


def _to_sign(jti: str, header: str = "", **changes: Any) -> bytes:
    """A header and claims, which the target signs."""
    return f'{{"alg":"ES256"{header}}}\n{json.dumps({**_CLAIMS, "jti": jti, **changes})}'.encode()


JWS_SEEDS = (
    # Some are accepted, once.
    _to_sign("1", f',"typ":"JWT","kid":"{_SIGNER.kid}"'),
    _to_sign("2", ',"typ":"client-authentication+jwt"', aud=[ISSUER, f"{ISSUER}/oauth/token"], nbf=_NOW),
    _to_sign("3", ',"crit":["b64"],"b64":false'),
    _to_sign("4", ',"typ":"at+jwt"'),
    _to_sign("5", aud=[ISSUER, "https://b.example"]),
    _to_sign("6", aud=[]),
    _to_sign("7", exp=_NOW - SKEW_SECONDS),
    _to_sign("8", exp=_NOW + 10**9),
    _to_sign("9", iat=_NOW + 61),
    _to_sign("10", ',"typ":"application/JWT"', iat=None, exp=_NOW + 59.5, nbf=_NOW - 0.25),
    _to_sign("", sub="other"),
    b'{"alg":"ES256"}\n{"exp":1e400,"iat":-1,"nbf":[],"jti":[],"sub":null,"aud":{}}',
    # With a second line break the platform has signed, and the client of a trust sends it.
    _to_sign("p", iss=_PLATFORM, sub="workload:a") + b"\n",
    _to_sign("p", iss=_PLATFORM, sub="workload:b") + b"\n",
    _to_sign("p", iss=_PLATFORM, sub="workload:a", aud=[ISSUER, "https://b.example"]) + b"\n",
    _to_sign("p", iss=_PLATFORM, sub="workload:a", exp=_NOW + 2 * 86400) + b"\n",
    b'{"alg":"ES256","crit":[]}\n{"iss":"https://platform.example","sub":["workload:a"],"aud":null,"exp":1e3}\n',
    by_hand({"alg": "none"}, _CLAIMS, b"").encode(),
    by_hand({"alg": "HS256", "typ": "at+jwt"}, _CLAIMS).encode(),
    by_hand({"alg": ["RS256"], "kid": {}, "jwk": _SIGNER.jwk}, b"[]").encode(),
    _SIGNER.sign(_CLAIMS).encode(),
)


@contextlib.contextmanager
def _open_jws() -> Iterator[Check]:
    settings = {"ratelimit_enabled": "false", "encryption_keys": f"k1:{'e' * 40}"}
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        open_harness(Path(folder), _CLOCK, **settings) as harness,
    ):
        keys = {"keys": [_SIGNER.jwk | {"kid": _SIGNER.kid}]}
        fields = ClientFields("Fuzzed", token_endpoint_auth_method="private_key_jwt", auth_fields={"jwks": keys})
        with harness.app.app_context():
            harness.store.register(fields, client_id=CLIENT_ID, with_secret=False)
            federated = ClientFields("Federated", token_endpoint_auth_method="federated_jwt")
            harness.store.register(federated, client_id=_FEDERATED_ID, with_secret=False)
            trust = Trust(_PLATFORM, "workload:a", {}, ISSUER)
            harness.services.clients.trusts.add(_FEDERATED_ID, trust, keys=KeySet(keys))
        ring = harness.services.keys.active()

        def check(data: bytes) -> None:
            header, line_break, claims = data.partition(b"\n")
            claims, second, _ = claims.partition(b"\n")
            if second:
                _check_platforms(harness, header, claims)
                return
            if line_break:
                _check_signed(harness, header, claims)
                return
            text = data.decode("latin-1")
            _check_parts(text)
            # Nobody but us can make a token of ours.
            assert not validate_token(text, ISSUER, ring, _CLOCK()).is_good
            if (status := _authenticate(harness, text)) == 200:
                assert parse_unverified(text, len(text)) == parse_unverified(JWS_SEEDS[-1].decode(), len(text))
            assert status in {200, 400, 401}

        yield check


def _check_parts(text: str) -> None:
    found = parse_unverified(text, 8192)
    if found is not None:
        assert found.signed.count(b".") == 1
        assert text.startswith(found.signed.decode())
        if found.header is not None:
            assert found.header == json.loads(decode(text.partition(".")[0]) or b"")


def _check_signed(harness: Harness, header: bytes, claims: bytes) -> None:
    """A signature that is valid does not make wrong claims right."""
    status = _authenticate(harness, _sign(header, claims))
    assert status in {200, 400, 401}
    if status == 200:
        _require_right(json.loads(header), json.loads(claims))


def _check_platforms(harness: Harness, header: bytes, claims: bytes) -> None:
    """A platform's signature does not make another workload the client."""
    status = _authenticate(harness, _sign(header, claims), client_id=_FEDERATED_ID)
    assert status in {200, 400, 401}
    if status == 200:
        said = json.loads(claims)
        assert "crit" not in json.loads(header)
        assert (said["iss"], said["sub"]) == (_PLATFORM, "workload:a")
        assert said["aud"] in (ISSUER, [ISSUER])
        assert _NOW - SKEW_SECONDS < said["exp"] <= _NOW + 86400 + SKEW_SECONDS
        assert max(said.get("iat") or 0, said.get("nbf") or 0) <= _NOW + SKEW_SECONDS


def _sign(header: bytes, claims: bytes) -> str:
    signed = ".".join(map(_encode, (header, claims)))
    signature = jwt.get_algorithm_by_name("ES256").sign(signed.encode(), _SIGNER.key.private_key)
    return f"{signed}.{_encode(signature)}"


def _encode(part: bytes) -> str:
    return urlsafe_b64encode(part).rstrip(b"=").decode()


def _require_right(header: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
    assert header["alg"] == "ES256"
    assert header.get("kid", _SIGNER.kid) == _SIGNER.kid
    typ = header.get("typ")
    assert (typ if typ is None else typ.lower().removeprefix("application/")) in _TYPES
    assert "crit" not in header
    assert claims["iss"] == claims["sub"] == CLIENT_ID
    audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    assert audiences
    assert set(audiences) <= {ISSUER, f"{ISSUER}/oauth/token"}
    assert _NOW - SKEW_SECONDS < claims["exp"] <= _NOW + 3600 + SKEW_SECONDS
    assert max(claims.get("iat") or 0, claims.get("nbf") or 0) <= _NOW + SKEW_SECONDS
    assert claims["jti"]
    assert isinstance(claims["jti"], str)


def _authenticate(harness: Harness, assertion: str, **more: str) -> int:
    form = {
        "grant_type": "client_credentials",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": assertion,
        **more,
    }
    environ = EnvironBuilder("/oauth/token", method="POST", data=form).get_environ()
    statuses: list[int] = []
    b"".join(harness.app(environ, lambda status, *_: statuses.append(int(status[:3]))))
    return statuses[0]


# Headers with a DPoP proof (RFC 9449), and with a certificate (RFC 9440, Envoy, nginx).

PROOF_SEEDS = (
    b'{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"EC","crv":"P-256"}}|{"htm":"POST","htu":"https://a.example/"}',
    b'{"typ":"dpop+jwt","alg":"RS256","jwk":{"kty":"RSA","n":"AQAB","e":"AQAB"}}|{"iat":1,"jti":"a"}',
    b'{"typ":"dpop+jwt","alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}}|{"htu":"https://a//[/%zz?#"}',
)
_TARGET = "https://a.example/oauth/token"


def check_proof(data: bytes) -> None:
    """An unsigned proof is refused, and no proof raises another error."""
    header, _, claims = data.partition(b"|")
    encoded = [urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, claims, b"x" * 64)]
    for proof in (".".join(encoded), data.decode("latin-1")):
        with suppress(InvalidDpopProof):
            read_proof(proof)
            raise AssertionError("an unsigned proof was accepted")
    with suppress(InvalidDpopProof):
        check_target({"htm": "POST", "htu": claims.decode("latin-1")}, "POST", _TARGET)


CERTIFICATE_SEEDS = (
    b":MIIB:",
    b'By=spiffe://a;Hash=00;Cert="-----BEGIN%20CERTIFICATE-----%0AMIIB%0A-----END%20CERTIFICATE-----%0A";Subject="CN=\\"a"',
    b"-----BEGIN%20CERTIFICATE-----%0AMIIB%0A-----END%20CERTIFICATE-----%0A",
)


def _open_certificates() -> AbstractContextManager[Callable[[bytes], None]]:
    settings = {"issuer": "https://a.example", "secret_peppers": f"p1:{'p' * 40}", "trusted_proxies": _PROXY}
    sources = [
        ClientCertificates(Settings(**settings, mtls_format=kind))  # type: ignore[arg-type]
        for kind in ("rfc9440", "xfcc", "nginx")
    ]

    def check_certificate(data: bytes) -> None:
        """A header is a certificate or refused; from an untrusted peer it is always refused."""
        written = data.decode("latin-1")
        for source in sources:
            with suppress(InvalidRequest):
                found = source.read({source.header: written, f"{source.header}_CHAIN": written})
                assert found is None or found.thumbprint
            with suppress(InvalidRequest):
                source.require_trusted({source.header: written, "REMOTE_ADDR": _STRANGER})
                raise AssertionError("the header of an untrusted peer was accepted")

    return nullcontext(check_certificate)


TARGETS = {
    "framing": Target(lambda: nullcontext(check_framing), FRAMING_SEEDS),
    "form": Target(lambda: nullcontext(check_form), FORM_SEEDS),
    "forwarded": Target(lambda: nullcontext(check_forwarded), FORWARDED_SEEDS),
    "jws": Target(_open_jws, JWS_SEEDS),
    "proof": Target(lambda: nullcontext(check_proof), PROOF_SEEDS),
    "certificate": Target(_open_certificates, CERTIFICATE_SEEDS),
}
