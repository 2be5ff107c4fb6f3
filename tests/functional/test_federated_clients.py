"""Clients that bring their platform's token: what is accepted, and sixty tokens that are not, each with its reason."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conformance.expected import INVALID_CLIENT, assert_refused
from sqlalchemy import update
from support.assertions import ISSUER, Signer, by_hand, form, signer
from support.platforms import Platform, open_platform
from support.server import RunningServer, wait_until

from app.database.models import IssuerKeySetRow, db

SPIFFE_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
METHOD = ("--auth-method", "federated_jwt")
STRANGER = signer("RS256")


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with open_platform() as opened:
        yield opened


def make(server: RunningServer, *trusts: tuple[str, ...]) -> str:
    client_id: str = server.flask_json("clients", "create", "Federated", *METHOD, "--scope", "read")["client_id"]
    for trust in trusts:
        done = server.flask("clients", "trust", client_id, *trust)
        assert done.returncode == 0, done.stderr
    return client_id


@pytest.fixture(scope="module")
def pod(server: RunningServer, platform: Platform) -> str:
    """A client that is a service account of a cluster."""
    return make(server, ("--issuer", platform.issuer, "--kubernetes", "billing/worker"))


@pytest.fixture(scope="module")
def workflow(server: RunningServer, platform: Platform) -> str:
    """A client that is a workflow, on whose issuer an owner's id counts, too."""
    github = ("--issuer", platform.issuer, "--github", "octo/app@main")
    return make(server, (*github, "--claim", "repository_owner_id=6500", "--claim", "event_name=push"))


def send(server: RunningServer, client_id: str, token: str, **more: str) -> requests.Response:
    return server.post_token(form(token, client_id=client_id, **more))


