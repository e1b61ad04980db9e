"""The ways in which each library's step is run."""

from dataclasses import dataclass

JAXSAE = "jaxsae"


@dataclass(frozen=True)
class Variant:
    """A way to run a library's step."""

    peer: str
    name: str
    precision: str = "float32"
    sparse: bool = False
    triton: bool = True

    @property
    def env(self) -> dict[str, str]:
        # JAX must leave the others some of the device's memory. OpenMP's waiting policy is left as it is: a worker that
        # waits uses no time of the CPU, and with OMP_WAIT_POLICY=passive the steps themselves are slower.
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return shared | ({} if self.triton else {"SPARSIFY_DISABLE_TRITON": "1"})

    @property
    def module(self) -> str:
        return f"benchmarks.peers.{self.peer.replace('-', '_')}_worker"


def variants(device: str) -> list[Variant]:
    """What is measured on "cpu" or "cuda"."""
    found = [
        Variant(JAXSAE, "float32 selection"),
        Variant(JAXSAE, "bfloat16 selection", "bfloat16"),
        Variant("sparsify", "core"),
        Variant("saelens", "core"),
        Variant("saelens", "core, sparse codes", sparse=True),
        Variant("dictionary-learning", "core"),
    ]
    if device == "cpu":
        return found
    return [
        *found,
        Variant("sparsify", "core, no Triton", triton=False),
        Variant("sparsify", "core, bfloat16 autocast", "bfloat16"),
        Variant("sparsify", "core, bfloat16 autocast, no Triton", "bfloat16", triton=False),
        Variant("saelens", "core, bfloat16 autocast", "bfloat16"),
        Variant("dictionary-learning", "core, bfloat16 autocast", "bfloat16"),
    ]
