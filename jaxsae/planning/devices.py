"""Published figures of accelerators, and topologies by name: `v5p:4x4x4`, `h100:8`, `h100:2x8`.

Bytes, bytes a second and FLOPs a second, of one JAX device. A link is what one device sends at once along one axis of
the mesh.
"""

import math
import re
from dataclasses import dataclass

from jaxsae.errors import BadInput
from jaxsae.precision import Precision

GIB, GB, TERA = 2**30, 1e9, 1e12


@dataclass(frozen=True)
class Device:
    kind: str
    """`tpu` or `gpu`."""
    memory: float
    """Bytes that JAX can use."""
    bandwidth: float
    """Of the memory, bytes a second."""
    matmul: dict[Precision, float]
    """FLOPs a second of dense matrix products, by how they are computed."""
    link: float
    """Bytes a second to the neighbours along one mesh axis, in one direction each."""
    network: float | None
    """Bytes a second between hosts; None where none is published."""
    axes: int
    """Numbers in a topology's shape: 2 or 3 of a TPU's torus, 1 of a GPU host."""
    jax_name: str
    """How `Device.device_kind` begins."""
    per_chip: int = 1
    """JAX devices of a chip."""


def _tpu(usable_gib, bandwidth, bf16, link, network, axes, jax_name, per_chip=1):
    # A float32 product at precision `highest` is 6 bfloat16 passes, at `high` 3 (jax.lax.Precision's documentation).
    # Link: of one connection in one direction; a ring along an axis of the torus sends both ways at once.
    peaks = {"float32": bf16 / 6 * TERA, "tf32": bf16 / 3 * TERA, "bfloat16": bf16 * TERA}
    rate = 2 * link * GB / per_chip
    return Device("tpu", usable_gib * GIB, bandwidth * GB, peaks, rate, network * GB / 8, axes, jax_name, per_chip)


def _gpu(gb, bandwidth, fp32, tf32, bf16, link, network, jax_name):
    # JAX takes three quarters of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
    # (https://docs.jax.dev/en/latest/gpu_memory_allocation.html). Peaks are without sparsity.
    peaks = {"float32": fp32 * TERA, "tf32": tf32 * TERA, "bfloat16": bf16 * TERA}
    network = network and network * GB / 8
    return Device("gpu", 0.75 * gb * GB, bandwidth * GB, peaks, link * GB, network, 1, jax_name)


# Arguments of _tpu: usable GiB (what libtpu 0.0.42's compiler has of the 32, 16, 95, 32 and 192 GiB of a chip), GB/s
# of HBM, bfloat16 TFLOP/s, GB/s of one ICI connection in one direction, Gbit/s of the data centre network per chip.
# Arguments of _gpu: GB, GB/s, TFLOP/s float32, TF32 and bfloat16, GB/s to other GPUs of the host in one direction,
# Gbit/s per GPU between hosts.
DEVICES: dict[str, Device] = {
    # https://docs.cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 1200 GB/s, 6 connections of 50 GB/s (Jouppi et al. 2023,
    # arXiv:2304.01433, table 4). Network: 100 Gbit/s of a host of 4 chips.
    "v4": _tpu(30.75, 1200, 275, 50, 25, 3, "TPU v4"),
    # https://docs.cloud.google.com/tpu/docs/v5e: 4 ports, 400 GB/s in both directions; hosts of 8 chips, 2 x 100 Gbit/s
    "v5e": _tpu(15.75, 819, 197, 50, 25, 2, "TPU v5 lite"),
    # https://docs.cloud.google.com/tpu/docs/v5p: 1200 GB/s in both directions, over 6 connections
    "v5p": _tpu(95.74, 2765, 459, 100, 50, 3, "TPU v5"),
    # https://docs.cloud.google.com/tpu/docs/v6e: 4 ports, 800 GB/s in both directions
    "v6e": _tpu(31.25, 1638, 918, 100, 100, 2, "TPU v6 lite"),
    # https://docs.cloud.google.com/tpu/docs/tpu7x: 192 GiB, 7380 GB/s, 2307 TFLOP/s, 1200 GB/s over 6 connections of a
    # chip that is two JAX devices.
    "tpu7x": _tpu(94.75, 7380 / 2, 2307 / 2, 100, 100 / 2, 3, "TPU7x", per_chip=2),
    # NVIDIA A100 datasheet (SXM); DGX A100: 200 Gbit/s per GPU
    "a100-40": _gpu(40, 1555, 19.5, 156, 312, 300, 200, "NVIDIA A100-SXM4-40GB"),
    "a100-80": _gpu(80, 2039, 19.5, 156, 312, 300, 200, "NVIDIA A100-SXM4-80GB"),
    # NVIDIA H100 datasheet (SXM); DGX H100: 400 Gbit/s per GPU
    "h100": _gpu(80, 3350, 67, 494.5, 989.5, 450, 400, "NVIDIA H100 80GB"),
    # NVIDIA H200 datasheet (SXM)
    "h200": _gpu(141, 4800, 67, 494.5, 989.5, 450, 400, "NVIDIA H200"),
    # NVIDIA HGX B200 (datasheet and Blackwell architecture brief, at 1000 W); DGX B200: 400 Gbit/s per GPU
    "b200": _gpu(180, 7700, 80, 1100, 2250, 900, 400, "NVIDIA B200"),
    # NVIDIA L4 datasheet, PCIe Gen4 x16; Google Cloud g2-standard-96: 100 Gbit/s for 8
    "l4": _gpu(24, 300, 30.3, 60, 121, 32, 12.5, "NVIDIA L4"),
    # NVIDIA Ada architecture whitepaper, appendix A (bfloat16 with float32 accumulation); PCIe Gen4 x16
    "rtx4090": _gpu(24, 1008, 82.6, 82.6, 165.2, 32, None, "NVIDIA GeForce RTX 4090"),
}

