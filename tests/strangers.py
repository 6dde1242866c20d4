"""A user who is not root, for tests that are run by root."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from conftest import Cli, need

UID = 4242


@dataclass
class Stranger(Cli):
    """The command line of such a user, in some groups.

    Python and our own files may be in folders of root's: those may be read by this user, and nothing more.
    """

    groups: tuple[int, ...] = ()

    def command(self, *words: str | Path) -> list[str]:  # type: ignore[override]
        reads = "-all,+dac_read_search"
        groups = f"--groups={','.join(map(str, self.groups))}" if self.groups else "--clear-groups"
        become = [
            "setpriv", f"--reuid={UID}", f"--regid={UID}", groups, "--securebits=+no_setuid_fixup",
            f"--inh-caps={reads}", f"--ambient-caps={reads}", "--",
        ]  # fmt: skip
        return [*become, *Cli.command(*words)]


def become_stranger(cli: Cli, folder: Path, *groups: int) -> Stranger:
    """Return the command line of a stranger with home, cache and volume of its own, in a folder of the test's."""
    need("root", os.geteuid() == 0, "only root can become another user; run the tests as root")
    shutil.rmtree(folder / "cache")
    for place in (folder / "cache", folder / "home", folder / "state", cli.volume):
        place.mkdir(exist_ok=True)
        os.chown(place, UID, UID)
    env = {**cli.env, "HOME": str(folder / "home"), "USER": "stranger"}
    return Stranger(volume=cli.volume, env=env, groups=groups)
