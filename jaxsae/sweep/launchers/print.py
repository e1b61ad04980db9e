"""No process: one shell command a line, for xargs, xpk, SkyPilot, ssh."""

import shlex
import sys

from jaxsae.flags import NoFlags
from jaxsae.sweep import folder as folders
from jaxsae.sweep.launchers.interface import Launcher, Work


class Printed:
    at_once = 0

    def __init__(self, work: Work, config: NoFlags):
        for names in work.jobs:
            print(shlex.join(_command(work, names)))
        if work.jobs:
            again = f"when they are done, `{shlex.join(work.command)}` writes {work.out / folders.RESULTS}"
        else:
            again = "all runs are done"
        print(f"jaxsae: {len(work.jobs)} command{'' if len(work.jobs) == 1 else 's'}; {again}", file=sys.stderr)

    def poll(self, seconds: float) -> bool:
        return False

    def in_hand(self) -> set[str]:
        return set()

    def stop(self):
        """Nothing runs."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def _command(work: Work, names: list[str]) -> list[str]:
    if len(names) > 1:
        return [*work.command, "--launcher", "here", "--only", *names]
    program = work.command[: work.command.index("sweep")]
    config, run = folders.config_file(work.out, names[0]), work.out / names[0]
    return [*program, "train", "--config", str(config), "--run", str(run), "--resume"]


LAUNCHER = Launcher(Printed, alone=False, waits=False)
