"""curl, as the README shows it, and with what it can do beyond."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from clients.relay import CHALLENGE, REFUSED, Harness

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

GRANT = ("--data", "grant_type=client_credentials")


def curl(*arguments: str, stdin: str = "") -> str:
    """Run curl, which must end well; what it prints."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "20", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_status(*arguments: str) -> tuple[str, str]:
    """Body and status."""
    body, status = curl("--write-out", "\n%{http_code}", *arguments).rsplit("\n", 1)
    return body, status


def test_the_line_of_the_readme_gets_a_token(harness: Harness) -> None:
    client = harness.register()
    answer = curl("-u", f"{client.client_id}:{client.secret}", "-d", "grant_type=client_credentials", harness.token_url)
    harness.check_answer(json.loads(answer), client)
    sent = harness.only_sent()
    assert (sent.credentials, sent.body) == (f"{client.client_id}:{client.secret}", b"grant_type=client_credentials")
    assert sent.headers["content-type"] == "application/x-www-form-urlencoded"
    assert sent.headers["accept"] == "*/*"


def test_basic_carries_awkward_credentials_raw(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    answer = curl("--user", f"{client.client_id}:{client.secret}", *GRANT, harness.token_url)
    harness.check_answer(json.loads(answer), client)
    assert harness.only_sent().credentials == f"{client.client_id}:{client.secret}"


def test_basic_cannot_carry_an_id_with_a_colon_raw(harness: Harness) -> None:
    client = harness.register_awkward_for_encoded()
    body, status = with_status("--user", f"{client.client_id}:{client.secret}", *GRANT, harness.token_url)
    assert (json.loads(body), status) == (REFUSED, "401")


def test_awkward_credentials_in_the_body_are_encoded_by_data_urlencode(harness: Harness) -> None:
    client = harness.register_awkward_for_encoded()
    credentials = (
        "--data-urlencode",
        f"client_id={client.client_id}",
        "--data-urlencode",
        f"client_secret={client.secret}",
    )
    answer = curl(*GRANT, *credentials, harness.token_url)
    harness.check_answer(json.loads(answer), client)
    assert harness.only_sent().credentials is None


def test_a_generated_secret_needs_no_encoding_in_the_body(harness: Harness) -> None:
    client = harness.register()
    answer = curl(
        *GRANT, "-d", f"client_id={client.client_id}", "-d", f"client_secret={client.secret}", harness.token_url
    )
    harness.check_answer(json.loads(answer), client)


def test_a_scope_may_have_a_raw_blank(harness: Harness) -> None:
    client = harness.register()
    answer = curl("--user", f"{client.client_id}:{client.secret}", *GRANT, "-d", "scope=write read", harness.token_url)
    harness.check_answer(json.loads(answer), client, scope="write read")
    assert harness.only_sent().body == b"grant_type=client_credentials&scope=write read"


def test_a_chunked_body_is_read(harness: Harness) -> None:
    client = harness.register()
    credentials = ("--user", f"{client.client_id}:{client.secret}")
    answer = curl(*credentials, "--header", "Transfer-Encoding: chunked", *GRANT, harness.token_url)
    harness.check_answer(json.loads(answer), client)
    sent = harness.only_sent()
    assert sent.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in sent.headers


def test_a_request_that_expects_100_continue_is_told_to_continue(harness: Harness) -> None:
    client = harness.register()
    credentials = ("--user", f"{client.client_id}:{client.secret}")
    printed = curl(*credentials, "--include", "--header", "Expect: 100-continue", *GRANT, harness.token_url)
    interim, head, answer = printed.split("\n\n")
    assert interim == "HTTP/1.1 100 Continue"
    assert head.startswith("HTTP/1.1 200 ")
    harness.check_answer(json.loads(answer), client)


def test_http_1_0_is_answered(harness: Harness) -> None:
    client = harness.register()
    answer = curl("--http1.0", "--user", f"{client.client_id}:{client.secret}", *GRANT, harness.token_url)
    harness.check_answer(json.loads(answer), client)
    assert harness.only_sent().http_version == "HTTP/1.0"


def test_an_offer_to_upgrade_to_http_2_is_passed_over(harness: Harness) -> None:
    client = harness.register()
    answer = curl("--http2", "--user", f"{client.client_id}:{client.secret}", *GRANT, harness.token_url)
    harness.check_answer(json.loads(answer), client)


def test_two_requests_go_over_one_connection(harness: Harness) -> None:
    client = harness.register()
    again = ("--user", f"{client.client_id}:{client.secret}", *GRANT, harness.token_url)
    printed = curl("--write-out", "\n%{num_connects}\n", *again, "--next", "--write-out", "\n%{num_connects}", *again)
    first, first_connects, second, second_connects = printed.split("\n")
    harness.check_answer(json.loads(first), client)
    harness.check_answer(json.loads(second), client)
    assert (first_connects, second_connects) == ("1", "0")


def test_the_challenge_tells_curl_which_authentication_to_use(harness: Harness) -> None:
    client = harness.register()
    answer = curl("--anyauth", "--user", f"{client.client_id}:{client.secret}", *GRANT, harness.token_url)
    harness.check_answer(json.loads(answer), client)
    assert [sent.credentials for sent in harness.sent()] == [None, f"{client.client_id}:{client.secret}"]


def test_a_wrong_secret_is_refused_with_a_challenge(harness: Harness) -> None:
    client = harness.register()
    printed = curl("--include", "--user", f"{client.client_id}:wrong", *GRANT, harness.token_url)
    head, body = printed.split("\n\n")
    assert head.startswith("HTTP/1.1 401 ")
    assert f"WWW-Authenticate: {CHALLENGE}" in head.split("\n")
    assert json.loads(body) == REFUSED


def test_a_scope_that_was_not_granted_is_refused(harness: Harness) -> None:
    client = harness.register()
    credentials = ("--user", f"{client.client_id}:{client.secret}")
    body, status = with_status(*credentials, *GRANT, "-d", "scope=read delete", harness.token_url)
    assert (json.loads(body)["error"], status) == ("invalid_scope", "400")


def test_json_is_refused_as_no_form(harness: Harness) -> None:
    body, status = with_status("--header", "Content-Type: application/json", "--data", "{}", harness.token_url)
    assert (json.loads(body)["error"], status) == ("invalid_request", "400")


def test_the_keys_are_not_sent_again_while_the_etag_is_the_same(harness: Harness, tmp_path: Path) -> None:
    kept, keys = str(tmp_path / "etag"), tmp_path / "jwks.json"
    body, status = with_status("--etag-save", kept, harness.jwks_url)
    assert (json.loads(body), status) == (harness.server.jwks(), "200")
    curl("--etag-save", kept, "--output", str(keys), harness.jwks_url)
    written = keys.read_bytes()
    assert with_status("--etag-compare", kept, "--output", str(keys), harness.jwks_url) == ("", "304")
    assert keys.read_bytes() == written


def test_keys_asked_for_by_date_are_sent_whole(harness: Harness) -> None:
    body, status = with_status("--time-cond", "1 Jan 2026", harness.jwks_url)
    assert (json.loads(body), status) == (harness.server.jwks(), "200")
    assert harness.only_sent().headers["if-modified-since"] == "Thu, 01 Jan 2026 00:00:00 GMT"


def test_head_of_the_keys_has_the_headers_of_get(harness: Harness) -> None:
    differing = ("date:", "x-request-id:")
    got = curl("--dump-header", "-", "--output", "/dev/null", harness.jwks_url).lower().split("\n")
    head = curl("--head", harness.jwks_url).lower().split("\n")
    assert [line for line in head if not line.startswith(differing)] == [
        line for line in got if not line.startswith(differing)
    ]
    assert "cache-control: public, max-age=300" in head
