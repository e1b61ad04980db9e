"""Token ids of what a tokenizer calls bos, eos and pad."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.lm.model import LM
from jaxsae.lm.tokenizer import load_tokenizer


def token_ids(lm: LM, names: Sequence[str]) -> tuple[int, ...]:
    """The ids of `names`, each bos, eos, pad or an id as text, in order and each once.

        token_ids(lm, ["eos", "7"])     # (7, 50256) of GPT-2

    A name that the tokenizer has no token for gives none, and a line on stderr: such a token occurs in no text. Raises
    BadInput for an id outside the vocabulary.
    """
    ids, size = set(), lm.config.vocab_size
    for name in names:
        token = int(name) if name.isdecimal() else special_token(lm, name)
        if token is None:
            # Padding is left out anyway.
            if name != "pad" and processes.is_primary():
                print(f"jaxsae: --skip-tokens {name} leaves out nothing: the tokenizer has no {name}", file=sys.stderr)
        elif token >= size:
            raise BadInput(f"--skip-tokens {token} is outside the model's vocabulary: ids go from 0 to {size - 1}")
        else:
            ids.add(token)
    return tuple(sorted(ids))


def special_token(lm: LM, name: str) -> int | None:
    """The id of bos, eos or pad: as tokenizer_config.json has it, else config.json, else as contexts are packed."""
    tokenizer, folder = load_tokenizer(lm), Path(lm.folder)
    token = _read(folder / "tokenizer_config.json").get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    own = None if token is None else tokenizer.backend.token_to_id(token)
    packed = {"bos": tokenizer.bos, "eos": tokenizer.end_of_text}
    known = (own, _read(folder / "config.json").get(f"{name}_token_id"), packed.get(name))
    # Some models name several tokens that end a text: then the tokenizer's own is meant, or the first.
    ids = [i[0] if isinstance(i, list) and i else i for i in known]
    return next((i for i in ids if isinstance(i, int) and i >= 0), None)


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