def issued(server: RunningServer, answer: requests.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    event: dict[str, Any] = server.event_of(answer)
    return event


def test_a_pods_token_gets_an_access_token_and_the_log_says_whose(
    server: RunningServer, platform: Platform, pod: str
) -> None:
    token = platform.sign(platform.kubernetes())
    answer = send(server, pod, token)
    event = issued(server, answer)
    assert server.verify(answer.json()["access_token"])["sub"] == pod
    (trust,) = server.flask_json("clients", "trusts", pod)
    assert {name: event[name] for name in ("auth_method", "trust_id", "assertion_issuer", "assertion_subject")} == {
        "auth_method": "federated_jwt",
        "trust_id": trust["trust_id"],
        "assertion_issuer": platform.issuer,
        "assertion_subject": "system:serviceaccount:billing:worker",
    }
    # Platforms cache their tokens: one may be used again.
    assert send(server, pod, token).status_code == 200


def test_each_platform_works_as_it_is(server: RunningServer, platform: Platform, workflow: str) -> None:
    job = make(server, ("--issuer", platform.issuer, "--gitlab", "octo/app@main", "--claim", "project_id=22"))
    svid = make(server, ("--issuer", platform.issuer, "--spiffe", "spiffe://example.org/billing"))
    assert send(server, workflow, platform.sign(platform.github(), typ="JWT")).status_code == 200
    assert send(server, job, platform.sign(platform.gitlab())).status_code == 200
    for kind in ({}, {"client_assertion_type": SPIFFE_TYPE}):
        assert send(server, svid, platform.sign(platform.spiffe()), **kind).status_code == 200
        assert send(server, svid, platform.sign(platform.spiffe(iss=platform.issuer)), **kind).status_code == 200


def test_spiffe_domains_without_iss_are_kept_apart(server: RunningServer, platform: Platform) -> None:
    with open_platform() as other:
        domains = (
            ("--issuer", platform.issuer, "--spiffe", "spiffe://example.org/billing"),
            ("--issuer", other.issuer, "--subject", "spiffe://example.com/ns/*"),
        )
        client_id = make(server, *domains)
        own, foreign = platform.spiffe(), other.spiffe("spiffe://example.com/ns/billing")
        assert [send(server, client_id, each).status_code for each in (platform.sign(own), other.sign(foreign))] == [
            200
        ] * 2
        # Neither domain signs for the other.
        assert [send(server, client_id, each).status_code for each in (platform.sign(foreign), other.sign(own))] == [
            401
        ] * 2


def test_who_forgets_client_id_is_told_by_the_log(server: RunningServer, platform: Platform) -> None:
    answer = server.post_token(form(platform.sign(platform.kubernetes())))
    assert_refused(answer, INVALID_CLIENT)
    event = server.event_of(answer)
    assert (event["reason"], event["detail"]) == (
        "unknown_client",
        "iss is not sub: a platform's token needs client_id",
    )


def test_several_trusts_of_a_client_and_several_clients_of_an_issuer(
    server: RunningServer, platform: Platform, pod: str
) -> None:
    other = make(
        server,
        ("--issuer", platform.issuer, "--kubernetes", "billing/other"),
        (
            "--issuer",
            platform.issuer,
            "--subject",
            "system:serviceaccount:jobs:*",
            "--claim",
            "kubernetes.io/pod/name=x",
        ),
    )
    as_other = platform.sign(platform.kubernetes(account="other"))
    job = platform.kubernetes("jobs", "nightly")
    job["kubernetes.io"]["pod"]["name"] = "x"
    assert [send(server, each, as_other).status_code for each in (other, pod)] == [200, 401]
    assert send(server, other, platform.sign(job)).status_code == 200
    # The log names the trust that comes closest.
    refused = send(server, other, platform.sign(platform.kubernetes("jobs", "nightly")))
    trusts = server.flask_json("clients", "trusts", other)
    assert server.event_of(refused)["detail"] == f"{trusts[1]['trust_id']}: kubernetes.io/pod/name does not match"


def test_a_token_that_may_be_used_once_is_used_once(server: RunningServer, platform: Platform) -> None:
    client_id = make(server, ("--issuer", platform.issuer, "--kubernetes", "billing/worker", "--once"))
    token = platform.sign(platform.kubernetes(jti=uuid.uuid4().hex))
    assert [send(server, client_id, token).status_code for _ in range(2)] == [200, 401]
    refused = send(server, client_id, platform.sign(platform.kubernetes(jti=None)))
    assert (server.event_of(refused)["reason"], server.event_of(refused)["detail"]) == (
        "assertion_without_id",
        "jti is missing",
    )


NOW = int(time.time())
DAY = 24 * 3600
POD_SUBJECT = "system:serviceaccount:billing:worker"
# Changes of the claims of a pod's token, the reason, and what the detail says.
BAD_POD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"iss": "https://other.example"}, "no_trust", None),
    ({"iss": f"{ISSUER}"}, "no_trust", None),
    ({"iss": None, "sub": "https://x"}, "no_trust", None),
    ({"sub": None}, "trust_mismatch", "sub is missing"),
    ({"sub": ""}, "trust_mismatch", "sub does not match"),
    ({"sub": f"{POD_SUBJECT}-2"}, "trust_mismatch", "sub does not match"),
    ({"sub": f" {POD_SUBJECT}"}, "trust_mismatch", "sub does not match"),
    ({"sub": POD_SUBJECT.title()}, "trust_mismatch", "sub does not match"),
    ({"sub": "system:serviceaccount:billing"}, "trust_mismatch", "sub does not match"),
    ({"sub": "system:serviceaccount:other:worker"}, "trust_mismatch", "sub does not match"),
    ({"sub": "system:serviceaccount:billing:*"}, "trust_mismatch", "sub does not match"),
    ({"aud": None}, "trust_mismatch", "aud is missing"),
    ({"aud": []}, "trust_mismatch", "aud does not match"),
    ({"aud": ""}, "trust_mismatch", "aud does not match"),
    ({"aud": "https://kubernetes.default.svc"}, "trust_mismatch", "aud does not match"),
    ({"aud": [ISSUER, "https://other.example"]}, "trust_mismatch", "aud does not match"),
    ({"aud": ["https://other.example", ISSUER]}, "trust_mismatch", "aud does not match"),
    ({"aud": f"{ISSUER}/"}, "trust_mismatch", "aud does not match"),
    ({"aud": f"{ISSUER}/oauth/token"}, "trust_mismatch", "aud does not match"),
    ({"aud": [[ISSUER]]}, "trust_mismatch", "aud does not match"),
    ({"aud": {ISSUER: 1}}, "trust_mismatch", "aud does not match"),
    ({"aud": 1}, "trust_mismatch", "aud does not match"),
    ({"exp": None}, "assertion_times", "exp is missing"),
    ({"exp": "soon"}, "assertion_times", "exp is not a number"),
    ({"exp": True}, "assertion_times", "exp is not a number"),
    ({"exp": 0}, "assertion_expired", "exp has passed"),
    ({"exp": NOW - 61}, "assertion_expired", "exp has passed"),
    ({"exp": NOW + DAY + 3600}, "assertion_too_long", "exp is more than 86400 s ahead"),
    ({"exp": 10**12}, "assertion_too_long", "exp is more than 86400 s ahead"),
    ({"iat": "now"}, "assertion_times", "iat is not a number"),
    ({"iat": NOW + 3600}, "assertion_in_the_future", "iat is in the future"),
    ({"nbf": NOW + 3600}, "assertion_in_the_future", "nbf is in the future"),
    ({"nbf": [NOW]}, "assertion_times", "nbf is not a number"),
    ({"iat": NOW + 3600, "nbf": NOW + 3600}, "assertion_in_the_future", "iat, nbf is in the future"),
]
BAD_WORKFLOW: list[tuple[dict[str, Any], str]] = [
    ({"sub": "repo:octo/app:ref:refs/heads/main2"}, "sub does not match"),
    ({"sub": "repo:octo/app:ref:refs/heads/dev"}, "sub does not match"),
    ({"sub": "repo:octo/app:pull_request"}, "sub does not match"),
    ({"sub": "repo:octo/app:environment:main"}, "sub does not match"),
    ({"sub": "repo:octo/app2:ref:refs/heads/main"}, "sub does not match"),
    ({"sub": "repo:octo2/app:ref:refs/heads/main"}, "sub does not match"),
    ({"sub": "repo:Octo/app:ref:refs/heads/main"}, "sub does not match"),
    ({"sub": "repo:octo/app:ref:refs/heads/main:job_workflow_ref:x"}, "sub does not match"),
    ({"sub": "repo:octo/app:ref:refs/tags/main"}, "sub does not match"),
    # The name was registered by somebody else.
    ({"repository_owner_id": "6501"}, "repository_owner_id does not match"),
    ({"repository_owner_id": None}, "repository_owner_id is missing"),
    ({"repository_owner_id": ["6500"]}, "repository_owner_id does not match"),
    ({"repository_owner_id": {"a": "6500"}}, "repository_owner_id does not match"),
    ({"repository_owner_id": ""}, "repository_owner_id does not match"),
    ({"event_name": "pull_request_target"}, "event_name does not match"),
    ({"event_name": "PUSH"}, "event_name does not match"),
    ({"event_name": None, "repository_owner_id": None}, "repository_owner_id is missing, event_name is missing"),
]


