"""What a trust in a platform's tokens says, whether it is safe, and whether a token fits. Pure.

A client of ``federated_jwt`` authenticates with the token that its platform gave it (RFC 7521, RFC 7523). A trust
names the platform (``iss``) and the workload (``sub`` and further claims). Anybody for whom the platform issues a token
with these claims can act as the client, so a trust that could match other people's workloads is refused. Signatures
and times are left to ``oauth.client_auth.federated_jwt``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.audiences import is_absolute_uri
from app.database.models import ISSUER_MAX_CHARACTERS
from app.errors import ManagementError
from app.http.safe_fetch import check_url

MOST_TRUSTS = 16
"""Of one client."""
MOST_CLAIMS = 10
VALUE_MAX_CHARACTERS = 500
WILDCARD = "*"
SEPARATORS = ":/"
"""What may stand before a wildcard. After a part of a name it would fit names that others can register."""

GITHUB = "https://token.actions.githubusercontent.com"
GITLAB = "https://gitlab.com"
SPIFFE = "spiffe://"

_CHECKED_ELSEWHERE = {
    "iss": "--issuer",
    "sub": "--subject",
    "aud": "--audience",
    "exp": "every trust",
    "iat": "every trust",
    "nbf": "every trust",
    "jti": "--once",
}


@dataclass(frozen=True, slots=True)
class Trust:
    """A trust of a client.

    :param issuer: ``iss``, to the letter.
    :param subject: ``sub``, or its beginning up to a separator with :data:`WILDCARD` after it.
    :param claims: further claims, in the same form. A name with slashes is a path into objects, unless the token has
        a claim of that very name.
    :param audience: the only ``aud`` of its tokens.
    :param once: whether a token may be used once only.
    """

    issuer: str
    subject: str
    claims: Mapping[str, str]
    audience: str
    once: bool = False


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """Whether one claim of a token fits a trust.

    :param expected: what the trust says.
    :param found: what the token says; ``None`` if it lacks the claim.
    """

    name: str
    expected: str
    found: object
    fits: bool

    @property
    def fault(self) -> str:
        """What is wrong, without the token's value."""
        return f"{self.name} {'is missing' if self.found is None else 'does not match'}"


def check_claims(trust: Trust, claims: Mapping[str, Any]) -> Iterator[ClaimCheck]:
    """Compare what a trust says of a token's claims: issuer, audience, subject, and the others."""
    # A SPIFFE token may lack iss: its sub names the trust domain.
    issuer = claims.get("iss", trust.issuer if trust.subject.startswith(SPIFFE) else None)
    yield ClaimCheck("iss", trust.issuer, issuer, issuer == trust.issuer)
    audience = claims.get("aud")
    is_ours = audience in (trust.audience, [trust.audience])
    yield ClaimCheck("aud", trust.audience, audience, is_ours)
    for name, expected in {"sub": trust.subject, **trust.claims}.items():
        found = _find(claims, name)
        yield ClaimCheck(name, expected, found, _fits(expected, found))


def check_trust(trust: Trust, own_issuer: str) -> list[str]:
    """Check a trust before it is stored.

    :param own_issuer: the issuer of this server.
    :returns: warnings, for the operator.
    :raises ManagementError: it could fit strangers, or no token at all; what is allowed.
    """
    _check_issuer(trust.issuer, own_issuer)
    _check_audience(trust)
    if len(trust.claims) > MOST_CLAIMS:
        raise ManagementError(f"a trust has at most {MOST_CLAIMS} claims")
    for name in trust.claims:
        if name in _CHECKED_ELSEWHERE:
            raise ManagementError(f"--claim {name}: {_CHECKED_ELSEWHERE[name]} checks it")
        if not 1 <= len(name) <= VALUE_MAX_CHARACTERS or not name.isprintable():
            raise ManagementError("--claim needs the name of a claim before the =")
    for name, pattern in {"--subject": trust.subject, **trust.claims}.items():
        _check_pattern(name, pattern)
    platform = _PLATFORMS.get(trust.issuer)
    if platform:
        return platform.check(trust)
    if trust.subject.startswith(SPIFFE):
        _check_spiffe(trust.subject)
    if trust.subject.startswith(_SERVICE_ACCOUNT):
        return _check_service_account(trust.subject)
    return []


def kubernetes(given: str, issuer: str) -> tuple[str, str]:
    """Return issuer and subject of ``--kubernetes NAMESPACE/SERVICEACCOUNT``."""
    namespace, slash, account = given.partition("/")
    if not slash or not _DNS_LABEL.fullmatch(namespace) or not _DNS_NAME.fullmatch(account):
        raise ManagementError("--kubernetes must be NAMESPACE/SERVICEACCOUNT, such as billing/worker")
    return issuer, f"{_SERVICE_ACCOUNT}{namespace}:{account}"


