"""MinkowskiEngine's kernels as weights of ordinary convs."""

import pytest
import torch
import torch.nn.functional as F

from videomac_mm.weights import from_videomac


@pytest.mark.parametrize(
    'key, side, stride',
    [
        ('encoder.stages.0.0.dwconv.kernel', 7, 1),
        ('encoder.layer1.0.conv1.kernel', 3, 1),
        ('encoder.layer2.0.conv1.kernel', 3, 2),
        ('encoder.layer2.0.downsample.0.kernel', 1, 2),
        ('encoder.downsample_layers.1.1.kernel', 2, 2),
    ],
)
def test_kernels__give_the_outputs_of_the_official_convs(key, side, stride):
    """Against a sum over the offsets of a window, as MinkowskiEngine computes it."""
    depthwise = 'dwconv' in key
    kernel = torch.randn(side**2, *((4,) if depthwise else (4, 5)), dtype=torch.float64)
    (weight,) = from_videomac({key: kernel}).values()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    reach = side // 2 if side % 2 else 0  # odd windows are centred, even ones begin here
    out = F.conv2d(x, weight, stride=stride, padding=reach, groups=4 if depthwise else 1)

    padded = F.pad(x[0], (reach,) * 4)
    wanted = torch.zeros_like(out[0])
    for k, entry in enumerate(kernel):
        row, column = k % side, k // side
        seen = padded[:, row : row + 8 : stride, column : column + 8 : stride]
        wanted += torch.einsum('ihw,i->ihw' if depthwise else 'ihw,io->ohw', seen, entry)
    torch.testing.assert_close(out[0], wanted)
