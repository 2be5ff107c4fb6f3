"""Trusts in platforms' tokens: what fits, what is refused because it could fit strangers, and what people type."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clients import trust_rules
from app.clients.trust_rules import GITHUB, GITLAB, MOST_CLAIMS, Trust, check_claims, check_trust
from app.errors import ManagementError

OURS = "https://tokens.example.com"
CLUSTER = "https://oidc.example.com/cluster-1"
WORKER = "system:serviceaccount:billing:worker"
OWNER_ID = {"repository_owner_id": "1234"}


def trust(subject: str = WORKER, issuer: str = CLUSTER, audience: str = OURS, **claims: str) -> Trust:
    return Trust(issuer, subject, claims, audience)


def refusal(made: Trust) -> str:
    with pytest.raises(ManagementError) as caught:
        check_trust(made, OURS)
    return str(caught.value)


def faults(made: Trust, **claims: Any) -> list[str]:
    token = {"iss": made.issuer, "sub": WORKER, "aud": OURS, **claims}
    found = check_claims(made, {name: value for name, value in token.items() if value is not None})
    return [check.fault for check in found if not check.fits]


FIT = [
    (trust(), {}),
    (trust(), {"aud": [OURS]}),
    (trust("system:serviceaccount:billing:*"), {}),
    (trust("spiffe://example.org/billing/*"), {"sub": "spiffe://example.org/billing/worker"}),
    (trust("spiffe://example.org/billing"), {"sub": "spiffe://example.org/billing", "iss": None}),
    (trust(tier="gold"), {"tier": "gold"}),
    (trust(number="12"), {"number": 12}),
    (trust(protected="true"), {"protected": True}),
    (trust(**{"kubernetes.io/namespace": "billing"}), {"kubernetes.io": {"namespace": "billing"}}),
    (trust(**{"https://example.com/team": "red"}), {"https://example.com/team": "red"}),
    (trust(ref="refs/heads/*"), {"ref": "refs/heads/main"}),
]


@pytest.mark.parametrize(("made", "claims"), FIT, ids=map(str, range(len(FIT))))
def test_a_token_that_fits(made: Trust, claims: dict[str, Any]) -> None:
    assert faults(made, **claims) == []


DO_NOT_FIT = [
    (trust(), {"iss": f"{CLUSTER}/"}, ["iss does not match"]),
    (trust(), {"iss": None}, ["iss is missing"]),
    (trust(), {"aud": None}, ["aud is missing"]),
    (trust(), {"aud": [OURS, "https://other.example"]}, ["aud does not match"]),
    (trust(), {"aud": []}, ["aud does not match"]),
    (trust(), {"aud": f"{OURS}/"}, ["aud does not match"]),
    (trust(), {"aud": {"a": OURS}}, ["aud does not match"]),
    (trust(), {"sub": None}, ["sub is missing"]),
    (trust(), {"sub": f"{WORKER}2"}, ["sub does not match"]),
    (trust(), {"sub": WORKER.upper()}, ["sub does not match"]),
    (trust(), {"sub": [WORKER]}, ["sub does not match"]),
    (trust("system:serviceaccount:billing:*"), {"sub": "system:serviceaccount:billing2:a"}, ["sub does not match"]),
    (trust("system:serviceaccount:billing:*"), {"sub": "system:serviceaccount:billing:"}, ["sub does not match"]),
    (trust("spiffe://example.org/a/*"), {"sub": "spiffe://example.org/a"}, ["sub does not match"]),
    (trust(tier="gold"), {}, ["tier is missing"]),
    (trust(tier="gold"), {"tier": "golden"}, ["tier does not match"]),
    (trust(tier="gold"), {"tier": ["gold"]}, ["tier does not match"]),
    (trust(tier="gold"), {"tier": None}, ["tier is missing"]),
    (trust(number="1"), {"number": True}, ["number does not match"]),
    (trust(number="1"), {"number": 1.0}, ["number does not match"]),
    (trust(**{"a/b": "c"}), {"a": "b"}, ["a/b is missing"]),
    (trust(ref="refs/heads/*"), {"ref": "refs/tags/v1"}, ["ref does not match"]),
    (trust(a="b", c="d"), {"sub": "x", "a": "x"}, ["sub does not match", "a does not match", "c is missing"]),
]


@pytest.mark.parametrize(("made", "claims", "said"), DO_NOT_FIT, ids=map(str, range(len(DO_NOT_FIT))))
def test_a_token_that_does_not_fit_and_the_claims_that_say_so(
    made: Trust, claims: dict[str, Any], said: list[str]
) -> None:
    assert faults(made, **claims) == said


STRANGERS = "issues tokens for all its customers"
BAD = [
    (trust("*"), "--subject matches every token: a bare * is not allowed"),
    (trust(""), "--subject must have 1 to 500 printable characters"),
    (trust(" x"), "--subject must have 1 to 500 printable characters"),
    (trust("a\nb"), "--subject must have 1 to 500 printable characters"),
    (trust("x" * 501), "--subject must have 1 to 500 printable characters"),
    (trust("system:*:billing:worker"), "--subject may have * at its end only"),
    (trust("**"), "--subject may have * at its end only"),
    (trust("job-*"), "--subject job-* would match longer names too: * must follow one of : /"),
    (trust("job.*"), "--subject job.* would match longer names too"),
    (trust("job@*"), "--subject job@* would match longer names too"),
    (trust(":*"), "--subject :* would match longer names too"),
    (trust("/*"), "--subject /* would match longer names too"),
    (trust("spiffe://*"), "a SPIFFE ID must be spiffe://TRUST-DOMAIN/PATH"),
    (trust("spiffe://example.org/*"), "spiffe://example.org/* matches every workload of the trust domain: name a path"),
    (trust("spiffe://example.org"), "spiffe://example.org matches every workload of the trust domain: name a path"),
    (trust("spiffe://Example.org/a"), "a SPIFFE ID must be spiffe://TRUST-DOMAIN/PATH"),
    (trust("system:serviceaccount:*"), "matches every service account of the cluster: name a namespace and an account"),
    (trust("system:serviceaccount:billing"), "matches every service account of the cluster"),
    (trust("system:serviceaccount::worker"), "matches every service account of the cluster"),
    (trust(tier="*"), "--claim tier matches every token: a bare * is not allowed"),
    (trust(tier=""), "--claim tier must have 1 to 500 printable characters"),
    (trust(ref="refs/heads/release-*"), "--claim ref refs/heads/release-* would match longer names too"),
    (trust(**{"": "x"}), "--claim needs the name of a claim before the ="),
    (trust(iss="x"), "--claim iss: --issuer checks it"),
    (trust(sub="x"), "--claim sub: --subject checks it"),
    (trust(aud="x"), "--claim aud: --audience checks it"),
    (trust(exp="1"), "--claim exp: every trust checks it"),
    (trust(jti="1"), "--claim jti: --once checks it"),
    (trust(**{f"c{number}": "x" for number in range(MOST_CLAIMS + 1)}), "a trust has at most 10 claims"),
    (trust(issuer=OURS), "--issuer must be a platform, not this server"),
    (trust(issuer="http://oidc.example.com"), "--issuer, exactly as the tokens have it in iss, must be an https URL"),
    (trust(issuer="oidc.example.com"), "must be an https URL"),
    (trust(issuer="https://"), "must be an https URL"),
    (trust(issuer="https://a@oidc.example.com"), "must be an https URL"),
    (trust(issuer="https://oidc.example.com/ x"), "must be an https URL"),
    (trust(issuer="https://[::1"), "must be an https URL"),
    (trust(issuer=f"{CLUSTER}#1"), "must be an https URL"),
    (trust(issuer=f"{CLUSTER}?tenant=1"), "--issuer must have no query, and at most 500 characters"),
    (trust(issuer=f"{CLUSTER}{'x' * 500}"), "--issuer must have no query, and at most 500 characters"),
    (trust(issuer="https://login.microsoftonline.com/common/v2.0"), "is shared by all tenants: name the one with your"),
    (trust(issuer="https://login.microsoftonline.com/organizations/v2.0"), "is shared by all tenants"),
    (trust(audience="sts.amazonaws.com"), "--audience must be an absolute URI"),
    (trust(audience="https://sts.amazonaws.com"), "is the audience of another service"),
    (trust(audience="api://AzureADTokenExchange"), "is the audience of another service"),
    (trust(audience="https://kubernetes.default.svc"), "is the audience of another service"),
    (trust(audience=CLUSTER), "is the audience of another service"),
    (trust("repo:octo/*", GITHUB), f"{GITHUB} {STRANGERS}"),
    (trust("repo:*", GITHUB), f"{GITHUB} {STRANGERS}"),
    (trust("ref:refs/heads/main", GITHUB), f"{GITHUB} {STRANGERS}"),
    (trust("environment:production", GITHUB), f"{GITHUB} {STRANGERS}"),
    (trust("project_path:octo/*", GITLAB), f"{GITLAB} {STRANGERS}"),
    (trust("project_path:*", GITLAB), f"{GITLAB} {STRANGERS}"),
    (trust("organization:*", "https://agent.buildkite.com"), STRANGERS),
    (trust("organization:octo:project:*", "https://app.terraform.io"), STRANGERS),
    (trust("owner:octo:*", "https://oidc.vercel.com"), STRANGERS),
    (trust("someone@example.com", "https://accounts.google.com"), STRANGERS),
]


@pytest.mark.parametrize(("made", "cause"), BAD, ids=map(str, range(len(BAD))))
def test_a_trust_that_could_fit_strangers_or_nobody_is_refused(made: Trust, cause: str) -> None:
    assert cause in refusal(made)


@pytest.mark.parametrize(
    ("made", "warnings"),
    [
        (trust(), []),
        (trust("spiffe://example.org/billing/*"), []),
        (trust("anything", tier="gold"), []),
        (
            trust("system:serviceaccount:billing:*"),
            ["may create a service account in the namespace billing can act"],
        ),
        (
            trust("system:serviceaccount:billing:default"),
            ["every pod of the namespace billing without a service"],
        ),
        (trust("repo:octo/app:ref:refs/heads/main", GITHUB, **OWNER_ID), []),
        (trust("repo:octo@12/app@34:ref:refs/heads/main", GITHUB), []),
        (trust("repository_owner_id:12:repository_id:34", GITHUB, repository_id="34"), []),
        (trust("repo:octo/app:ref:refs/heads/main", GITHUB), ["add --claim repository_owner_id=ID"]),
        (trust("repo:octo/app:*", GITHUB, **OWNER_ID), ["it matches every branch, tag and pull request"]),
        (trust("project_path:octo/app:*", GITLAB), ["--claim project_id=ID", "it matches every branch"]),
        (trust("112233", "https://accounts.google.com"), []),
    ],
    ids=map(str, range(12)),
)
def test_a_trust_that_is_wide_is_warned_of(made: Trust, warnings: list[str]) -> None:
    found = check_trust(made, OURS)
    assert len(found) == len(warnings)
    assert all(said in warning for said, warning in zip(warnings, found, strict=True))


@pytest.mark.parametrize(
    ("preset", "given", "issuer", "subject"),
    [
        ("kubernetes", "billing/worker", CLUSTER, WORKER),
        ("github", "octo/app", GITHUB, "repo:octo/app:*"),
        ("github", "octo/app@main", GITHUB, "repo:octo/app:ref:refs/heads/main"),
        ("github", "octo/app@refs/tags/v1", GITHUB, "repo:octo/app:ref:refs/tags/v1"),
        ("github", "octo/app:environment:production", GITHUB, "repo:octo/app:environment:production"),
        ("github", "octo@1/app@2", GITHUB, "repo:octo@1/app@2:*"),
        ("github", "octo@1/app@2@main", GITHUB, "repo:octo@1/app@2:ref:refs/heads/main"),
        ("github", "octo@1/app@2:environment:eu", GITHUB, "repo:octo@1/app@2:environment:eu"),
        ("github", "octo/app@2026", GITHUB, "repo:octo/app:ref:refs/heads/2026"),
        ("github", "octo@1/app", GITHUB, None),
        ("github", "octo/app@2@main", GITHUB, None),
        ("gitlab", "octo/tools/app", GITLAB, "project_path:octo/tools/app:*"),
        ("gitlab", "octo/app@main", GITLAB, "project_path:octo/app:ref_type:branch:ref:main"),
        ("spiffe", "spiffe://example.org/billing", CLUSTER, "spiffe://example.org/billing"),
        ("kubernetes", "billing", CLUSTER, None),
        ("kubernetes", "billing/*", CLUSTER, None),
        ("kubernetes", "Billing/worker", CLUSTER, None),
        ("kubernetes", "billing/worker/x", CLUSTER, None),
        ("github", "octo", GITHUB, None),
        ("github", "octo/*", GITHUB, None),
        ("github", "octo/app@*", GITHUB, None),
        ("github", "octo/app:environment:", GITHUB, None),
        ("gitlab", "octo", GITLAB, None),
        ("gitlab", "octo/*", GITLAB, None),
        ("spiffe", "example.org/billing", CLUSTER, None),
        ("spiffe", "spiffe://example.org/*", CLUSTER, None),
    ],
)
def test_what_people_type(preset: str, given: str, issuer: str, subject: str | None) -> None:
    build = getattr(trust_rules, preset)
    given_issuer = CLUSTER if issuer == CLUSTER else ""
    if subject is None:
        with pytest.raises(ManagementError):
            build(given, given_issuer)
        return
    assert build(given, given_issuer) == (issuer, subject)
    assert build(given, "https://other.example")[0] == "https://other.example"
    check_trust(Trust(issuer, subject, {}, OURS), OURS)


@given(subject=st.text(max_size=30), other=st.text(max_size=30))
def test_what_is_stored_fits_nobody_but_what_it_names(subject: str, other: str) -> None:
    made = trust(subject)
    try:
        check_trust(made, OURS)
    except ManagementError:
        return
    beginning = subject.removesuffix("*")
    fits = not faults(made, sub=other)
    assert fits == (other == subject if beginning == subject else other.startswith(beginning) and other != beginning)
