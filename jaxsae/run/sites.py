"""Several autoencoders from one pass of the language model: `jaxsae train --hook A B C`, or `--sites FILE`."""

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from jaxsae.config import Config, flag_of, with_fields
from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.run.record import table
from jaxsae.run.runs import RunsFailed
from jaxsae.run.together import shared_fields, train
from jaxsae.run.train import say_without_effect


def train_several(config: Config, hooks: Sequence[str], path: str | None, flags: Collection[str]):
    """Train one autoencoder at each of `hooks`, or those of the file `path`, and print how they end.

    `config` comes from `train.started`; `flags` are those that were typed. Raises BadInput or RunsFailed, which name
    those that failed, when all have ended, and Interrupted.
    """
    if path and hooks:
        raise BadInput("--hook names several hook points, and --sites too: give one of them")
    try:
        configs = from_file(config, path) if path else at_hooks(config, hooks)
        say_without_effect([*configs.values()], flags)
        outcomes = train(configs, asked={flag.removeprefix("--") for flag in flags})
    finally:
        # A folder that was named by default is there already; nothing is left of it if nothing was written.
        with suppress(OSError):
            Path(config.run).rmdir()
    failed = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Exception)}
    for name, outcome in outcomes.items() if processes.is_primary() else ():
        if name not in failed:
            print(f"{name}\n\n{table(outcome)}\n\nsaved in {configs[name].run}\n")
    if failed:
        kind = BadInput if all(isinstance(error, BadInput) for error in failed.values()) else RunsFailed
        raise kind("; ".join(f"{name}: {error}" for name, error in failed.items()))


def at_hooks(config: Config, hooks: Sequence[str]) -> dict[str, Config]:
    """{hook point: configuration} of one autoencoder at each of `hooks`; its folder is RUN/HOOK."""
    return _in_folders(config, [{"name": hook, "hook": hook} for hook in hooks], "--hook")


def from_file(config: Config, path: str | Path) -> dict[str, Config]:
    """{name: configuration} of the autoencoders that a JSON file lists; the folder of each is RUN/NAME.

        [{"name": "small", "hook": "blocks.1.hook_resid_post", "sae.n": 512}, {"name": "large", "sae.n": 4096}]

    An object has what differs from `config`, named as flags are, with underscores. A name may be left out if no other
    object has the same `hook`, which it then is. Raises BadInput for a file that says anything else, and for
    autoencoders that cannot be trained from one pass.
    """
    try:
        sites = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"--sites {path} cannot be read: {error}") from error
    if not isinstance(sites, list) or not sites or not all(isinstance(site, dict) for site in sites):
        raise BadInput(
            f'--sites {path} is no list of objects: give [{{"name": "a", "hook": "...", "sae.n": 512}}, ...]'
        )
    return _in_folders(config, sites, f"--sites {path}")


def _in_folders(config: Config, sites: list[dict], flag: str) -> dict[str, Config]:
    configs: dict[str, Config] = {}
    for number, site in enumerate(sites, 1):
        changes = {field: tuple(v) if isinstance(v, list) else v for field, v in site.items() if field != "name"}
        name = site.get("name", changes.get("hook"))
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise BadInput(f"{flag}: autoencoder {number} has the name {name!r}: give a name that a folder can have")
        if name in configs:
            raise BadInput(f"{flag} names {name} twice: give each autoencoder a name of its own")
        folder = str(Path(config.run) / name)
        if "run" in changes:
            raise BadInput(f"{flag}: {name} has a run of its own: leave it out, its folder is {folder}")
        try:
            configs[name] = with_fields(config, **changes, run=folder)
        except BadInput as error:
            raise BadInput(f"{flag}: {name}: {error}") from error
        except TypeError as error:
            raise BadInput(f"{flag}: {name} cannot have {changes}: {error}") from error
    _check(configs, flag)
    return configs


def _check(configs: dict[str, Config], flag: str):
    """Raises BadInput if the autoencoders cannot be trained from one pass."""
    first, *others = configs.values()
    for config in (first, *others):
        if others and config.training.type.reads == "contexts":
            raise BadInput(
                f"--objective {config.training.objective} runs the language model after its autoencoder, and {flag} "
                f"names {len(configs)}: give --objective local, or train them one by one; "
                "jaxsae.training.sites trains several in series"
            )
        if others and config.log.wandb is not None:
            raise BadInput(f"--wandb takes one run from a process, and {flag} names {len(configs)}: leave it out")
        if config.data.activations is not None and config.lm.hook != first.lm.hook:
            raise BadInput(f"{flag}: activations from files have one hook point: give one, or --text")
    shared = [shared_fields(config, "pass") for config in configs.values()]
    # What all of them may choose, such as the hook point of autoencoders, is in none.
    names = {name: None for fields in shared for name in fields}
    differ = [name for name in names if any(fields.get(name) != shared[0].get(name) for fields in shared)]
    if "hook" in differ:
        raise BadInput(
            f"{flag}: a transcoder or a crosscoder shares a pass only with others of the same --hook and --hook-out: "
            "train those with others apart"
        )
    if differ:
        flags = ", ".join(flag_of(field.replace("order_seed", "data_seed")) for field in differ)
        raise BadInput(f"{flag}: autoencoders of one pass must agree in {flags}: give one value, or train them apart")
