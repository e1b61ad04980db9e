"""A sweep file: Python that defines `configs() -> dict[str, Config]`."""

import inspect
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from jaxsae.config import Config
from jaxsae.errors import BadInput
from jaxsae.sweep.folder import RESERVED

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,@-]*")


def read(path: Path, preset: str | None = None) -> dict[str, Config]:
    """{name: config} that `configs()` of a sweep file returns; with a preset, `configs(preset=NAME)`.

    The file is run as Python runs a script, with its own folder and the working folder to import from. Raises BadInput
    if it cannot be run, has no `configs`, or does not return named configurations.
    """
    if not path.is_file():
        raise BadInput(f"{path} is not a file: give a sweep file, Python that defines configs()")
    module = _run(path)
    make = getattr(module, "configs", None)
    if not callable(make):
        raise BadInput(f"{path} defines no configs(): define one that returns {{name: Config}}")
    parameters = inspect.signature(make).parameters
    takes_preset = "preset" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if preset is not None and not takes_preset:
        raise BadInput(f"--preset is {preset}, but configs() of {path} takes no preset: leave it out")
    if preset is None and [p.name for p in parameters.values() if p.default is p.empty] == ["preset"]:
        raise BadInput(f"configs() of {path} needs a preset: give --preset NAME")
    configs = _guarded(path, lambda: make(**({} if preset is None else {"preset": preset})))
    check(configs, f"configs() of {path}")
    return dict(configs)


def check(configs, source: str):
    """Raises BadInput unless `configs` are {name: Config} and every name can be that of a folder."""
    if not isinstance(configs, Mapping) or not configs:
        raise BadInput(f"{source} returns {_short(configs)}: return {{name: Config}} of at least one run")
    for name, config in configs.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > 200 or name in RESERVED:
            raise BadInput(
                f"{source} calls a run {name!r}: allowed are up to 200 letters, digits and ._=+,@-, beginning with a "
                f"letter or a digit, but not {', '.join(RESERVED)}"
            )
        if not isinstance(config, Config):
            raise BadInput(f"{source} returns {_short(config)} as {name}: return a jaxsae.config.Config")
    lower = [name.lower() for name in configs]
    if twice := next((name for name in configs if lower.count(name.lower()) > 1), None):
        raise BadInput(f"{source} has two runs called {twice} but for upper and lower case: name one otherwise")


def _run(path: Path):
    for folder in (str(Path.cwd()), str(path.resolve().parent)):
        if folder not in sys.path:
            sys.path.append(folder)
    module = ModuleType(f"jaxsae_sweep_{path.stem}")
    module.__file__ = str(path.resolve())
    sys.modules[module.__name__] = module  # dataclasses look there
    # Not by import, which would keep bytecode beside the file.
    _guarded(path, lambda: exec(compile(path.read_text("utf-8"), module.__file__, "exec"), module.__dict__))
    return module


def _guarded(path: Path, function):
    try:
        return function()
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
        line = f", line {lines[-1]}" if lines else f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise BadInput(f"{path}{line}: {type(error).__name__}: {error}") from error


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
