"""What Prometheus is told: the sum of all workers, whatever becomes of them, and nothing of any client."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support.assertions import signer
from support.publisher import publishing
from support.server import NewClient, RunningServer, basic, free_port, running_server, wait_until

from app.config.values import PROJECT_FOLDER

DEPLOY = PROJECT_FOLDER / "deploy"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: Debian's prometheus has it"
)

Sample = tuple[str, frozenset[tuple[str, str]]]
ISSUED = "tokenhouse_tokens_issued_total"
BASIC = "client_secret_basic"
METHOD = {"auth_method": "client_secret_basic", "grant_type": "client_credentials"}


class Watched:
    """A server with its metrics."""

    def __init__(self, server: RunningServer, port: int) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{port}/metrics"

    def text(self) -> str:
        return requests.get(self.url, timeout=10).text

    def samples(self) -> dict[Sample, float]:
        families = text_string_to_metric_families(self.text())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples().get((name, frozenset(labels.items())), 0.0)

    def answers(self) -> bool:
        try:
            return requests.get(self.url, timeout=5).status_code == 200
        except requests.RequestException:
            return False


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with running_server(tmp_path, "--workers", "3", TOKENHOUSE_METRICS_ADDRESS=address) as server:
        found = Watched(server, port)
        wait_until(found.answers)
        yield found


@pytest.fixture
def client(watched: Watched) -> NewClient:
    return watched.server.create_client(scope=("read",))


def fetch(watched: Watched, client: NewClient, count: int) -> None:
    for _ in range(count):
        # A connection of its own each: another worker may take it.
        watched.server.get_token(client)


def test_all_workers_are_added_up(watched: Watched, client: NewClient) -> None:
    fetch(watched, client, 60)
    assert watched.value(ISSUED, **METHOD) == 60
    count = "tokenhouse_token_request_duration_seconds_count"
    assert watched.value(count, outcome="issued") == 60
    for part in ("authenticate", "sign"):
        assert watched.value("tokenhouse_token_request_part_duration_seconds_count", part=part) == 60
    total = watched.value("tokenhouse_token_request_duration_seconds_sum", outcome="issued")
    parts = sum(
        watched.value("tokenhouse_token_request_part_duration_seconds_sum", part=part)
        for part in ("authenticate", "sign")
    )
    assert 0 < parts < total < 60


def test_refusals_are_counted_by_what_was_wrong(watched: Watched, client: NewClient) -> None:
    server, grant = watched.server, "grant_type=client_credentials"
    cases = [
        (grant, basic("nobody", "x" * 40), f"{BASIC} client_credentials invalid_client unknown_client"),
        (grant, basic(client.client_id, "x" * 40), f"{BASIC} client_credentials invalid_client wrong_secret"),
        (grant, None, "none client_credentials invalid_client no_authentication"),
        ("grant_type=password", client.basic, "none none unsupported_grant_type unknown_grant_type"),
        (f"{grant}&scope=write", client.basic, f"{BASIC} client_credentials invalid_scope scope_not_granted"),
        ("x=1&x=2", None, "none none invalid_request repeated_parameter"),
    ]
    for body, authorization, _ in cases:
        server.post_token(body, headers={"Authorization": authorization} if authorization else None)
    samples = watched.samples()
    for *_, labels in cases:
        named = dict(zip(("auth_method", "grant_type", "error", "reason"), labels.split(), strict=True))
        assert samples["tokenhouse_token_requests_refused_total", frozenset(named.items())] == 1, labels
    assert watched.value("tokenhouse_token_request_duration_seconds_count", outcome="refused") == len(cases)


def test_other_endpoints_are_counted(watched: Watched, client: NewClient) -> None:
    server, authorized = watched.server, {"Authorization": client.basic}
    token = server.get_token(client)["access_token"]
    for path in ("introspect", "revoke", "introspect", "revoke"):
        requests.post(f"{server.url}/oauth/{path}", {"token": token}, headers=authorized, timeout=10)
    requests.post(f"{server.url}/oauth/introspect", {"token": token}, timeout=10)
    requests.get(f"{server.url}/oauth/revocations", headers=authorized, timeout=10)
    assert watched.value("tokenhouse_introspections_total", active="true") == 1
    assert watched.value("tokenhouse_introspections_total", active="false") == 1
    assert watched.value("tokenhouse_revocations_total", was_live="true") == 1
    assert watched.value("tokenhouse_revocations_total", was_live="false") == 1
    for endpoint, error, reason in (
        ("introspection", "invalid_client", "no_authentication"),
        ("revocation_feed", "unauthorized_client", "not_made_to_introspect"),
    ):
        labels = {"endpoint": endpoint, "error": error, "reason": reason}
        assert watched.value("tokenhouse_requests_refused_total", **labels) == 1, labels


def test_no_count_is_lost_when_workers_are_killed(watched: Watched, client: NewClient) -> None:
    fetch(watched, client, 30)
    before = watched.server.workers()
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(watched.server.workers() - before) == 3 and watched.answers())
    assert watched.value(ISSUED, **METHOD) == 30
    fetch(watched, client, 30)
    assert watched.value(ISSUED, **METHOD) == 60


def test_a_reload_goes_on_counting_and_no_file_is_left_over(watched: Watched, client: NewClient) -> None:
    folder = _folder_of(watched)
    fetch(watched, client, 10)
    for number in range(1, 4):
        before = watched.server.workers()
        watched.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda before=before: len(watched.server.workers() - before) == 3)
        wait_until(lambda before=before: not watched.server.workers() & before)
        wait_until(watched.answers)
        fetch(watched, client, 10)
        assert watched.value(ISSUED, **METHOD) == 10 * (number + 1)
    # Workers of before and after a reload run at once, so there are places for both, and no more.
    assert len(list(folder.glob("counter_*.db"))) <= 6


def test_counts_never_fall_while_workers_come_and_go(watched: Watched, client: NewClient) -> None:
    seen: list[float] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            try:
                told = watched.text()
            except requests.RequestException:
                told = ""
            if "tokenhouse_build_info" in told:
                found = re.search(rf"^{ISSUED}{{.*}} (\S+)$", told, re.MULTILINE)
                seen.append(float(found[1]) if found else 0.0)
            else:
                # The worker that listened was killed, perhaps over this answer; another does within a second or so.
                is_over.wait(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    issued = 0
    try:
        for _ in range(4):
            for _ in range(25):
                response = requests.post(
                    watched.server.token_url,
                    {"grant_type": "client_credentials"},
                    headers={"Authorization": client.basic},
                    timeout=30,
                )
                issued += response.status_code == 200
            os.kill(min(watched.server.workers()), signal.SIGKILL)
            wait_until(lambda: len(watched.server.workers()) == 3)
    finally:
        is_over.set()
        watcher.join()
    wait_until(watched.answers)
    assert seen == sorted(seen)
    assert watched.value(ISSUED, **METHOD) == issued == 100


def test_another_worker_listens_when_the_one_that_did_is_gone(watched: Watched) -> None:
    for _ in range(3):
        os.kill(_who_listens(watched), signal.SIGKILL)
        wait_until(watched.answers)


def test_it_is_not_on_the_public_port_and_tells_of_no_client(watched: Watched, client: NewClient) -> None:
    fetch(watched, client, 3)
    watched.server.post_token("grant_type=evil&scope=evil", headers={"X-Request-ID": "evil-request-id"})
    watched.server.post_token(
        headers={"Authorization": basic("evil-client-id", "evil-secret-of-40-characters-in-all-000")}
    )
    assert requests.get(f"{watched.server.url}/metrics", timeout=10).status_code == 404
    told = watched.text()
    for word in (client.client_id, client.secret, "evil", "127.0.0.1"):
        assert word not in told


def test_the_ring_the_checks_and_the_build_are_measured(watched: Watched) -> None:
    watched.server.create_client(secret_expires_after=timedelta(days=3))
    name = "tokenhouse_client_secrets_expiring"
    wait_until(lambda: watched.value(name) == 1)
    assert watched.value("tokenhouse_signing_keys", state="signing") == 1
    # The only key signs for good.
    assert "tokenhouse_signing_keys_next_change_seconds" not in watched.text()
    assert watched.server.flask("keys", "rotate", "--at", "2100-01-01T00:00:00Z").returncode == 0
    wait_until(lambda: watched.value("tokenhouse_signing_keys_next_change_seconds") > 365 * 24 * 3600)
    for check in ("database", "keyring", "settings", "audit_log"):
        assert watched.value("tokenhouse_check_healthy", check=check) == 1
    assert re.search(
        r'^tokenhouse_build_info\{python="3\.\d+\.\d+",version="\d+\.\d+\.\d+"\} 1\.0$', watched.text(), re.MULTILINE
    )
    (watched.server.folder / "tokenhouse.db").rename(watched.server.folder / "moved")
    wait_until(lambda: watched.value("tokenhouse_check_healthy", check="database") == 0)
    (watched.server.folder / "moved").rename(watched.server.folder / "tokenhouse.db")
    wait_until(lambda: watched.value("tokenhouse_check_healthy", check="database") == 1)


def test_a_port_that_is_taken_is_a_warning_and_costs_no_token(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with running_server(tmp_path, "--workers", "2", TOKENHOUSE_METRICS_ADDRESS=address) as server:
            told = (
                f"the metrics listener cannot listen at {address}: Address already in use (TOKENHOUSE_METRICS_ADDRESS)"
            )
            wait_until(lambda: told in server.stderr_path.read_text())
            server.get_token(server.create_client())
            other.close()
            wait_until(lambda: requests.get(f"http://{address}/metrics", timeout=5).ok if _listens(address) else False)
            assert server.stderr_path.read_text().count(told) == 1


def test_where_it_is_off_nobody_listens_and_nothing_is_counted(tmp_path: Path) -> None:
    with running_server(tmp_path, TOKENHOUSE_METRICS_ADDRESS="") as server:
        server.get_token(server.create_client())
        with pytest.raises(AssertionError, match="no worker counts"):
            _folder_of(Watched(server, 0))


def test_the_folder_goes_with_the_server_and_one_that_was_killed_leaves_it_to_the_next(tmp_path: Path) -> None:
    port = free_port()
    server = RunningServer(tmp_path, TOKENHOUSE_METRICS_ADDRESS=f"127.0.0.1:{port}")
    server.prepare()
    server.start()
    watched = Watched(server, port)
    wait_until(watched.answers)
    folder = _folder_of(watched)
    assert folder.stat().st_mode & 0o777 == 0o700
    server.stop()
    assert not folder.exists()

    server.start()
    wait_until(watched.answers)
    left = _folder_of(watched)
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    os.utime(left, (1, 1))
    server.start()
    try:
        wait_until(watched.answers)
        assert not left.exists()
    finally:
        server.stop()


@needs_promtool
def test_promtool_finds_nothing_wrong(watched: Watched, client: NewClient) -> None:
    fetch(watched, client, 2)
    watched.server.post_token("x=1")
    told = watched.text()
    done = subprocess.run(["promtool", "check", "metrics"], input=told, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as attempt:
        return attempt.connect_ex((host, int(port))) == 0


def _who_listens(watched: Watched) -> int:
    """The process that holds the lead."""
    held = _folder_of(watched) / "leader.lock"
    for worker in watched.server.workers():
        if any(_target(link) == held for link in Path(f"/proc/{worker}/fd").iterdir()):
            # Others have tried to hold it, and have closed it again.
            return worker
    raise AssertionError("nobody")


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except OSError:
        return None


def _folder_of(watched: Watched) -> Path:
    """Where the workers of this server count."""
    for worker in watched.server.workers():
        for link in Path(f"/proc/{worker}/fd").iterdir():
            target = _target(link)
            if target and target.parent.name.startswith("tokenhouse-metrics-"):
                return target.parent
    raise AssertionError("no worker counts")


@needs_promtool
@pytest.mark.parametrize(
    "words", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")], ids=" ".join
)
def test_promtool_takes_the_alerts_and_they_fire_when_they_shall(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_half_sent_requests_take_no_thread_and_no_file_for_long(watched: Watched) -> None:
    port = int(watched.url.rpartition(":")[2].partition("/")[0])
    held = []
    for _ in range(600):
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), timeout=2)
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ")
            held.append(connection)
    try:
        threads = [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in watched.server.workers()]
        # Eight that serve, and eight that watch them.
        assert max(threads) < 60
        # Dripping on does not help.
        for connection in held:
            with contextlib.suppress(OSError):
                connection.sendall(b"y")
        wait_until(watched.answers, 15)
    finally:
        for connection in held:
            connection.close()
    assert watched.value("tokenhouse_check_healthy", check="database") == 1


def test_every_alert_is_tested() -> None:
    rules, tests = ((DEPLOY / "prometheus" / name).read_text() for name in ("alerts.yml", "alerts.test.yml"))
    assert set(re.findall(r"alert: (\w+)", rules)) == set(re.findall(r"alertname: (\w+)", tests))


def test_the_documents_and_the_dashboard_name_what_there_is(watched: Watched, client: NewClient) -> None:
    server, authorized = watched.server, {"Authorization": client.basic}
    token = server.get_token(client)["access_token"]
    server.post_token("x=1")
    for path in ("introspect", "revoke"):
        requests.post(f"{server.url}/oauth/{path}", {"token": token}, headers=authorized, timeout=10)
        requests.post(f"{server.url}/oauth/{path}", {"token": token}, timeout=10)
    assert server.flask("keys", "generate").returncode == 0
    server.services.clients.last_used.record_limited(client.client_id)
    server.services.clients.last_used.flush()
    with publishing() as publisher:
        key = signer("ES256").jwk
        publisher.publish(key, key | {"kid": "enc", "use": "enc"})
        words = ("Publishes", "--auth-method", "private_key_jwt", "--jwks-uri", publisher.url)
        server.flask_json("clients", "create", *words)
    wait_until(lambda: "tokenhouse_client_key_skipped{" in watched.text())
    wait_until(lambda: "tokenhouse_signing_keys_next_change_seconds" in watched.text())
    wait_until(lambda: "tokenhouse_client_limited{" in watched.text())
    told = dict(_families(watched.text()))
    table = (PROJECT_FOLDER / "docs" / "metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(tokenhouse_\w+)` \|([^|]*)\|", table, re.MULTILINE))
    # What stands in brackets is a label's values.
    labels = {name: set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", cell))) for name, cell in rows.items()}
    assert labels == told
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    dashboard = json.loads((DEPLOY / "grafana" / "tokenhouse.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 10
    for text in (alerts, *queries):
        named = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"tokenhouse_\w+", text)}
        assert named <= set(told), named - set(told)


def _families(text: str) -> Iterator[tuple[str, set[str]]]:
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield name, {label for sample in family.samples for label in sample.labels} - {"le"}