EXAMPLES = "v5e:4x4, v5p:4x4x4, h100:8, or h100:2x8 for two hosts of 8"


@dataclass(frozen=True)
class Topology:
    name: str
    device: Device
    shape: tuple[int, ...]
    count: int
    """JAX devices."""
    per_host: int
    """Devices between which links lead: all of a TPU slice, those of a GPU host."""


def topology(name: str) -> Topology:
    """The topology called `name`. Raises BadInput for a name that says none."""
    kind, _, shape = name.lower().partition(":")
    if kind not in DEVICES:
        raise BadInput(f"--topology {name}: there is no device {kind!r} here; allowed are {', '.join(DEVICES)}")
    device = DEVICES[kind]
    allowed = {1: (1, 2), 2: (2,), 3: (3,)}[device.axes]
    numbers = tuple(int(part) for part in shape.split("x")) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) else ()
    if len(numbers) not in allowed:
        form = {1: "N devices of a host, or HOSTSxN", 2: "AxB chips", 3: "AxBxC chips"}[device.axes]
        raise BadInput(f"--topology {name}: {shape!r} is no size of {kind}; it is {form}, such as {EXAMPLES}")
    if device.kind == "gpu" and len(numbers) == 2 and numbers[0] > 1 and device.network is None:
        raise BadInput(f"--topology {name}: no network between hosts is published for {kind}; give {kind}:{numbers[1]}")
    count = math.prod(numbers) * device.per_chip
    return Topology(f"{kind}:{shape}", device, numbers, count, count if device.kind == "tpu" else numbers[-1])


def topology_of(device_kind: str, count: int, hosts: int) -> Topology:
    """The topology of `count` devices of JAX's kind `device_kind` on `hosts` hosts. Raises BadInput for other kinds."""
    # Longest first: "TPU v5" begins "TPU v5 lite" too.
    for name, device in sorted(DEVICES.items(), key=lambda item: -len(item[1].jax_name)):
        if device_kind.startswith(device.jax_name):
            if device.kind == "gpu":
                return topology(f"{name}:{hosts}x{count // hosts}" if hosts > 1 else f"{name}:{count}")
            chips = count // device.per_chip
            return topology(f"{name}:{'x'.join(map(str, _torus(chips, device.axes)))}")
    raise BadInput(
        f"--topology is not given, and nothing is known here of {device_kind!r}: give one, such as {EXAMPLES}"
    )


def _torus(chips: int, axes: int) -> tuple[int, ...]:
    """The most even shape of so many chips, small numbers first."""
    if axes == 1:
        return (chips,)
    first = max(a for a in range(1, chips + 1) if chips % a == 0 and a**axes <= chips)
    return (first, *_torus(chips // first, axes - 1))
