"""What older versions wrote: configurations of format 1, the facts of exports that held none, and renamed flags."""

import itertools
from typing import Any

from jaxsae.errors import BadInput

# Flags that were renamed, by their old name; `{objective}` and the like are filled in from the other flags.
RENAMED_FLAGS = {
    "--start": "--init-from",
    "--clip": "--grad-clip",
    "--resamples": "--max-resamples",
    "--chunk": "--buffer-batches",
    "--lm-products": "--lm-precision",
    "--error-unit": "--mse-scale",
    "--sae.select": "--sae.select-precision",
    "--sae.p": "--sae.exponent",
    "--sae.bandwidth": "--sae.jumprelu.bandwidth",
    "--kl-coef": "--{objective}.kl-coef",
    "--kl-chunk": "--{objective}.kl-chunk",
    "--remat": "--{objective}.remat",
    "--no-remat": "--{objective}.no-remat",
    "--reconstruction-coef": "--{objective}.reconstruction-coef",
    "--downstream-coef": "--e2e-downstream.downstream-coef",
    "--downstream-hooks": "--e2e-downstream.downstream-hooks",
}
# Of the renamed flags, those that finetune_kl does not have.
COEFFICIENTS = ("--kl-coef", "--reconstruction-coef")
RENAMED_VALUES = {("--error-unit", "one"): "none"}


def normal(flag: str) -> str:
    """`--lr-end` of `--lr_end=0`."""
    return flag.partition("=")[0].replace("_", "-")


def current_flags(args: list[str], objective: str) -> tuple[list[str], list[str]]:
    """A command line with the flags of this version in place of renamed ones, and a line on each of those.

    `objective` is the one in use if none is typed.
    """
    typed = [b for a, b in itertools.pairwise(args) if a == "--objective"]
    typed += [arg.partition("=")[2] for arg in args if arg.startswith("--objective=")]
    objective = next(iter(typed), objective).replace("_", "-")
    new, notes = [], []
    for arg in args:
        flag, equals, value = arg.partition("=")
        flag = normal(flag) if flag.startswith("--") else flag
        if flag not in RENAMED_FLAGS:
            previous = normal(args[len(new) - 1]) if new else ""
            new.append(RENAMED_VALUES.get((previous, arg), arg))
            continue
        lacks = objective == "local" or (objective == "finetune-kl" and flag in COEFFICIENTS)
        current = RENAMED_FLAGS[flag].format(objective="e2e" if lacks else objective)
        notes.append(f"{flag} is called {current} now; the old name works in this version only")
        new.append(current + equals + RENAMED_VALUES.get((flag, value), value))
    return new, notes


BATCH = ("tokens", "batch_size", "micro_batches", "seed", "mesh")
OPTIMIZER = ("lr", "schedule", "warmup", "lr_end", "adam_eps", "ema")
DEAD = ("auxk_coef", "k_aux", "dead_after", "resample_every")


def config_from_1(old: dict) -> dict:
    """A configuration of format 1 (one flat group of training) as format 2."""
    new = {name: value for name, value in old.items() if name not in ("model", "data", "sae", "training")}
    if "model" in old:
        new["lm"] = _renamed(old["model"], {"lm_products": "lm_precision"})
    if "data" in old:
        new["data"] = _renamed(old["data"], {"chunk": "buffer_batches"})
    if "sae" in old:
        new["sae"] = sae_from_1(old["sae"])
    if "training" in old:
        new["training"] = training_from_1(old["training"])
        optimizer = new["training"]["optimizer"]
        if optimizer.get("lr") is None and "n" in new.get("sae", {}):
            # What it meant by default, whatever the number of tokens.
            optimizer["lr"] = 2e-4 / (new["sae"]["n"] / 2**14) ** 0.5
    return new


def config_from_2(old: dict) -> dict:
    """A configuration of format 2 as format 3: a default learning rate is written out, because the rule is another."""
    # What is no object is refused where it is read.
    group = lambda inside, name: inside.get(name) if isinstance(inside.get(name), dict) else {}
    training, n = group(old, "training"), group(old, "sae").get("n")
    optimizer, tokens = group(training, "optimizer"), group(training, "batch").get("tokens")
    numbers = all(isinstance(value, int) and value > 0 for value in (n, tokens))
    if optimizer.get("lr") is not None or not numbers:
        return old
    lr = 2e-4 / (n / 2**14) ** 0.5 * min(3.0, max(1.0, (10_000_000 / tokens) ** 0.5))
    return {**old, "training": {**training, "optimizer": {**optimizer, "lr": lr}}}