def github(given: str, issuer: str) -> tuple[str, str]:
    """Return issuer and subject of ``--github OWNER/REPO[@REF|:environment:NAME]``."""
    found = _GITHUB_REPOSITORY.fullmatch(given)
    if not found:
        raise ManagementError(
            "--github must be OWNER/REPO, OWNER/REPO@REF or OWNER/REPO:environment:NAME, such as octo/app@main, or "
            "octo@12/app@34@main with ids"
        )
    repository, ref, environment = found.groups()
    if environment:
        return issuer or GITHUB, f"repo:{repository}:environment:{environment}"
    if ref:
        return issuer or GITHUB, f"repo:{repository}:ref:{ref if ref.startswith('refs/') else f'refs/heads/{ref}'}"
    return issuer or GITHUB, f"repo:{repository}:*"


def gitlab(given: str, issuer: str) -> tuple[str, str]:
    """Return issuer and subject of ``--gitlab GROUP/PROJECT[@BRANCH]``."""
    found = _GITLAB_PROJECT.fullmatch(given)
    if not found:
        raise ManagementError("--gitlab must be GROUP/PROJECT or GROUP/PROJECT@BRANCH, such as octo/app@main")
    project, branch = found.groups()
    ref = f"ref_type:branch:ref:{branch}" if branch else WILDCARD
    return issuer or GITLAB, f"project_path:{project}:{ref}"


def spiffe(given: str, issuer: str) -> tuple[str, str]:
    """Return issuer and subject of ``--spiffe ID``."""
    _check_spiffe(given)
    return issuer, given


def _fits(pattern: str, value: object) -> bool:
    if isinstance(value, bool):
        value = str(value).lower()
    text = str(value) if isinstance(value, int) else value
    if not isinstance(text, str):
        return False
    if pattern.endswith(WILDCARD):
        return text.startswith(pattern[:-1]) and len(text) >= len(pattern)
    return text == pattern


def _find(claims: Mapping[str, Any], name: str) -> object:
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _check_issuer(issuer: str, own_issuer: str) -> None:
    if issuer == own_issuer:
        raise ManagementError("--issuer must be a platform, not this server")
    try:
        check_url(issuer)
    except ValueError as error:
        raise ManagementError(f"--issuer, exactly as the tokens have it in iss, {error}") from None
    if "?" in issuer or len(issuer) > ISSUER_MAX_CHARACTERS:
        raise ManagementError(f"--issuer must have no query, and at most {ISSUER_MAX_CHARACTERS} characters")
    for beginning, advice in _NEVER_ONE_TENANT.items():
        if issuer.startswith(beginning):
            raise ManagementError(f"--issuer {issuer} {advice}")


def _check_audience(trust: Trust) -> None:
    if not is_absolute_uri(trust.audience):
        raise ManagementError("--audience must be an absolute URI")
    if trust.audience.rstrip("/") in _AUDIENCES_OF_OTHERS or trust.audience == trust.issuer:
        raise ManagementError(
            f"--audience {trust.audience} is the audience of another service: request tokens for this server"
        )


def _check_pattern(name: str, pattern: str) -> None:
    what = name if name.startswith("--") else f"--claim {name}"
    if not 1 <= len(pattern) <= VALUE_MAX_CHARACTERS or not pattern.isprintable() or pattern != pattern.strip():
        raise ManagementError(f"{what} must have 1 to {VALUE_MAX_CHARACTERS} printable characters")
    if pattern == WILDCARD:
        raise ManagementError(f"{what} matches every token: a bare {WILDCARD} is not allowed")
    if WILDCARD in pattern[:-1]:
        raise ManagementError(f"{what} may have {WILDCARD} at its end only")
    if pattern.endswith(WILDCARD) and (pattern[-2] not in SEPARATORS or not pattern[:-2].strip(SEPARATORS)):
        raise ManagementError(
            f"{what} {pattern} would match longer names too: {WILDCARD} must follow one of {' '.join(SEPARATORS)}"
        )


_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_OWNER, _REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9-]{0,38}", r"[A-Za-z0-9._-]{1,100}"
_GITHUB_REPOSITORY = re.compile(
    rf"({_OWNER}@\d+/{_REPOSITORY}@\d+|{_OWNER}/{_REPOSITORY})(?:@([^\s:*@]+)|:environment:([^\s*]+))?"
)
"""With ids: the default of repositories that were made or renamed since July 2026."""
_GITLAB_PROJECT = re.compile(r"([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)+)(?:@([^\s:*@]+))?")
_SPIFFE_ID = re.compile(r"spiffe://([a-z0-9._-]+)((?:/[A-Za-z0-9._-]+)*)(/\*)?")
_SERVICE_ACCOUNT = "system:serviceaccount:"

