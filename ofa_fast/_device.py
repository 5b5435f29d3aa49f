"""A device by its name, if this machine has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def usable(name: str | torch.device) -> torch.device:
    """
    Raises:
        ValueError: torch does not know such a device, or finds none here.
    """
    import torch

    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # the former is what torch without CUDA says of "cuda"
        reason = str(error).split("\n")[0].strip().rstrip(".")
        raise ValueError(f"device: {str(name)!r} cannot be used here ({reason}); 'cpu' always can") from None
