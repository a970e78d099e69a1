"""The target half of algorithms that learn from their own moving average."""

import copy

import torch
from torch import nn


class TargetNetwork(nn.Module):
    """Copies of online modules that follow them as an exponential moving average.

    They are always in eval mode and nothing but `follow` moves them. Their weights are
    buffers, not parameters: saved with the algorithm, but out of reach of gradients,
    optimisers and distributed wrappers.

    Args:
        **online: the modules to copy, under the names they have in the algorithm; `follow`
            finds them there by the same names.
    """

    def __init__(self, **online: nn.Module) -> None:
        super().__init__()
        for name, module in online.items():
            self.add_module(name, copy.deepcopy(module))
        for module in self.modules():
            for name, param in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, param.detach())
        self.eval()

    def train(self, mode: bool = True) -> 'TargetNetwork':
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, algorithm: nn.Module, momentum: float) -> None:
        """Move every weight to ``momentum * target + (1 - momentum) * online``.

        What is a buffer in the online modules, such as running statistics, is copied.

        Args:
            algorithm: holds the online modules.
            momentum: the share of the old value, in [0, 1].
        """
        for name, module in self.named_children():
            online, target = getattr(algorithm, name), dict(module.named_buffers())
            weights = dict(online.named_parameters())
            torch._foreach_lerp_(
                [target[key] for key in weights], list(weights.values()), 1 - momentum
            )
            for key, value in online.named_buffers():
                target[key].copy_(value)
