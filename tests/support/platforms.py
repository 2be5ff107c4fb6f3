"""Platforms that sign for their workloads, as each does it: issuer, discovery, keys, and the claims of its tokens."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.assertions import ISSUER, Signer, signer
from support.publisher import Publisher, publishing, send

Claims = dict[str, Any]


class Platform:
    """An issuer with a discovery document and keys."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.issuer = publisher.url.removesuffix("/jwks.json")
        self.signer = signer("RS256")
        self.keys = [self.signer]
        self.discovery: dict[str, Any] = {"issuer": self.issuer, "jwks_uri": publisher.url}
        publisher.answer = self._answer

    @property
    def fetches(self) -> list[str]:
        """The paths that were fetched."""
        return [path for path, _ in self._publisher.asked]

    def rotate(self) -> None:
        """Sign with a new key; the old one stays published."""
        self.signer = signer("RS256")
        self.keys.append(self.signer)

    def sign(self, claims: Claims, by: Signer | None = None, **header: Any) -> str:
        """A token of these claims; what is ``None`` is left out."""
        return (by or self.signer).sign({name: value for name, value in claims.items() if value is not None}, **header)

    def common(self, subject: str, lifetime: int = 3600, **more: Any) -> Claims:
        """The claims that every platform's tokens have."""
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": subject, "aud": ISSUER, "iat": now, "nbf": now, "exp": now + lifetime}
        return {**claims, **more}

    def kubernetes(self, namespace: str = "billing", account: str = "worker", **more: Any) -> Claims:
        """A projected token of a service account."""
        pod = {
            "namespace": namespace,
            "node": {"name": "node-1", "uid": "6d2b"},
            "pod": {"name": "worker-0", "uid": "1f9c"},
            "serviceaccount": {"name": account, "uid": "7a51"},
        }
        subject = f"system:serviceaccount:{namespace}:{account}"
        return self.common(subject, **{"aud": [ISSUER], "kubernetes.io": pod, "jti": "9c11", **more})

    def github(self, subject: str = "repo:octo/app:ref:refs/heads/main", **more: Any) -> Claims:
        """A token of a workflow of GitHub Actions."""
        claims = {
            "repository": "octo/app",
            "repository_owner": "octo",
            "repository_id": "7400",
            "repository_owner_id": "6500",
            "ref": "refs/heads/main",
            "event_name": "push",
            "workflow_ref": "octo/app/.github/workflows/deploy.yml@refs/heads/main",
            "jti": "b1c2",
        }
        return self.common(subject, lifetime=300, **{**claims, **more})

    def gitlab(self, subject: str = "project_path:octo/app:ref_type:branch:ref:main", **more: Any) -> Claims:
        """An ID token of a job of GitLab."""
        claims = {
            "project_id": "22",
            "project_path": "octo/app",
            "namespace_id": "72",
            "ref": "main",
            "ref_type": "branch",
            "ref_protected": "true",
            "jti": "c2d3",
        }
        return self.common(subject, **{**claims, **more})

    def spiffe(self, subject: str = "spiffe://example.org/billing", **more: Any) -> Claims:
        """A JWT-SVID: short-lived, and without iss unless SPIRE is told one."""
        return self.common(subject, lifetime=300, **{"iss": None, "nbf": None, "aud": [ISSUER], **more})

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("/.well-known/openid-configuration"):
            send(handler, json.dumps(self.discovery).encode())
        else:
            send(handler, json.dumps({"keys": [one.jwk | {"kid": one.kid} for one in self.keys]}).encode())


@contextmanager
def open_platform() -> Iterator[Platform]:
    """A platform on loopback."""
    with publishing() as publisher:
        yield Platform(publisher)
