from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from bertron_server import server as server_module
from bertron_server.errors import PortTakenError, RepositoryError, StartError, TritonServerError
from bertron_server.server import TritonServer, model_names, reachable_host
from tritonclient.utils import InferenceServerException

Echo = Callable[..., str]
SHM = Path("/dev/shm")  # noqa: S108


def listener() -> socket.socket:
    """Holds a port."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.listen()
    return held


def status_of(url: str, method: str, path: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, headers={"Connection": "close"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_model_names_are_the_directories_with_a_config(echo_repository: Path) -> None:
    (echo_repository / ".git").mkdir()
    (echo_repository / "README.md").touch()
    assert model_names(echo_repository) == ["echo"]


def test_a_missing_and_an_empty_repository_say_so(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no model repository at .*nowhere.*bertron export"):
        TritonServer(tmp_path / "nowhere").start()
    with pytest.raises(RepositoryError, match="no model in"):
        TritonServer(tmp_path).start()


@pytest.mark.parametrize(
    ("address", "host"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3")],  # noqa: S104
)
def test_urls_lead_to_the_server_from_this_machine(address: str, host: str) -> None:
    assert reachable_host(address) == host


@pytest.mark.integration
def test_a_name_becomes_a_number_before_triton_server_sees_it(echo_repository: Path) -> None:
    command, _ = TritonServer(echo_repository, address="localhost").prepare()
    for endpoint in ("http", "grpc", "metrics"):
        assert f"--{endpoint}-address=127.0.0.1" in command


@pytest.mark.integration
@pytest.mark.parametrize("address", ["::1", "no.such.host.invalid", "10.9.9.9"])
def test_an_address_that_cannot_be_bound_is_named(echo_repository: Path, address: str) -> None:
    with pytest.raises(TritonServerError, match=f"cannot listen on {address}"):
        TritonServer(echo_repository, address=address).start()


def test_before_a_start_there_is_nothing(echo_repository: Path) -> None:
    server = TritonServer(echo_repository)
    assert not server.is_alive()
    assert server.returncode is None
    assert server.log_tail() == ""
    assert server.stop() is None
    server.kill()
    with pytest.raises(TritonServerError, match="not started"):
        _ = server.pid


@pytest.mark.integration
class TestRunning:
    def test_it_answers(self, running: TritonServer, echo: Echo) -> None:
        assert running.is_alive()
        assert echo(running.http_url, "héllo") == "héllo"
        assert "Started HTTPService" in running.log_tail(200)

    def test_all_three_endpoints_answer(self, running: TritonServer) -> None:
        with tritonclient.grpc.InferenceServerClient(
            running.grpc_url.removeprefix("grpc://")
        ) as client:
            assert client.is_model_ready("echo", client_timeout=10)
        url, _, path = running.metrics_url.rpartition("/")
        assert status_of(url, "GET", f"/{path}") == 200

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v2/systemsharedmemory/status"),
            ("GET", "/v2/cudasharedmemory/status"),
            ("POST", "/v2/repository/index"),
            ("POST", "/v2/repository/models/echo/unload"),
            ("GET", "/v2/logging"),
            ("GET", "/v2/trace/setting"),
        ],
    )
    def test_admin_apis_are_closed_over_http(
        self, running: TritonServer, method: str, path: str
    ) -> None:
        assert status_of(running.http_url, method, path) == 403

    @pytest.mark.parametrize(
        "call",
        [
            "get_system_shared_memory_status",
            "get_model_repository_index",
            "get_log_settings",
            "get_trace_settings",
        ],
    )
    def test_admin_apis_are_closed_over_grpc(self, running: TritonServer, call: str) -> None:
        url = running.grpc_url.removeprefix("grpc://")
        with (
            tritonclient.grpc.InferenceServerClient(url) as client,
            pytest.raises(InferenceServerException, match="restricted"),
        ):
            getattr(client, call)(client_timeout=10)

    @pytest.mark.parametrize(
        "path",
        ["/v2", "/v2/health/live", "/v2/models/echo", "/v2/models/echo/config", "/v2/models/stats"],
    )
    def test_reading_is_open(self, running: TritonServer, path: str) -> None:
        assert status_of(running.http_url, "GET", path) == 200

    def test_it_is_reachable_on_loopback_only(self, running: TritonServer) -> None:
        listening = [
            line.split()[1]
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in Path(table).read_text().splitlines()
            if line.split()[3] == "0A"
        ]
        for port in (running.http_port, running.grpc_port, running.metrics_port):
            places = [place for place in listening if place.endswith(f":{port:04X}")]
            assert len(places) == 1
            assert "0100007F:" in places[0]  # 127.0.0.1, perhaps mapped into IPv6

    def test_two_servers_run_side_by_side(
        self, running: TritonServer, echo_repository: Path, echo: Echo, proc: Any
    ) -> None:
        with TritonServer(echo_repository) as second:
            ports = {
                port
                for server in (running, second)
                for port in (server.http_port, server.grpc_port, server.metrics_port)
            }
            assert len(ports) == 6
            assert proc.regions(second.pid) != proc.regions(running.pid)
            assert echo(second.http_url, "two") == "two"
        assert echo(running.http_url, "one") == "one"  # the first kept its memory

    def test_a_taken_port_is_refused_at_once(
        self, running: TritonServer, echo_repository: Path
    ) -> None:
        for endpoint in ("http", "grpc", "metrics"):
            port = getattr(running, f"{endpoint}_port")
            started = time.monotonic()
            with pytest.raises(PortTakenError, match=rf"{endpoint} port {port}.*--{endpoint}-port"):
                TritonServer(echo_repository, **{f"{endpoint}_port": port}).start()
            assert time.monotonic() - started < 2

    def test_a_second_start_is_refused(self, running: TritonServer) -> None:
        with pytest.raises(TritonServerError, match="already started"):
            running.start()


@pytest.mark.integration
def test_a_stop_leaves_nothing_behind(echo_repository: Path, tmp_path: Path, proc: Any) -> None:
    log = tmp_path / "server.log"
    with TritonServer(echo_repository, log_path=log) as server:
        pid, regions = server.pid, proc.regions(server.pid)
        assert len(proc.group(pid)) == 2  # the server and the model's stub
        assert list(SHM.glob(regions))
    assert proc.group(pid) == []
    assert list(SHM.glob(regions)) == []
    assert not server.is_alive()
    assert "successfully unloaded 'echo'" in log.read_text()
    assert "successfully unloaded 'echo'" in server.log_tail()


@pytest.mark.integration
def test_a_killed_server_leaves_nothing_behind(echo_repository: Path, proc: Any) -> None:
    with TritonServer(echo_repository) as server:
        pid, regions = server.pid, proc.regions(server.pid)
        os.kill(pid, signal.SIGKILL)
        assert server.wait(timeout_s=10) == -signal.SIGKILL
        assert "SIGKILL" in str(server.failure())
    assert proc.group(pid) == []
    assert list(SHM.glob(regions)) == []


@pytest.mark.integration
def test_accepted_requests_are_answered_before_it_stops(echo_repository: Path, echo: Echo) -> None:
    answers: list[str] = []
    with TritonServer(echo_repository) as server:
        asking = threading.Thread(target=lambda: answers.append(echo(server.http_url, "slow")))
        asking.start()
        time.sleep(0.3)  # it takes a second; by now it was accepted
    asking.join(timeout=10)
    assert answers == ["slow"]


@pytest.mark.integration
def test_a_connection_that_stays_open_holds_a_stop_no_longer_than_allowed(
    echo_repository: Path,
) -> None:
    with TritonServer(echo_repository, exit_timeout_s=2) as server:
        idle = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        idle.request("GET", "/v2")
        idle.getresponse().read()
        started = time.monotonic()
    idle.close()
    assert time.monotonic() - started < 2 + server_module.EXIT_MARGIN_S


@pytest.mark.integration
def test_a_server_that_ignores_the_signal_is_killed(
    echo_repository: Path, proc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "EXIT_MARGIN_S", 0.5)
    with TritonServer(echo_repository, exit_timeout_s=1) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
    assert proc.group(pid) == []


@pytest.mark.integration
def test_a_model_that_cannot_be_loaded_is_an_error_with_its_cause(
    repository_of: Callable[[str], Path],
) -> None:
    repository = repository_of("import no_such_module_anywhere\n")
    started = time.monotonic()
    with pytest.raises(StartError) as caught, TritonServer(repository, ready_timeout_s=60):
        pass
    assert time.monotonic() - started < 20
    assert "'faulty'" in str(caught.value)
    assert "No module named 'no_such_module_anywhere'" in str(caught.value)
    assert "At:" not in str(caught.value)


@pytest.mark.integration
def test_a_model_that_never_loads_ends_with_the_deadline(
    repository_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = repository_of("import time\ntime.sleep(120)\n")
    started = time.monotonic()
    with (
        pytest.raises(StartError, match=r"the server was not ready after 1\.5 s") as caught,
        TritonServer(repository, ready_timeout_s=1.5, exit_timeout_s=1),
    ):
        pass
    assert time.monotonic() - started < 15
    assert "loading: faulty:1" in str(caught.value)


@pytest.mark.integration
def test_a_wrong_flag_is_named(echo_repository: Path) -> None:
    with (
        pytest.raises(StartError, match="unrecognized option '--nope=1'"),
        TritonServer(echo_repository, extra_args=["--nope=1"]),
    ):
        pass


@pytest.mark.integration
def test_a_free_port_that_is_lost_before_it_is_bound_is_picked_again(
    echo_repository: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pick, picked = TritonServer._pick_ports, []

    def pick_badly_first(server: TritonServer, check: bool) -> list[int]:
        picked.append(pick(server, check))
        return [held.getsockname()[1], *picked[-1][1:]] if len(picked) == 1 else picked[-1]

    monkeypatch.setattr(TritonServer, "_pick_ports", pick_badly_first)
    with listener() as held, TritonServer(echo_repository) as server:
        assert len(picked) == 2
        assert echo(server.http_url, "again") == "again"


@pytest.mark.integration
def test_the_server_ends_when_its_parent_is_killed(echo_repository: Path, proc: Any) -> None:
    script = (
        "import sys, time\n"
        "from bertron_server.server import TritonServer\n"
        "with TritonServer(sys.argv[1], exit_timeout_s=2) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(120)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(echo_repository)], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        regions = proc.regions(pid)
        parent.kill()
    assert proc.wait_until_gone(pid, timeout_s=15) == []
    assert list(SHM.glob(regions)) == []


class Reaped:
    """A process that has ended, and whose handle does not know it yet."""

    returncode = None

    def __init__(self) -> None:
        process = subprocess.Popen(["true"])
        process.wait()
        self.pid = process.pid

    def poll(self) -> None:
        return None


def test_a_process_that_has_just_ended_is_terminated_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler may ask for it in the middle of a wait for the process."""
    sent: list[tuple[int, int]] = []
    kill = os.kill

    def send(pid: int, number: int) -> None:
        sent.append((pid, number))
        kill(pid, number)

    monkeypatch.setattr(server_module.os, "kill", send)
    server = TritonServer(tmp_path)
    server._process = ended = Reaped()
    server.terminate()
    assert sent == [(ended.pid, signal.SIGTERM)]
    with pytest.raises(ProcessLookupError):
        kill(ended.pid, 0)  # what it met
