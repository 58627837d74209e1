"""The environment in which Ray is started or joined, and whether a cluster's head still answers.

Imports no Ray.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

from pipeline.cluster.ray_folder import ray_folder
from workers.machine.code_digest import ROOT
from workers.machine.host import this_machine

START_SECONDS = 90.0
GONE_SECONDS = 15.0
"""How long the head of a cluster may not answer. Ray itself ends the driver's process after 60 s, without a
word of ours."""

STORE_BYTES = 400_000_000
"""Of Ray's object store, for what travels between driver and workers."""
LEAST_BYTES = 2**28


class ClusterLostError(RuntimeError):
    """Ray's own processes are gone: nothing can run any more, and nothing that is stored is lost."""


class HeadWatch:
    """Asks the head at ``address`` (HOST:PORT) whether it is
    there, without Ray, whose own questions would only block."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._answered = time.monotonic()

    def answers(self) -> bool:
        """Whether it does now. Raises ClusterLostError where it has not for GONE_SECONDS."""
        try:
            socket.create_connection(self._place, timeout=5).close()
        except OSError:
            if time.monotonic() - self._answered > GONE_SECONDS:
                raise ClusterLostError(
                    f"Ray's head has not answered for {GONE_SECONDS:.0f} s: "
                    "it was ended or its machine is gone"
                ) from None
            return False
        self._answered = time.monotonic()
        return True


def prepare_environment(address: str) -> None:
    """Set what Ray reads as it is imported: quiet, workers at full priority, token authentication whatever
    was set before."""
    for key, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SCHEDULER_EVENTS": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "RAY_DEDUP_LOGS": "0",
    }.items():
        os.environ.setdefault(key, value)

    # A raylet that was ended is noticed after seconds; Ray's own default takes a quarter of a minute.
    if address == "local":
        for key, value in {"period_ms": "2000", "timeout_ms": "3000", "failure_threshold": "3"}.items():
            os.environ.setdefault(f"RAY_health_check_{key}", value)

    os.environ["RAY_AUTH_MODE"] = "token"  # Ray listens on all interfaces
    if address == "local" and "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # For this run only; nothing is written to the home directory.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def start_or_join(ray: Any, address: str, resources: dict[str, float]) -> None:
    """Let the module ``ray`` start a cluster here (``local``) or join one, quietly.

    Raises ClusterLostError, ConnectionError.
    """
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address != "local":
        _join(ray, address, options)
        return

    options |= {
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "resources": resources,
        **_of_this_machine(),
    }
    try:
        # Ray puts the current directory before everything else that its workers import: theirs must be this
        # code, not files of the user's that happen to have such names.
        with at_most(START_SECONDS), contextlib.chdir(ROOT):
            ray.init("local", **options)
    except Exception as error:  # Ray raises a plain Exception where its processes do not come up
        raise ClusterLostError(f"Ray cannot be started on this machine: {first_line(error)}") from error


def _of_this_machine() -> dict[str, Any]:
    """CPUs, memory and folder of a Ray on this machine: what
    this process may use of it, which Ray sees in part."""
    machine, (folder, _) = this_machine(), ray_folder()
    found: dict[str, Any] = {"num_cpus": machine.usable_cpus}
    if machine.is_limited_in_memory:
        found["_memory"] = max(LEAST_BYTES, machine.free_memory_bytes - STORE_BYTES)
    return found if folder is None else found | {"_temp_dir": folder}


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    """Raises ConnectionError where no cluster is there or the token does not fit."""
    try:
        ray.init(None if address == "auto" and "RAY_ADDRESS" in os.environ else address, **options)
    except ray.exceptions.AuthenticationError as error:
        raise ConnectionError(str(error)) from error
    # Its workers would die of a driver that asks them for a token.
    if _is_open(ray.get_runtime_context().gcs_address):
        ray.shutdown()
        raise ConnectionError("it asks nobody for a token; start its nodes with RAY_AUTH_MODE=token")


def _is_open(address: str) -> bool:
    """Whether the head at ``address`` answers without a token.

    False where it cannot be asked, for want of grpcio.
    """
    try:
        import grpc
    except ImportError:  # it comes with ray[default]
        return False
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=10)
        except grpc.RpcError:
            return False
    return True


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ray waits for ever for a process of its own that hangs: end
    the Ray that was started here if the block takes longer."""
    watchdog = threading.Timer(seconds, _end_own_ray)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def first_line(error: Exception) -> str:
    """What an error of Ray says, its frames and empty lines left out as far as a line allows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(error).__name__


def _end_own_ray() -> None:
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() in ("raylet", "gcs_server"):
                process.kill()
