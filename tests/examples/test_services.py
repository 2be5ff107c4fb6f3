"""The two services among the examples: they verify their callers' tokens, and call an API with their own."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from examples.stage import BROKEN, TOO_MANY, UNAVAILABLE, Stage
from support.server import free_port

from examples.programs import SERVICES, Service, read_counts, running_service


@pytest.fixture(params=SERVICES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service(stage: Stage, name: str, tmp_path: Path) -> Iterator[Service]:
    with running_service(stage, name, tmp_path) as started:
        yield started


def test_a_caller_with_a_token_gets_what_the_api_says(service: Service) -> None:
    answer = service.get(service.token())
    expected = {"caller": service.caller.client_id, "things": {"status": 200, "things": ["ink", "paper"]}}
    assert (answer.status_code, answer.json()) == (200, expected)
    assert (service.stage.answered.token_statuses, service.stage.answered.api_statuses) == ([200], [200])
    assert service.counted() == {"token ok": 1, "api ok": 1}
    assert 'served_requests_total{status="200"}' in service.get(None, "/metrics").text


def test_callers_without_a_good_token_are_refused(service: Service) -> None:
    good = service.token()
    header, claims, signature = good.split(".")
    own_key = rsa.generate_private_key(65537, 2048)
    decoded = jwt.decode(good, options={"verify_signature": False})
    kid = jwt.get_unverified_header(good)["kid"]
    typed = {"kid": kid, "typ": "at+jwt"}
    with service.stage.server.context():
        ours = service.stage.server.services.keys.active.signing_key().private_key

    def signed(changes: dict[str, object], **fields: str) -> str:
        kept = {name: value for name, value in (decoded | changes).items() if value is not None}
        return jwt.encode(kept, ours, "RS256", headers=typed | fields)

    assert service.get(signed({})).status_code == 200, "what is refused below is refused for its change"
    now = int(time.time())
    bad = {
        "garbage": "x",
        "dots": "..",
        "not signed": f"{header}.{claims}.",
        "wrong signature": f"{header}.{claims}.{signature[::-1]}",
        "another's key": jwt.encode(decoded, own_key, "RS256", headers=typed),
        "unknown key": jwt.encode(decoded, own_key, "RS256", headers=typed | {"kid": "nobody"}),
        "none": jwt.encode(decoded, None, "none", headers=typed),
        "symmetric": jwt.encode(decoded, "x" * 32, "HS256", headers=typed),
        "an ID token": signed({}, typ="JWT"),
        "over": signed({"exp": now - 60}),
        "not begun": signed({"nbf": now + 600}),
        "another audience": signed({"aud": "https://other.example"}),
        "another issuer": signed({"iss": "https://other.example"}),
        "no end": signed({"exp": None}),
        "no client": signed({"client_id": None}),
    }
    answers = {name: service.get(token) for name, token in bad.items()}
    assert {
        name: (answer.status_code, answer.headers.get("WWW-Authenticate")) for name, answer in answers.items()
    } == dict.fromkeys(bad, (401, 'Bearer error="invalid_token"'))
    for given in (None, "", " "):
        answer = service.get(given)
        assert (answer.status_code, answer.headers.get("WWW-Authenticate")) == (401, "Bearer")
    lacking = service.get(signed({"scope": "things:write"}))
    challenge = 'Bearer error="insufficient_scope", scope="things:read"'
    assert (lacking.status_code, lacking.headers["WWW-Authenticate"]) == (403, challenge)
    assert service.get(None, "/nothing").status_code == 404
    assert len(service.stage.answered.api_statuses) == 1


def test_two_hundred_callers_make_one_token_request(service: Service) -> None:
    assert service.get_many(200) == [200] * 200
    assert service.stage.answered.token_statuses == [200]
    assert service.counted() == {"token ok": 1, "api ok": 200}


def test_a_token_that_ends_meanwhile_is_replaced_before_it_does(stage: Stage, name: str, tmp_path: Path) -> None:
    with running_service(stage, name, tmp_path, access_token_lifetime=4) as service:
        for _ in range(3):
            assert service.get_many(20) == [200] * 20
            time.sleep(2.1)
        assert stage.answered.token_statuses == [200] * 3
        assert (set(stage.answered.api_statuses), stage.answered.unverifiable) == ({200}, [])


def test_after_401_there_is_one_fresh_token_for_all(service: Service) -> None:
    assert service.get_many(1) == [200]
    service.stage.answered.api_faults.append(401)
    assert service.get_many(20) == [200] * 20
    assert service.stage.answered.token_statuses == [200, 200]
    assert service.counted() == {"token ok": 2, "api ok": 21}


def test_an_api_that_never_takes_the_token_is_asked_twice(service: Service) -> None:
    service.stage.answered.api_faults.extend([401, 401])
    assert service.get_many(1) == [502]
    assert (service.stage.answered.token_statuses, service.stage.answered.api_statuses) == ([200, 200], [401, 401])
    assert service.counted() == {"token ok": 2, "api 401": 1}


def test_what_is_away_is_asked_again_when_it_says(service: Service) -> None:
    answered = service.stage.answered
    answered.token_faults.extend(
        [(503, {"Retry-After": "1"}, UNAVAILABLE), (429, {"Retry-After": "2"}, TOO_MANY), (BROKEN, {}, {})]
    )
    answered.api_faults.extend([503, 429])
    began = time.monotonic()
    assert service.get_many(5) == [200] * 5
    assert time.monotonic() - began >= 3
    assert [status for status in answered.token_statuses if status != BROKEN] == [503, 429, 200]
    assert sorted(answered.api_statuses) == [200] * 5 + [429, 503]
    assert service.counted() == {"token ok": 1, "api ok": 5}


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("invalid_client", {"CLIENT_ID": "nobody"}),
        ("invalid_scope", {"SCOPE": "things:write"}),
        ("unauthorized_client", {}),
        ("server_error", {}),
        ("no_secret", {"CLIENT_SECRET_FILE": "/nowhere"}),
        ("unreachable", {"TOKEN_URL": "http://127.0.0.1:1/oauth/token"}),
    ],
)
def test_without_a_token_the_log_says_what_to_do_and_the_caller_may_come_again(
    stage: Stage, service: Service, code: str, changes: dict[str, str]
) -> None:
    service.stop()
    service.environment |= changes
    service.start()
    if code == "unauthorized_client":
        refusal = {"error": code, "error_description": "The client may not use this grant."}
        stage.answered.token_faults.append((400, {}, refusal))
    if code == "server_error":
        stage.answered.token_faults.extend([(503, {"Retry-After": "0"}, UNAVAILABLE)] * 5)
    answer = service.get(service.token())
    assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})
    assert "Retry-After" in answer.headers
    assert service.counted() == {f"token {code}": 1, "api no_token": 1}
    said = service.log.read_text()
    assert f"{code}: " in said
    assert code != "invalid_scope" or "things:write" in said
    assert "Traceback" not in said


def test_what_is_killed_and_started_again_goes_on(service: Service) -> None:
    assert service.get_many(20) == [200] * 20
    service.stop(signal.SIGKILL)
    service.start()
    assert service.get_many(20) == [200] * 20
    assert service.stage.answered.token_statuses == [200, 200]
    assert service.stop() == 0


def test_keys_that_cannot_be_had_are_no_fault_of_the_caller(service: Service) -> None:
    service.stop()
    service.environment["ISSUER"] = "http://127.0.0.1:1"
    service.start()
    answer = service.get(service.token())
    assert (answer.status_code, answer.json()) == (503, {"error": "temporarily_unavailable"})
    assert service.stage.answered.token_statuses == []


@pytest.mark.parametrize("name", ["microservice"], indirect=True)
def test_keys_are_kept_on_while_their_issuer_is_away(service: Service) -> None:
    service.stop()
    service.environment["JWKS_SECONDS"] = "0.1"
    service.start()
    assert service.get(service.token()).status_code == 200
    service.stage.answered.are_keys_away = True
    time.sleep(0.2)
    assert service.get(service.token()).status_code == 200
    assert "the issuer's keys cannot be had" in service.log.read_text()


def test_what_is_not_set_is_named(stage: Stage, name: str, tmp_path: Path) -> None:
    command, home = SERVICES[name](tmp_path, free_port())
    environment = stage.environment(stage.client())
    del environment["API_URL"]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0
    assert "API_URL must be set\n" in done.stderr


def test_an_api_that_cannot_be_reached_is_told_and_counted(service: Service) -> None:
    service.stop()
    service.environment["API_URL"] = "http://127.0.0.1:1/things"
    service.start()
    assert service.get(service.token()).status_code in {503, 504}
    assert service.counted() == {"token ok": 1, "api unreachable": 1}


def test_counts_read_what_a_metrics_system_reads() -> None:
    text = 'outbound_request_duration_seconds_count{target="api",outcome="ok"} 3\n# HELP x\n'
    assert read_counts(text) == {"api ok": 3}
    assert read_counts("") == {}
