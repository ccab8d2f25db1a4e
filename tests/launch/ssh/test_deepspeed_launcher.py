"""The environment of processes that DeepSpeed's launcher starts on other hosts."""

import pytest

from launch.ssh.deepspeed_launcher import environment
from launch.ssh.hostfile import Report

PASSED = ["PYTORCH_ALLOC_CONF", "NCCL_DEBUG", "UCX_TLS", "FI_PROVIDER", "TRITON_CACHE_DIR", "LD_LIBRARY_PATH"]


def report(host: str, interface: str | None) -> Report:
    return Report(host, {"interface": interface}, None, 0.0)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*PASSED, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", PASSED)
def test_what_libraries_of_the_cluster_read_is_passed_on(name: str, monkeypatch: pytest.MonkeyPatch):
    assert name not in environment([])
    monkeypatch.setenv(name, "value")
    assert environment([])[name] == "value"


def test_the_users_file_comes_first(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=WARN\n")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    assert environment([])["NCCL_DEBUG"] == "WARN"


def test_the_interface_that_all_hosts_share_is_named():
    shared = environment([report("a", None), report("b", "ib0"), report("c", "ib0")])
    assert (shared["GLOO_SOCKET_IFNAME"], shared["NCCL_SOCKET_IFNAME"]) == ("ib0", "ib0")
    assert "GLOO_SOCKET_IFNAME" not in environment([report("a", "eth0"), report("b", "ib0")])