@pytest.mark.parametrize(("changes", "reason", "said"), BAD_POD, ids=map(str, range(len(BAD_POD))))
def test_a_bad_token_of_a_pod_is_refused_and_explained(  # noqa: PLR0913, PLR0917 - As many fixtures as a case has.
    server: RunningServer, platform: Platform, pod: str, changes: dict[str, Any], reason: str, said: str | None
) -> None:
    answer = send(server, pod, platform.sign(platform.kubernetes(**changes)))
    assert_refused(answer, INVALID_CLIENT)
    event = server.event_of(answer)
    assert (event["reason"], event["client_id"]) == (reason, pod)
    detail = event.get("detail")
    assert (detail or "").rpartition(": ")[2] == (said or "")


@pytest.mark.parametrize(("changes", "said"), BAD_WORKFLOW, ids=map(str, range(len(BAD_WORKFLOW))))
def test_a_bad_token_of_a_workflow_is_refused_and_explained(
    server: RunningServer, platform: Platform, workflow: str, changes: dict[str, Any], said: str
) -> None:
    answer = send(server, workflow, platform.sign(platform.github(**changes)))
    assert_refused(answer, INVALID_CLIENT)
    event = server.event_of(answer)
    (trust,) = server.flask_json("clients", "trusts", workflow)
    assert (event["reason"], event["detail"]) == ("trust_mismatch", f"{trust['trust_id']}: {said}")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"typ": "at+jwt"}, "assertion_other_type"),
        ({"typ": "dpop+jwt"}, "assertion_other_type"),
        ({"crit": ["exp"]}, "assertion_other_type"),
        ({"kid": "another"}, "issuer_signature"),
    ],
    ids=str,
)
def test_a_bad_header_is_refused(
    server: RunningServer, platform: Platform, pod: str, header: dict[str, Any], reason: str
) -> None:
    answer = send(server, pod, platform.sign(platform.kubernetes(), **header))
    assert_refused(answer, INVALID_CLIENT)
    assert server.event_of(answer)["reason"] == reason