def config_from_3(old: dict) -> dict:
    """A configuration of format 3 as format 4: AuxK began after as many idle tokens as make a latent dead, by default a
    fifth of the run.
    """
    training = old.get("training")
    groups = [isinstance(training, dict) and training.get(name) for name in ("dead", "batch")]
    if not all(isinstance(group, dict) for group in groups):
        return old
    dead, tokens = groups[0], groups[1].get("tokens")
    if dead.get("dead_after") is not None or not isinstance(tokens, int):
        return old
    dead = {**dead, "auxk_after": max(1, min(10_000_000, tokens // 5))}
    return {**old, "training": {**training, "dead": dead}}


def sae_from_1(old: dict) -> dict:
    """The settings of an autoencoder, of format 1."""
    old = dict(old)
    new = {"sparsity": {}, "families": {}}
    for name, inside in (("penalty", "penalty"), ("p", "exponent"), ("target_l0", "target_l0")):
        if name in old:
            new["sparsity"][inside] = old.pop(name)
    if "bandwidth" in old:
        new["families"]["jumprelu"] = {"bandwidth": old.pop("bandwidth")}
    return new | _renamed(old, {"select": "select_precision"})


def training_from_1(old: dict) -> dict:
    """The settings of training, of format 1. A field that is not known is passed on, to be refused by its name."""
    old = _renamed(
        old, {"start": "init_from", "error_unit": "mse_scale", "clip": "grad_clip", "resamples": "max_resamples"}
    )
    if old.get("mse_scale") == "one":
        old["mse_scale"] = "none"
    take = lambda *names: {name: old.pop(name) for name in names if name in old}
    new: dict[str, Any] = {"batch": take(*BATCH)}
    new["optimizer"] = take(*OPTIMIZER, "grad_clip")
    new["dead"] = take(*DEAD, "max_resamples")
    if old.get("form") == "code":
        del old["form"]
    shared = take("kl_chunk", "remat")
    kl, reconstruction = take("kl_coef"), take("reconstruction_coef")
    kl = {name: value for name, value in kl.items() if value is not None}
    downstream = take("downstream_coef", "downstream_hooks")
    own = {
        "e2e": shared | kl | reconstruction,
        "e2e_downstream": shared | kl | reconstruction | downstream,
        "finetune_kl": shared,
    }
    name = old.get("objective", "local")
    new["objectives"] = {name: own[name]} if name in own else {}
    return new | old


def fingerprints_of_1(facts: dict, process_weights: bool) -> dict[str, str]:
    """What the one fingerprint of a run or an export without `fingerprints` says: that of its language model's weights.

    It ends with it, but is of the weights after their processing, if they were processed. That of its text depended on
    how the text was cut, and that of files of activations on when they were written: both say nothing now.
    """
    _, dash, model = (facts.get("data_fingerprint") or "").partition("-")
    return {"model": model} if dash and not process_weights else {}


def _renamed(group: dict, names: dict[str, str]) -> dict:
    return {names.get(name, name): value for name, value in group.items()}


def config_of_about_1(about: dict, spec: dict, source: str) -> dict:
    """The configuration (format 2) of an export that holds none, from the facts that it says.

    Raises BadInput, which names `source`, for what is missing.
    """
    training, optional = ("objective", "tokens", "batch_size", "lr", "seed", "ema"), ("sparsity", "error_unit")
    sae = ("penalty", "p", "bandwidth", "target_l0")
    needed = ("lm", "hook", "process_weights", "text", "activations", "context", "n", "steps", "mse_scale", *training)
    if missing := [name for name in (*needed, "dead_fraction") if name not in about]:
        raise BadInput(f"{source} does not say {', '.join(missing)}, so it is not known what to evaluate it on")
    return config_from_1(
        {
            "model": {
                "lm": about["lm"] or "embedded",
                "hook": about["hook"],
                "process_weights": about["process_weights"],
            },
            "data": {
                "text": about["text"] or ["stdlib"],
                "activations": about["activations"],
                "context": about["context"],
                "skip_first": about.get("skip_first", False),
            },
            "sae": {"n": about["n"], **spec, **{name: about[name] for name in sae if name in about}},
            "training": {name: about[name] for name in (*training, *optional) if name in about},
        }
    )
