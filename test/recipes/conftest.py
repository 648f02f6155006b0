"""A real slurm of two nodes, both on this machine, for as long as the tests that want it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={directory}/munge.socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={port_one} CPUs=2 State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={port_two} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables with which sbatch and squeue find the cluster."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in (*DAEMONS, "sbatch", "sinfo") if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"no slurm: {', '.join(missing)} is needed (Debian's slurm-wlm and munge)")
    directory = tmp_path_factory.mktemp("slurm")
    directory.chmod(0o755)
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    ports = free_ports(3)
    config = directory / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    names = {"host": host, "directory": directory, "user": getpass.getuser()}
    names |= dict(zip(("controller_port", "port_one", "port_two"), map(str, ports), strict=True))
    config.write_text(CONFIG.format(**names))
    for name in ("state", "spool.one", "spool.two"):
        (directory / name).mkdir()
    environment = {"PATH": path, "SLURM_CONF": str(config)}
    munge = ["--force", f"--key-file={key}", f"--socket={directory}/munge.socket"]
    munge += [f"--{kind}-file={directory}/munge.{kind}" for kind in ("pid", "log", "seed")]
    commands = [["munged", "--foreground", *munge], ["slurmctld", "-D", "-c"]]
    commands += [["slurmd", "-D", "-N", node] for node in ("one", "two")]
    running = []
    try:
        for command in commands:
            with open(directory / f"{command[0]}.out", "a") as log:
                process = subprocess.Popen(
                    command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
                )
            running.append(process)
            time.sleep(1)
        for _ in range(30):
            output = subprocess.run(
                ["sinfo", "-h", "-o", "%t"], env={**os.environ, **environment}, capture_output=True, text=True
            )
            if output.stdout.strip() == "idle":
                break
            time.sleep(1)
        else:
            logs = "".join((directory / f"{name}.out").read_text()[-500:] for name in DAEMONS)
            pytest.skip(f"slurm does not start here: {output.stdout} {output.stderr} {logs}")
        yield environment
        subprocess.run(["scancel", "--partition=all"], env={**os.environ, **environment})
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