def test_a_token_that_the_platform_did_not_sign_is_refused_and_its_claims_are_not_logged(
    server: RunningServer, platform: Platform, pod: str
) -> None:
    claims = platform.kubernetes()
    whole = platform.sign(claims)
    impostor = Signer("RS256", STRANGER.key)
    for forged, reason in (
        (platform.sign(claims, by=impostor), "issuer_signature"),
        (platform.sign(claims, by=impostor, kid=platform.signer.kid), "issuer_signature"),
        (platform.sign(claims, by=impostor, kid=None), "issuer_signature"),
        (by_hand({"alg": "none"}, claims, b"x"), "assertion_algorithm"),
        (by_hand({"alg": "RS256", "kid": platform.signer.kid}, claims), "issuer_signature"),
        (f"{whole.rpartition('.')[0]}.{platform.sign(platform.github()).rpartition('.')[2]}", "issuer_signature"),
    ):
        answer = send(server, pod, forged)
        assert_refused(answer, INVALID_CLIENT)
        event = server.event_of(answer)
        assert event["reason"] == reason
        assert not event.keys() & {"assertion_subject", "assertion_issuer", "trust_id"}


def test_callers_are_told_the_same_whatever_is_wrong(server: RunningServer, platform: Platform, pod: str) -> None:
    plain = server.create_client()
    tokens = [platform.sign(platform.kubernetes(**changes)) for changes in ({"sub": "x"}, {"exp": 0}, {"aud": "x"})]
    tokens.append(platform.sign(platform.kubernetes(), by=STRANGER))
    answers = [send(server, pod, token) for token in tokens]
    answers += [send(server, each, platform.sign(platform.kubernetes())) for each in ("nobody", plain.client_id)]
    assert {(answer.status_code, answer.content) for answer in answers} == {(401, answers[0].content)}
    events = [server.event_of(answer) for answer in answers[-2:]]
    assert [event["reason"] for event in events] == ["unknown_client", "other_method_registered"]


def test_a_disabled_client_and_a_removed_trust_are_refused_at_once(server: RunningServer, platform: Platform) -> None:
    client_id = make(server, ("--issuer", platform.issuer, "--kubernetes", "billing/worker"))
    token = platform.sign(platform.kubernetes())
    assert send(server, client_id, token).status_code == 200
    assert server.flask("clients", "disable", client_id).returncode == 0
    assert server.event_of(send(server, client_id, token))["reason"] == "disabled_client"
    assert server.flask("clients", "enable", client_id).returncode == 0
    (trust,) = server.flask_json("clients", "trusts", client_id)
    done = server.flask("clients", "untrust", client_id, trust["trust_id"])
    assert (done.returncode, done.stderr) == (0, f"{trust['trust_id']} was removed; {client_id} has 0 left.\n")
    assert server.event_of(send(server, client_id, token))["reason"] == "no_trust"


def test_a_key_that_the_platform_rotates_is_found_in_the_background(server: RunningServer) -> None:
    with open_platform() as platform:
        client_id = make(server, ("--issuer", platform.issuer, "--kubernetes", "billing/worker"))
        assert platform.fetches == ["/.well-known/openid-configuration", "/jwks.json"]
        old = platform.signer
        platform.rotate()
        token = platform.sign(platform.kubernetes())
        assert send(server, client_id, token).status_code == 401
        # No request waits for a fetch: it comes later, and not sooner than a minute after the one before.
        _make_due(server)
        wait_until(lambda: send(server, client_id, token).status_code == 200)
        assert send(server, client_id, platform.sign(platform.kubernetes(), by=old)).status_code == 200
        platform.discovery = {"issuer": "https://other.example", "jwks_uri": platform.discovery["jwks_uri"]}
        _make_due(server)

        def fault() -> str | None:
            found: str | None = server.flask_json("clients", "trusts", client_id)[0]["keys"]["fault"]
            return found

        wait_until(lambda: fault() == "the discovery document is of another issuer")
    # An issuer that is away keeps its last good keys.
    assert send(server, client_id, token).status_code == 200


def _make_due(server: RunningServer) -> None:
    with server.context(), db.engine.begin() as connection:
        connection.execute(update(IssuerKeySetRow).values(refresh_at=IssuerKeySetRow.fetched_at))


def test_keys_of_a_private_cluster_come_from_a_file(server: RunningServer, tmp_path: Path) -> None:
    one, other = signer("ES256"), signer("ES256")
    issuer = "https://kubernetes.default.svc.cluster.local"
    for number, each in enumerate((one, other)):
        (tmp_path / f"keys-{number}").write_text(json.dumps({"keys": [each.jwk | {"kid": each.kid}]}))
    words = ("--issuer", issuer, "--kubernetes", "billing/worker", "--jwks-file", str(tmp_path / "keys-0"))
    client_id = make(server, words)
    now = int(time.time())
    claims = {"iss": issuer, "sub": POD_SUBJECT, "aud": [ISSUER], "iat": now, "exp": now + 600}
    assert [send(server, client_id, each.sign(claims)).status_code for each in (one, other)] == [200, 401]
    (trust,) = server.flask_json("clients", "trusts", client_id)
    assert (trust["keys"]["uri"], trust["keys"]["kids"]) == ("", [one.kid])
    # The same issuer has the same keys for every client.
    make(server, ("--issuer", issuer, "--kubernetes", "jobs/x", "--jwks-file", str(tmp_path / "keys-1")))
    assert [send(server, client_id, each.sign(claims)).status_code for each in (one, other)] == [401, 200]


