"""Networks with adapters and hooks, for tests that both take effect."""

import copy

import torch
from torch import Tensor, nn


class Adapted(nn.Module):
    """A layer and another one beside it, as adapters such as LoRA put there."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.beside = layer, copy.deepcopy(layer)
        nn.init.normal_(self.beside.weight, std=0.1)
        self.beside.bias = None

    def forward(self, x: Tensor, *args) -> Tensor:
        return self.layer(x, *args) + self.beside(x, *args)


def adapt(network: nn.Module) -> nn.Module:
    """Put adapters around all layers with a matrix.

    Returns:
        The plain network with the sum of weights.
    """
    merged = copy.deepcopy(network)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            adapted = Adapted(layer)
            network.set_submodule(name, adapted)
            merged.get_submodule(name).weight.data += adapted.beside.weight.data
    return merged


def assert_hooks_fire(network: nn.Module, *args) -> None:
    """Hooks on every layer without children fire, before and after it; the result stays."""
    plain, called = network(*args), []
    layers = {name: layer for name, layer in network.named_modules() if not list(layer.children())}
    handles = []
    for name, layer in layers.items():
        handles.append(
            layer.register_forward_pre_hook(lambda _, inputs, name=name: called.append(name))
        )
        handles.append(
            layer.register_forward_hook(lambda _, inputs, out, name=name: called.append(name))
        )
    hooked = network(*args)
    for handle in handles:
        handle.remove()
    for name in layers:
        assert called.count(name) >= 2, f'{name} has {called.count(name)} calls of hooks'
    torch.testing.assert_close(hooked, plain)
