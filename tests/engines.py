"""A Docker engine of a test's own, which may be killed and restarted: dockerd with its own containerd, data and socket."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from conftest import need, until

CGROUPS = Path("/sys/fs/cgroup")


class PrivateEngine:
    """One dockerd. Between starts its images stay, so that a session loads each of them once."""

    def __init__(self, room: Path) -> None:
        self.data, self.state, self.log = room / "data", room / "state", room / "log"
        self.socket = room / "socket"
        self.address = f"unix://{self.socket}"
        self.tcp = ""
        self.cgroup = f"/runner-tests-{os.getpid()}"
        self.bridge = f"runner{os.getpid()}"
        self._words: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, tcp: bool = False, cdi: Path | None = None, hidden: Path | None = None) -> None:
        """Start it, on a loopback port too; with a folder of CDI specifications; with a folder that it cannot see."""
        self.state.mkdir(exist_ok=True)
        settings = self.state / "daemon.json"
        settings.write_text(json.dumps({"features": {"cdi": True}, "cdi-spec-dirs": [str(cdi)]} if cdi else {}))
        # A bridge of its own: with "none", and with the default one, it would take the bridge of the machine's engine away.
        self._make_bridge()
        words = [
            "dockerd", "--config-file", settings, "--data-root", self.data, "--exec-root", self.state / "run",
            "--pidfile", self.state / "pid", "--host", self.address, "--storage-driver", "overlay2",
            "--bridge", self.bridge, "--iptables=false", "--ip6tables=false", "--ip-masq=false",
            "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", self.cgroup,
        ]  # fmt: skip
        if tcp:
            self.tcp = f"tcp://127.0.0.1:{_free_port()}"
            words += ["--host", self.tcp, "--tls=false"]
        if hidden:
            hide = 'mount -t tmpfs none "$0" && exec "$@"'
            words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, hidden, *words]
        self._words = list(map(str, words))
        need("dockerd", self._begin(), f"it ended at once: {self.log.read_text()[-1000:]}")

    def _make_bridge(self) -> None:
        if not self._bridged():
            subprocess.run(["ip", "link", "add", self.bridge, "type", "bridge"], check=True)
            subprocess.run(["ip", "address", "add", "10.253.253.1/24", "dev", self.bridge], check=True)

    def _bridged(self) -> bool:
        return Path("/sys/class/net", self.bridge).exists()

    def again(self) -> None:
        """Start it as it was started before, after an end of whatever kind."""
        assert self._begin(), self.log.read_text()[-2000:]

    def _begin(self) -> bool:
        assert self._process is None
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until(lambda: self._answers() or self._over(), 60, "the engine's answer")
        return not self._over()

    def docker(self, *words: str | Path, check: bool = True) -> str:
        """Run the docker command on it, and return what it prints."""
        command = ["docker", "--host", self.address, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def load(self, reference: str) -> None:
        """Bring an image here from the engine that the tests use."""
        if self.docker("images", "--quiet", reference):
            return
        with subprocess.Popen(["docker", "save", reference], stdout=subprocess.PIPE) as save:
            subprocess.run(["docker", "--host", self.address, "load", "--quiet"], stdin=save.stdout, check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
        assert save.returncode == 0

    def stop(self) -> None:
        """End it in an orderly way, its containers before it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill dockerd; its containerd goes with it, and the containers go on."""
        containerd = Path("/proc", (self.state / "run/containerd/containerd.pid").read_text())
        self._end(signal.SIGKILL)
        until(lambda: not containerd.exists(), what="containerd's end")  # else the next dockerd takes it for its own

    def kill_everything(self) -> None:
        """Kill it with all containers at once, and leave what a power cut leaves: the files below its data."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.processes(), what="the end of the engine's processes")
        for address in self.state.glob("run/containerd/daemon/*/moby/*/address"):
            Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)
        for place in reversed(self.mounts()):
            subprocess.run(["umount", "--lazy", place], check=False)
        for place in self.cgroups():
            until(lambda place=place: _removed(place), what=f"the end of {place}")
        shutil.rmtree(self.state / "run", ignore_errors=True)

    def close(self) -> None:
        """End it and leave nothing but the images."""
        if self._process:
            for container in self.docker("ps", "--all", "--quiet", check=False).split():
                self.docker("rm", "--force", container, check=False)
        self.kill_everything()
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)
        shutil.rmtree(self.state, ignore_errors=True)
        assert (self.processes(), self.mounts(), self.cgroups(), self._bridged()) == ([], [], [], False)

    def processes(self) -> list[int]:
        """Return its processes: dockerd and containerd, the shims, and all that goes on in the containers."""
        parents, ours = {}, set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent = (path / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if state == "Z":  # gone, and nobody has asked for its exit code yet
                    continue
                parents[int(path.name)] = int(parent)
                words = (path / "cmdline").read_bytes()
                if str(self.state).encode() in words and b"docker\0--host" not in words:
                    ours.add(int(path.name))
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return sorted(ours)

    def mounts(self) -> list[str]:
        """Return what is mounted below its folders, the first first."""
        places = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        return [place for place in places if f"{place}/".startswith((f"{self.data}/", f"{self.state}/"))]

    def cgroups(self) -> list[Path]:
        """Return its control groups, the innermost first."""
        tops = [top for top in (CGROUPS, *CGROUPS.glob("*")) if (top / self.cgroup[1:]).is_dir()]
        return [Path(path) for top in tops for path, _, _ in os.walk(top / self.cgroup[1:], topdown=False)]

    def _answers(self) -> bool:
        words = ["docker", "--host", self.address, "version"]
        return self.socket.exists() and subprocess.run(words, capture_output=True).returncode == 0

    def _over(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _end(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)
        self._process.wait(60)
        self._process = None


@contextlib.contextmanager
def private_engine(room: Path) -> Iterator[PrivateEngine]:
    """Give an engine that is not started yet, and end it, whatever a test did with it."""
    need("root", os.geteuid() == 0, "only root can start an engine; run the tests as root")
    need("dockerd", shutil.which("dockerd") is not None, "tests/engine/install gets it")
    engine = PrivateEngine(room)
    try:
        yield engine
    finally:
        engine.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _removed(place: Path) -> bool:
    """Remove a control group; the kernel refuses for a moment after its last process."""
    try:
        place.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
