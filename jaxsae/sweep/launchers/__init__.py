"""Launchers by name. Adding one is one file beside this one and one line here; its flags are `--NAME.FLAG`.

local    processes on this machine, each on its share of the cores or devices
slurm    jobs of a Slurm cluster
cluster  jobs of submitit's local executor, which are handed over as those of a cluster are
print    one shell command a line
here     this process, one job after another
"""

from jaxsae.flags import groups
from jaxsae.sweep.launchers import cluster, here, local, print, slurm
from jaxsae.sweep.launchers.interface import Launcher, Pool, Work

REGISTRY: dict[str, Launcher] = {
    "local": local.LAUNCHER,
    "slurm": slurm.LAUNCHER,
    "cluster": cluster.LAUNCHER,
    "print": print.LAUNCHER,
    "here": here.LAUNCHER,
}

LauncherConfigs = groups("LauncherConfigs", REGISTRY, __name__)

__all__ = ["REGISTRY", "Launcher", "LauncherConfigs", "Pool", "Work"]
