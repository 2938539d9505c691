"""A SLURM cluster of one node in a temporary folder: munged, slurmctld and slurmd, started and stopped by a test."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from string import Template

import psutil

HERE = Path(__file__).parent


class Slurm:
    """The cluster; needs root and Debian's packages munge, slurmctld, slurmd, slurm-client.

    The node is a process namespace of its own: killing its first process kills everything that runs on it, as if
    the machine had lost its power. Commands such as sbatch find the cluster by `settings` in their environment.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons = {}

    def __enter__(self) -> "Slurm":
        self.configure()
        try:
            self.start_munge()
            self.start("controller", "slurmctld", "-D", "-c")
            self.start_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if "node" in self.daemons:
            self.kill_node()
        for name in ("controller", "munge"):
            if name in self.daemons:
                self.daemons[name].terminate()
                self.daemons.pop(name).wait(30)

    def configure(self) -> None:
        """slurm.conf and gres.conf for this machine, and a key for munged."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        words = {"folder": self.folder, "host": socket.gethostname().split(".")[0]}
        words["controller_port"], words["node_port"] = free_ports(2)
        (self.folder / "slurm.conf").write_text(Template((HERE / "slurm.conf").read_text()).substitute(words))
        shutil.copy(HERE / "gres.conf", self.folder)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge.key").chmod(0o600)

    def start_munge(self) -> None:
        places = {
            name: f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")
        }
        self.start(
            "munge", "munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key", *places.values()
        )
        wait_until((self.folder / "munge.socket").exists, 30, "munged does not answer")

    def start_node(self) -> None:
        # Jobs look in /etc/slurm: Snakemake takes SLURM_CONF from their environment. Only the node sees this mount.
        script = 'mount --bind "$0" /etc/slurm && exec slurmd -D'
        inside = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self.start("node", *inside, "sh", "-c", script, str(self.folder))
        wait_until(lambda: self.command("sinfo", "-h", "-o", "%t") in ("idle", "mix"), 60, "the node does not answer")

    def kill_node(self) -> None:
        """The node with all that runs on it, at once; jobs are queued again when the controller notices (is_down)."""
        unshare = self.daemons.pop("node")
        for first in psutil.Process(unshare.pid).children() if unshare.poll() is None else []:
            first.kill()
        unshare.wait(30)

    def is_down(self) -> bool:
        return self.command("sinfo", "-h", "-o", "%t").startswith("down")

    def start(self, name: str, *call: str) -> None:
        with (self.folder / f"{name}.output").open("ab") as output:
            environment = os.environ | self.settings
            self.daemons[name] = subprocess.Popen(call, env=environment, stdout=output, stderr=output)

    def command(self, *call: str) -> str:
        """What a command of SLURM prints; empty where it fails."""
        done = subprocess.run(call, env=os.environ | self.settings, capture_output=True, text=True, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else ""

    def log(self) -> str:
        """What the controller wrote."""
        return (self.folder / "slurmctld.log").read_text()


def free_ports(count: int) -> list[int]:
    """Ports of this machine on which nobody listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until(true, seconds: float, otherwise: str) -> None:
    """Return when `true()` holds; TimeoutError, with the words `otherwise`, when it does not within that time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} after {seconds:g} s")
        time.sleep(0.2)
