"""The layout of MinkowskiEngine's weights, in which official code saves sparse networks."""

from torch import Tensor


def dense(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring kernels, biases and GRN of that layout to the shapes of ordinary layers.

    Kernels ``(K², in, out)``, or ``(K², C)`` if depth-wise, have the column of the window
    running slowest; biases and GRN's parameters have extra axes of length 1.

    Args:
        weights: in our names, with ``.kernel`` where such a layer has its weight.
    """
    converted = {}
    for name, value in weights.items():
        if name.endswith('.kernel'):
            name = name.removesuffix('kernel') + 'weight'
            value = _conv_weight(value, 'depthwise' in name)
        elif name.endswith(('.bias', '.gamma', '.beta')):
            value = value.flatten()
        converted[name] = value
    return converted


def _conv_weight(kernel: Tensor, depthwise: bool) -> Tensor:
    """A kernel of MinkowskiEngine as (out, in, K, K), or (C, 1, K, K) if depth-wise."""
    if depthwise:
        kernel = kernel[:, None]  # (K², C) -> (K², 1, C)
    elif kernel.ndim == 2:
        kernel = kernel[None]  # 1x1 kernels may come as (in, out)
    side = round(kernel.shape[0] ** 0.5)
    # (column, row, in, out) -> (out, in, row, column)
    return kernel.unflatten(0, (side, side)).permute(3, 2, 1, 0).contiguous()
