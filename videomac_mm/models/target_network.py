"""The target half of algorithms that learn from their own moving average."""

import copy

import torch
from torch import nn


class TargetNetwork(nn.Module):
    """Copies of online modules that follow them as an exponential moving average.

    They are always in eval mode, take no gradient, and are saved with the algorithm.
    Nothing but `follow` moves them.

    Args:
        **online: the modules to copy, under the names they have in the algorithm; `follow`
            finds them there by the same names.
    """

    def __init__(self, **online: nn.Module) -> None:
        super().__init__()
        for name, module in online.items():
            self.add_module(name, copy.deepcopy(module))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> 'TargetNetwork':
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, algorithm: nn.Module, momentum: float) -> None:
        """Move every parameter to ``momentum * target + (1 - momentum) * online``.

        Buffers, such as running statistics, are copied.

        Args:
            algorithm: holds the online modules.
            momentum: the share of the old value, in [0, 1].
        """
        for name, target in self.named_children():
            online = getattr(algorithm, name)
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)
            for old, new in zip(target.buffers(), online.buffers()):
                old.copy_(new)
