"""Qwen-Scope: `layerL.sae.pt`, a dict of W_enc [n, d], W_dec [d, n], b_enc, b_dec.

    u = W_enc x + b_enc;   xhat = relu(the k largest of u) W_dec + b_dec

k is only in the name of the repository (`-L0_50`), so it must be given: `--sae.k 50`.
"""

import re
from pathlib import Path

from jaxsae.interop import reading
from jaxsae.interop.interface import Format, Given
from jaxsae.io import torch_files
from jaxsae.sae.types import SAE, Spec

NAME = re.compile(r"layer(\d+)\.sae\.pt")


def recognises(path: Path) -> Path | None:
    file = reading.only_file(path, "layer*.sae.pt")
    return file if file is not None and NAME.fullmatch(file.name) else None


def read(file: Path, given: Given) -> tuple[SAE, dict]:
    tensors = torch_files.load(file)
    W_enc, b_enc, W_dec, b_dec = reading.take(tensors, ("W_enc", "b_enc", "W_dec", "b_dec"), file)
    reading.check_axes(file, W_dec=W_dec)
    spec = Spec("topk", given.resolve("k", None, file), "none", "free", False)
    sae = reading.made(spec, file, W_enc, b_enc, W_dec.T, b_dec)
    hook = f"blocks.{NAME.fullmatch(file.name)[1]}.hook_resid_post"
    return sae, reading.about(sae, "qwen_scope", given.places(hook, None, None, file))


FORMAT = Format(recognises, read)