_AUDIENCES_OF_OTHERS = {
    "https://sts.amazonaws.com",
    "api://AzureADTokenExchange",
    "https://kubernetes.default.svc",
    "https://kubernetes.default.svc.cluster.local",
    "https://gitlab.com",
    "https://github.com",
    "https://iam.googleapis.com",
}

_NEVER_ONE_TENANT = {
    f"https://login.microsoftonline.com/{name}": "is shared by all tenants: name the one with your tenant's id"
    for name in ("common", "organizations", "consumers")
}


def _check_spiffe(subject: str) -> None:
    found = _SPIFFE_ID.fullmatch(subject)
    if not found:
        raise ManagementError("a SPIFFE ID must be spiffe://TRUST-DOMAIN/PATH, such as spiffe://example.org/billing")
    if not found[2]:
        raise ManagementError(f"{subject} matches every workload of the trust domain: name a path")


def _check_service_account(subject: str) -> list[str]:
    namespace, _, account = subject.removeprefix(_SERVICE_ACCOUNT).partition(":")
    if not _DNS_LABEL.fullmatch(namespace) or not account:
        raise ManagementError(
            f"--subject {subject} matches every service account of the cluster: name a namespace and an account"
        )
    if account == WILDCARD:
        return [f"anybody who may create a service account in the namespace {namespace} can act as this client"]
    if account == "default":
        return [f"every pod of the namespace {namespace} without a service account can act as this client"]
    return []


@dataclass(frozen=True, slots=True)
class _Platform:
    """A platform with one issuer for all its customers.

    :param owned: matches subjects that name a customer.
    :param owner: the beginning of such a subject, for messages.
    :param ids: claims with the permanent id of the customer; a deleted name can be registered again.
    :param hint: another way to state the id, for messages.
    """

    owned: re.Pattern[str]
    owner: str
    ids: Sequence[str] = ()
    hint: str = ""

    def check(self, trust: Trust) -> list[str]:
        """Require a subject that names a customer; return warnings."""
        if not self.owned.match(trust.subject):
            raise ManagementError(
                f"{trust.issuer} issues tokens for all its customers, and --subject {trust.subject} names none: "
                f"it must begin with {self.owner}"
            )
        warnings = []
        if self.ids and not trust.claims.keys() & set(self.ids) and not _HAS_ID.search(trust.subject):
            warnings.append(
                "if the owner's name is deleted, anybody can register it and act as this client: add "
                f"--claim {self.ids[0]}=ID{self.hint}"
            )
        if trust.subject.endswith(f":{WILDCARD}"):
            warnings.append("it matches every branch, tag and pull request: name a branch, a tag or an environment")
        return warnings


_HAS_ID = re.compile(r"repo:[^:/]+@\d+/")
_PLATFORMS = {
    GITHUB: _Platform(
        re.compile(r"repo:[A-Za-z0-9][A-Za-z0-9@-]*/[A-Za-z0-9._@-]+:.|repository_owner_id:\d+|repository_id:\d+"),
        "repo:OWNER/REPO: (--github)",
        ("repository_owner_id", "repository_id"),
        ", or give the ids that newer repositories have in their sub: OWNER@ID/REPO@ID",
    ),
    GITLAB: _Platform(
        re.compile(r"project_path:[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+:."),
        "project_path:GROUP/PROJECT: (--gitlab)",
        ("project_id", "namespace_id"),
    ),
    "https://agent.buildkite.com": _Platform(
        re.compile(r"organization:[a-z0-9-]+:pipeline:[a-z0-9-]+:."),
        "organization:NAME:pipeline:NAME:",
        ("organization_id",),
    ),
    "https://app.terraform.io": _Platform(
        re.compile(r"organization:[A-Za-z0-9_-]+:project:[^:*]+:."), "organization:NAME:project:NAME:"
    ),
    "https://oidc.vercel.com": _Platform(
        re.compile(r"owner:[A-Za-z0-9_.-]+:project:[A-Za-z0-9_.-]+:."), "owner:TEAM:project:NAME:", ("owner_id",)
    ),
    "https://accounts.google.com": _Platform(re.compile(r"\d+$"), "the number of a service account"),
}
"""Issuers that many customers share, and how to tell their workloads apart."""
