import pytest
import torch

from tests.masks import random_mask
from videomac_mm.sparse import VisiblePatches
from videomac_mm.sparse.ops import halo


@pytest.mark.parametrize('before, after', [(1, 1), (3, 3), (1, 0), (3, 2), (5, 5)])
@pytest.mark.parametrize('side', [1, 2, 4])
def test_halo__is_the_window_of_the_zero_filled_maps(side, before, after):
    mask = random_mask(2, (4, 3), 5)
    patches = VisiblePatches(mask)
    tiles = torch.randn(10, 3, side, side, dtype=torch.float64, requires_grad=True)
    maps = torch.nn.functional.pad(patches.unpack(tiles), (before, after, before, after))
    size = before + side + after
    windows = maps.unfold(2, size, side).unfold(3, size, side)  # (B, C, h, w, q, q)
    wanted = windows.permute(0, 2, 3, 1, 4, 5)[~mask]
    found = halo(tiles, patches.neighbours(5), before, after)
    torch.testing.assert_close(found, wanted)

    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, tiles, upstream), torch.autograd.grad(wanted, tiles, upstream)
    )


def test_halo__of_a_fully_visible_image_sees_all_neighbours():
    patches = VisiblePatches(torch.zeros(1, 3, 3, dtype=torch.bool))
    found = halo(torch.ones(9, 1, 2, 2), patches.neighbours(1), 2, 2, fill=-7.0)
    assert found[4].eq(1).all()
    assert found[0, 0, :2].eq(-7).all()


def test_halo__is_linear_with_its_adjoint():
    near = VisiblePatches(random_mask(1, (2, 3), 4)).neighbours(1)
    tiles = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: halo(x, near, 1, 2), tiles)
    assert torch.autograd.gradgradcheck(lambda x: halo(x, near, 1, 2).square(), tiles)


def test_operators__are_what_torch_expects():
    near, ops = VisiblePatches(random_mask(2, (3, 3), 4)).neighbours(1), torch.ops.videomac_mm
    torch.library.opcheck(
        ops.halo.default, (torch.randn(8, 3, 2, 2, requires_grad=True), near, 1, 2, 0.0)
    )
    grad = torch.randn(8, 3, 5, 5, requires_grad=True)
    torch.library.opcheck(ops.halo_adjoint.default, (grad, near, 1, 2))


def test_halo__refuses_what_does_not_fit():
    near = VisiblePatches(random_mask(2, (3, 3), 4)).neighbours(1)
    with pytest.raises(ValueError, match=r'tiles of shape \(8, 3, 2, 4\)'):
        halo(torch.ones(8, 3, 2, 4), near, 1, 1)
    with pytest.raises(ValueError, match='before=-1'):
        halo(torch.ones(8, 3, 2, 2), near, -1, 1)
    with pytest.raises(ValueError, match='reach . 2 >= 3'):
        halo(torch.ones(8, 3, 2, 2), near, 3, 1)
    with pytest.raises(TypeError, match='neighbours must .* got torch.int64'):
        halo(torch.ones(8, 3, 2, 2), near.long(), 1, 1)
