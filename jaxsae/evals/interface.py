"""What an evaluation is to the rest of the package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxsae.evals.subject import Subject
from jaxsae.flags import NoFlags


@dataclass(frozen=True)
class Evaluation:
    """One entry of the registry.

    run(subject, config)    -> {metric: number}, nested if that is natural; `config` is a `Config`, and the subject's
                            mesh is set
    protocol                how the numbers are measured, in words
    check(subject, config)  raises BadInput if they cannot be measured there
    figure(result, path)    draws what `run` returned; of `standard`, all that eval.json says
    meanings                {metric: what it means, what is good, what it cannot tell}, for the page
    coders                  what it can be measured of: autoencoder, transcoder, crosscoder
    apart                   keys of lists that `run` returned, which are written to files of their own, NAME.KEY.json
                            beside the figures, and not into eval.json
    """

    run: Callable[[Subject, Any], dict]
    protocol: str
    Config: type = NoFlags
    needs_lm: bool = False
    coders: tuple[str, ...] = ("autoencoder",)
    check: Callable[[Subject, Any], None] = lambda subject, config: None
    figure: Callable[[dict, Path], None] | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)
    apart: tuple[str, ...] = ()
