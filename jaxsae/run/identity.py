"""What a run reads is told by what it holds: fingerprints of text, tokenizer and model, or of activations.

Names and places may change: a moved text is the same text.
"""

import hashlib
from collections.abc import Collection, Sequence

from jaxsae import compatibility
from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.data import text
from jaxsae.errors import BadInput

# {fingerprint: (the field of the configuration that names it, what it is of)}
KINDS = {
    "text": ("text", "the text"),
    "tokenizer": ("lm", "the tokenizer of"),
    "model": ("lm", "the weights of"),
    "activations": ("activations", "the activations in"),
}


def digest(text: str) -> str:
    """The fingerprint of a text of any length."""
    return short(hashlib.sha256(text.encode()).hexdigest())


def short(fingerprint: str) -> str:
    """As many digits of a long one as are kept."""
    return fingerprint[:20]


def of_text(sources: Sequence[str]) -> str:
    """The fingerprint of what text sources hold."""
    return short(text.fingerprint(sources))


def saved(facts: dict, process_weights: bool) -> dict[str, str]:
    """The fingerprints in manifest.json, or in what an export says of itself; those of older versions say less."""
    return facts.get("fingerprints") or compatibility.fingerprints_of_1(facts, process_weights)


def changed(was: dict[str, str], now: dict[str, str]) -> list[str]:
    """The kinds of which both have a fingerprint, and another one."""
    return [kind for kind in KINDS if kind in was and kind in now and was[kind] != now[kind]]


def same_data(was: dict[str, str], now: dict[str, str]) -> bool:
    """Whether both are known to have read the same text, or the same activations."""
    return any(kind in was and was[kind] == now.get(kind) for kind in ("text", "activations"))


def fields(kinds: Collection[str]) -> set[str]:
    """The fields of a configuration that name what has such fingerprints."""
    return {KINDS[kind][0] for kind in kinds}


def described(kinds: Collection[str], config: Config, was: dict[str, str], now: dict[str, str]) -> str:
    """What of `config` differs, in words."""
    values = configs.fields_of(config)
    name = lambda field: values[field] if isinstance(values[field], str) else " ".join(values[field])
    return ", ".join(
        f"{KINDS[kind][1]} {name(KINDS[kind][0])} (its fingerprint is {now[kind]}, not {was[kind]})" for kind in kinds
    )


def check_same(was: dict[str, str], now: dict[str, str], config: Config, asked: Collection[str], whose: str):
    """Raises BadInput if something at hand is other than what `whose` was trained on, but for what was `asked` for.

    `asked` are fields of the configuration: text, lm, activations.
    """
    differ = [kind for kind in changed(was, now) if KINDS[kind][0] not in asked]
    if differ:
        flags = " and ".join(sorted(map(configs.flag_of, fields(differ))))
        raise BadInput(
            f"{whose} was not trained on {described(differ, config, was, now)}: give {flags} with the place of what it "
            f"was trained on, or, to use what is there now, type {flags} with the same name"
        )
