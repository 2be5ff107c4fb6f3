"""curl, as the README shows it, and with what it can do beyond."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from clients.relay import CHALLENGE, REFUSED, House

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


def test_the_line_of_the_readme_gets_a_token(house: House) -> None:
    client = house.register()
    answer = curl("-u", f"{client.client_id}:{client.secret}", "-d", "grant_type=client_credentials", house.token_url)
    house.check_answer(json.loads(answer), client)
    sent = house.only_sent()
    assert (sent.credentials, sent.body) == (f"{client.client_id}:{client.secret}", b"grant_type=client_credentials")
    assert sent.headers["content-type"] == "application/x-www-form-urlencoded"
    assert sent.headers["accept"] == "*/*"


def test_basic_carries_awkward_credentials_raw(house: House) -> None:
    client = house.register_awkward_for_raw()
    answer = curl("--user", f"{client.client_id}:{client.secret}", *GRANT, house.token_url)
    house.check_answer(json.loads(answer), client)
    assert house.only_sent().credentials == f"{client.client_id}:{client.secret}"


def test_basic_cannot_carry_an_id_with_a_colon_raw(house: House) -> None:
    client = house.register_awkward_for_encoded()
    body, status = with_status("--user", f"{client.client_id}:{client.secret}", *GRANT, house.token_url)
    assert (json.loads(body), status) == (REFUSED, "401")


def test_awkward_credentials_in_the_body_are_encoded_by_data_urlencode(house: House) -> None:
    client = house.register_awkward_for_encoded()
    credentials = (
        "--data-urlencode",
        f"client_id={client.client_id}",
        "--data-urlencode",
        f"client_secret={client.secret}",
    )
    answer = curl(*GRANT, *credentials, house.token_url)
    house.check_answer(json.loads(answer), client)
    assert house.only_sent().credentials is None


def test_a_generated_secret_needs_no_encoding_in_the_body(house: House) -> None:
    client = house.register()
    answer = curl(
        *GRANT, "-d", f"client_id={client.client_id}", "-d", f"client_secret={client.secret}", house.token_url
    )
    house.check_answer(json.loads(answer), client)


def test_a_scope_may_have_a_raw_blank(house: House) -> None:
    client = house.register()
    answer = curl("--user", f"{client.client_id}:{client.secret}", *GRANT, "-d", "scope=write read", house.token_url)
    house.check_answer(json.loads(answer), client, scope="write read")
    assert house.only_sent().body == b"grant_type=client_credentials&scope=write read"


def test_a_chunked_body_is_read(house: House) -> None:
    client = house.register()
    credentials = ("--user", f"{client.client_id}:{client.secret}")
    answer = curl(*credentials, "--header", "Transfer-Encoding: chunked", *GRANT, house.token_url)
    house.check_answer(json.loads(answer), client)
    sent = house.only_sent()
    assert sent.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in sent.headers


def test_a_request_that_expects_100_continue_is_told_to_continue(house: House) -> None:
    client = house.register()
    credentials = ("--user", f"{client.client_id}:{client.secret}")
    printed = curl(*credentials, "--include", "--header", "Expect: 100-continue", *GRANT, house.token_url)
    interim, head, answer = printed.split("\n\n")
    assert interim == "HTTP/1.1 100 Continue"
    assert head.startswith("HTTP/1.1 200 ")
    house.check_answer(json.loads(answer), client)


def test_http_1_0_is_answered(house: House) -> None:
    client = house.register()
    answer = curl("--http1.0", "--user", f"{client.client_id}:{client.secret}", *GRANT, house.token_url)
    house.check_answer(json.loads(answer), client)
    assert house.only_sent().http_version == "HTTP/1.0"


def test_an_offer_to_upgrade_to_http_2_is_passed_over(house: House) -> None:
    client = house.register()
    answer = curl("--http2", "--user", f"{client.client_id}:{client.secret}", *GRANT, house.token_url)
    house.check_answer(json.loads(answer), client)


def test_two_requests_go_over_one_connection(house: House) -> None:
    client = house.register()
    again = ("--user", f"{client.client_id}:{client.secret}", *GRANT, house.token_url)
    printed = curl("--write-out", "\n%{num_connects}\n", *again, "--next", "--write-out", "\n%{num_connects}", *again)
    first, first_connects, second, second_connects = printed.split("\n")
    house.check_answer(json.loads(first), client)
    house.check_answer(json.loads(second), client)
    assert (first_connects, second_connects) == ("1", "0")


def test_the_challenge_tells_curl_which_authentication_to_use(house: House) -> None:
    client = house.register()
    answer = curl("--anyauth", "--user", f"{client.client_id}:{client.secret}", *GRANT, house.token_url)
    house.check_answer(json.loads(answer), client)
    assert [sent.credentials for sent in house.sent()] == [None, f"{client.client_id}:{client.secret}"]


def test_a_wrong_secret_is_refused_with_a_challenge(house: House) -> None:
    client = house.register()
    printed = curl("--include", "--user", f"{client.client_id}:wrong", *GRANT, house.token_url)
    head, body = printed.split("\n\n")
    assert head.startswith("HTTP/1.1 401 ")
    assert f"WWW-Authenticate: {CHALLENGE}" in head.split("\n")
    assert json.loads(body) == REFUSED


def test_a_scope_that_was_not_granted_is_refused(house: House) -> None:
    client = house.register()
    credentials = ("--user", f"{client.client_id}:{client.secret}")
    body, status = with_status(*credentials, *GRANT, "-d", "scope=read delete", house.token_url)
    assert (json.loads(body)["error"], status) == ("invalid_scope", "400")


def test_json_is_refused_as_no_form(house: House) -> None:
    body, status = with_status("--header", "Content-Type: application/json", "--data", "{}", house.token_url)
    assert (json.loads(body)["error"], status) == ("invalid_request", "400")


def test_the_keys_are_not_sent_again_while_the_etag_is_the_same(house: House, tmp_path: Path) -> None:
    kept, keys = str(tmp_path / "etag"), tmp_path / "jwks.json"
    body, status = with_status("--etag-save", kept, house.jwks_url)
    assert (json.loads(body), status) == (house.server.jwks(), "200")
    curl("--etag-save", kept, "--output", str(keys), house.jwks_url)
    written = keys.read_bytes()
    assert with_status("--etag-compare", kept, "--output", str(keys), house.jwks_url) == ("", "304")
    assert keys.read_bytes() == written


def test_keys_asked_for_by_date_are_sent_whole(house: House) -> None:
    body, status = with_status("--time-cond", "1 Jan 2026", house.jwks_url)
    assert (json.loads(body), status) == (house.server.jwks(), "200")
    assert house.only_sent().headers["if-modified-since"] == "Thu, 01 Jan 2026 00:00:00 GMT"


def test_head_of_the_keys_has_the_headers_of_get(house: House) -> None:
    differing = ("date:", "x-request-id:")
    got = curl("--dump-header", "-", "--output", "/dev/null", house.jwks_url).lower().split("\n")
    head = curl("--head", house.jwks_url).lower().split("\n")
    assert [line for line in head if not line.startswith(differing)] == [
        line for line in got if not line.startswith(differing)
    ]
    assert "cache-control: public, max-age=300" in head
