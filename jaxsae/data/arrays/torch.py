"""Plain tensors of torch.save, memory-mapped, without torch (jaxsae/io/torch_files.py)."""

from jaxsae.io.torch_files import tensors as read

__all__ = ["read"]
