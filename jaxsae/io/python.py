"""Other Python processes, which find the same modules as this one."""

import os
import sys
from pathlib import Path


def command(*arguments: str) -> list[str]:
    """The command line of a Python that is started with `environment()`.

    A folder called jaxsae in the working directory, such as a checkout, is not taken for the package.
    """
    return [sys.executable, "-P", *arguments]


def environment() -> dict[str, str]:
    """That of this process, and the modules that it finds, this package first."""
    package = str(Path(__file__).parents[2])
    path = dict.fromkeys([package, *(entry or os.getcwd() for entry in sys.path)])
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