def test_a_platforms_token_works_at_every_endpoint(server: RunningServer, platform: Platform, pod: str) -> None:
    token = platform.sign(platform.kubernetes())
    access_token = send(server, pod, token).json()["access_token"]
    body = {"token": access_token, **form(token, client_id=pod)}
    answer = requests.post(f"{server.url}/oauth/revoke", data=body, timeout=10)
    assert answer.status_code == 200


def test_people_are_told_what_comes_next(server: RunningServer) -> None:
    done = server.flask("clients", "create", "Next", "--client-id", "comes-next", *METHOD)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        0,
        "Next, name its platform: `flask clients trust comes-next`. See docs/platforms.md.",
    )


def test_what_the_command_refuses(server: RunningServer, platform: Platform) -> None:
    client_id = make(server)
    issuer = ("--issuer", platform.issuer)
    for words, cause in (
        ((), "give one of --subject, --kubernetes, --github, --gitlab, --spiffe"),
        ((*issuer, "--subject", "a", "--github", "octo/app"), "give one of --subject"),
        (("--subject", "a"), "--issuer is missing"),
        (("--kubernetes", "billing/worker"), "--issuer is missing"),
        ((*issuer, "--subject", "*"), "--subject matches every token: a bare * is not allowed"),
        ((*issuer, "--subject", "a", "--claim", "x"), "--claim must be K=V"),
        ((*issuer, "--subject", "a", "--claim", "x=1", "--claim", "x=2"), "--claim x is given twice"),
        ((*issuer, "--subject", "a", "--jwks-file", "-", "--jwks-uri", "https://a.example"), "are two places for keys"),
        (("--issuer", f"{platform.issuer}/other", "--subject", "a"), "the discovery document is of another issuer"),
        (
            ("--issuer", "http://127.0.0.1:1", "--subject", "a"),
            "the connection failed: Connection refused; --jwks-file takes keys that cannot be fetched from here",
        ),
    ):
        done = server.flask("clients", "trust", client_id, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert cause in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert server.flask_json("clients", "trusts", client_id) == []
    plain = server.create_client().client_id
    done = server.flask("clients", "trust", plain, *issuer, "--subject", "a")
    assert done.stderr.startswith(f"Error: {plain} authenticates with client_secret: ")
    made = server.flask("clients", "trust", client_id, *issuer, "--subject", "a")
    again = server.flask("clients", "trust", client_id, *issuer, "--subject", "a")
    assert (made.returncode, again.returncode) == (0, 1)
    assert again.stderr.startswith(f"Error: {client_id} has this trust already: t-")
    assert server.flask("clients", "untrust", client_id, "t-x").returncode == 1


def test_trust_test_says_which_claim_fits_and_which_does_not(
    server: RunningServer, platform: Platform, workflow: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"

    def tested(token: str) -> tuple[int, list[dict[str, Any]]]:
        file.write_text(token + "\n")
        done = server.flask("clients", "trust-test", workflow, str(file), "--json")
        return done.returncode, json.loads(done.stdout)

    status, (result,) = tested(platform.sign(platform.github()))
    assert (status, result["fits"]) == (0, True)
    assert [check["claim"] for check in result["checks"]] == [
        "iss",
        "aud",
        "sub",
        "repository_owner_id",
        "event_name",
        "signature",
    ]
    status, (result,) = tested(platform.sign(platform.github(event_name="\x1b[31mpush", exp=1), by=STRANGER))
    wrong = [check["claim"] for check in result["checks"] if not check["fits"]]
    assert (status, wrong) == (1, ["event_name", "exp has passed", "signature"])
    human = server.flask("clients", "trust-test", workflow, str(file))
    assert human.returncode == 1
    assert human.stderr.splitlines()[-1] == "It fits no trust."
    assert "\x1b" not in human.stdout + human.stderr
    file.write_text("no token")
    refused = server.flask("clients", "trust-test", workflow, str(file))
    assert refused.stderr == f"Error: {file} holds no JWT of at most 8192 characters\n"
