"""The examples for platforms run: each platform's own way to its token stands in front of a real server."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.platforms import Platform, open_platform
from support.publisher import publishing, send
from support.server import RunningServer

from app.config.values import PROJECT_FOLDER

FOLDER = PROJECT_FOLDER / "examples" / "platforms"
pytestmark = pytest.mark.skipif(not (shutil.which("jq") and shutil.which("curl")), reason="curl or jq is not installed")


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with open_platform() as opened:
        yield opened


class Api:
    """An API that writes down the tokens that it gets."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.tokens: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.tokens.append(handler.headers["Authorization"].removeprefix("Bearer "))
        send(handler, b"{}")


@pytest.fixture
def api() -> Iterator[Api]:
    with publishing() as publisher:
        made = Api(publisher.url)
        publisher.answer = made.answer
        yield made


def make(server: RunningServer, *trust: str) -> str:
    client_id: str = server.flask_json("clients", "create", "P", "--auth-method", "federated_jwt")["client_id"]
    assert server.flask("clients", "trust", client_id, *trust).returncode == 0
    return client_id


def run(script: str, server: RunningServer, api: Api, client_id: str, **environment: str) -> None:
    settings = {"TOKEN_URL": server.token_url, "API_URL": api.url, "CLIENT_ID": client_id, **environment}
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=PROJECT_FOLDER,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (token,) = api.tokens
    assert server.verify(token)["sub"] == client_id


def test_a_pod_calls_the_api(server: RunningServer, platform: Platform, api: Api, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all((FOLDER / "pod.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    spec = documents[1]["spec"]
    (source,) = spec["volumes"][0]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == server.settings.issuer
    (container,) = spec["containers"]
    (tmp_path / "tokenhouse").write_text(platform.sign(platform.kubernetes()))
    client_id = make(server, "--issuer", platform.issuer, "--kubernetes", "billing/worker")
    script = container["command"][2].replace("./token.sh", "examples/platforms/token.sh")
    run(script, server, api, client_id, PLATFORM_TOKEN_FILE=str(tmp_path / "tokenhouse"))


def test_a_workflow_calls_the_api(server: RunningServer, platform: Platform, api: Api, tmp_path: Path) -> None:
    workflow = yaml.safe_load((FOLDER / "github.yml").read_text())
    assert workflow["permissions"]["id-token"] == "write"
    job = workflow["jobs"]["deploy"]
    asked: list[tuple[str, str]] = []

    def give(handler: BaseHTTPRequestHandler) -> None:
        asked.append((handler.path, handler.headers["Authorization"]))
        send(handler, json.dumps({"value": platform.sign(platform.github())}).encode())

    with publishing() as github:
        github.answer = give
        claim = ("--claim", "repository_owner_id=6500")
        client_id = make(server, "--issuer", platform.issuer, "--github", "octo/app@main", *claim)
        run(
            job["steps"][1]["run"],
            server,
            api,
            client_id,
            RUNNER_TEMP=str(tmp_path),
            ISSUER=job["env"]["ISSUER"],
            ACTIONS_ID_TOKEN_REQUEST_URL=f"{github.url}?api-version=2.0",
            ACTIONS_ID_TOKEN_REQUEST_TOKEN="of-the-job",
        )
    assert asked == [("/jwks.json?api-version=2.0&audience=https://tokens.example.com", "bearer of-the-job")]


def test_a_job_of_gitlab_calls_the_api(server: RunningServer, platform: Platform, api: Api) -> None:
    job = yaml.safe_load((FOLDER / "gitlab.yml").read_text())["deploy"]
    assert job["id_tokens"]["PLATFORM_TOKEN"]["aud"] == server.settings.issuer
    client_id = make(server, "--issuer", platform.issuer, "--gitlab", "octo/app@main", "--claim", "project_id=22")
    run(job["script"][0], server, api, client_id, PLATFORM_TOKEN=platform.sign(platform.gitlab()))


def test_a_spire_workload_calls_the_api(server: RunningServer, platform: Platform, api: Api, tmp_path: Path) -> None:
    """SPIRE's agent is not here: a stand-in gives what it gives."""
    answer: Any = [{"svids": [{"spiffe_id": "x", "svid": platform.sign(platform.spiffe())}]}, {"bundles": {}}]
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    agent = tmp_path / "spire-agent"
    agent.write_text(f'#!/bin/sh\n[ "$5" = {server.settings.issuer} ] && cat {tmp_path}/answer.json\n')
    agent.chmod(0o755)
    client_id = make(server, "--issuer", platform.issuer, "--spiffe", "spiffe://example.org/billing")
    run("examples/platforms/spire.sh", server, api, client_id, PATH=f"{tmp_path}:{os.environ['PATH']}")


def test_no_secret_is_an_argument() -> None:
    for file in FOLDER.iterdir():
        assert not re.search(r"(-H|--header) [\"'](Authorization|bearer)", file.read_text(), re.IGNORECASE), file.name
