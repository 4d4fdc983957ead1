"""Whether a device still works after an error."""

import torch


def serves(device: torch.device) -> bool:
    """False after errors that make every later call on a GPU fail, such as an illegal access to memory."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        return torch.ones(1, device=device).item() == 1
    except RuntimeError:
        return False
