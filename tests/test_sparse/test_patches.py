import pytest
import torch

from tests.masks import expand, random_mask
from videomac_mm.sparse import VisiblePatches


@pytest.mark.parametrize('side', [1, 3, 8])
def test_pack_unpack__round_trip_keeps_visible_and_zeroes_hidden(side):
    mask = random_mask(2, (3, 4), 5)
    maps = torch.randn(2, 6, 3 * side, 4 * side)
    patches = VisiblePatches(mask)
    tiles = patches.pack(maps)
    assert tiles.shape == (10, 6, side, side)
    assert tiles.is_contiguous(memory_format=torch.channels_last)
    hidden = expand(mask, maps.shape[-2:])
    torch.testing.assert_close(patches.unpack(tiles), maps.masked_fill(hidden, 0.0))
    torch.testing.assert_close(patches.unpack(tiles, 7.0), maps.masked_fill(hidden, 7.0))


def test_pack__orders_tiles_by_image_row_and_column():
    mask = torch.tensor([[[True, False], [False, True]], [[False, True], [True, False]]])
    maps = torch.arange(8.0).view(2, 1, 2, 2)
    assert VisiblePatches(mask).pack(maps).flatten().tolist() == [1, 2, 4, 7]


@pytest.mark.parametrize('before, after', [(1, 1), (3, 3), (1, 0), (3, 2), (5, 5)])
@pytest.mark.parametrize('side', [1, 2, 4])
def test_halo__is_the_window_of_the_zero_filled_canvas(side, before, after):
    mask = random_mask(2, (4, 3), 5)
    patches = VisiblePatches(mask)
    tiles = torch.randn(10, 3, side, side, dtype=torch.float64, requires_grad=True)
    canvas = torch.nn.functional.pad(patches.unpack(tiles), (before, after, before, after))
    size = before + side + after
    windows = canvas.unfold(2, size, side).unfold(3, size, side)  # (B, C, h, w, q, q)
    wanted = windows.permute(0, 2, 3, 1, 4, 5)[~mask]
    halo = patches.halo(tiles, before, after)
    torch.testing.assert_close(halo, wanted)

    upstream = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(halo, tiles, upstream), torch.autograd.grad(wanted, tiles, upstream)
    )


def test_halo__of_a_fully_visible_image_sees_all_neighbours():
    patches = VisiblePatches(torch.zeros(1, 3, 3, dtype=torch.bool))
    halo = patches.halo(torch.ones(9, 1, 2, 2, requires_grad=True), 2, 2)
    assert halo[4].eq(1).all()
    assert halo[0, 0, :2].eq(0).all()


@pytest.mark.parametrize('reach', [1, 3])
def test_neighbours__are_the_visible_tiles_of_the_same_image(reach):
    mask = random_mask(3, (3, 4), 5)
    patches = VisiblePatches(mask)
    table, across = patches.neighbours(reach), range(-reach, reach + 1)
    assert table.shape == (15, (2 * reach + 1) ** 2) and table.dtype == torch.int32
    places = (~mask).nonzero().tolist()
    for tile, (image, row, column) in enumerate(places):
        around = [[image, row + y, column + x] for y in across for x in across]
        wanted = [places.index(place) if place in places else -1 for place in around]
        assert table[tile].tolist() == wanted
    # Who sees a tile is seen by it, from the opposite side.
    pairs = {(i, j, n) for i, row in enumerate(table.tolist()) for n, j in enumerate(row) if j >= 0}
    last = table.shape[1] - 1
    assert pairs == {(j, i, last - n) for i, j, n in pairs}
    assert patches.neighbours(reach) is table


@pytest.mark.parametrize('side, kernel, stride, before', [(2, 3, 1, 1), (4, 3, 2, 1), (1, 5, 1, 2)])
def test_pairs__are_the_sites_that_exist_in_windows(side, kernel, stride, before):
    patches = VisiblePatches(random_mask(2, (3, 4), 5))
    num = 10 * side**2
    numbers = torch.arange(num).view(10, side, side, 1).permute(0, 3, 1, 2).double()

    table, adjoint = patches.pairs(side, kernel, stride, before)

    windows = patches.windows(numbers, kernel, stride, before, fill=-1.0)
    assert table.dtype == adjoint.dtype == torch.int32
    assert torch.equal(table.double(), windows.reshape(-1, kernel**2))
    assert adjoint.shape == (num, kernel**2)
    pairs = {(row, tap, m) for m, line in enumerate(table.tolist()) for tap, row in enumerate(line)}
    there = {(n, tap, m) for n, line in enumerate(adjoint.tolist()) for tap, m in enumerate(line)}
    assert {pair for pair in pairs if pair[0] >= 0} == {pair for pair in there if pair[2] >= 0}
    assert patches.pairs(side, kernel, stride, before)[0] is table


def test_errors__name_what_was_given():
    with pytest.raises(TypeError, match='bool.*got torch.float32'):
        VisiblePatches(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r'got \(2, 2\)'):
        VisiblePatches(torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match='hides every patch'):
        VisiblePatches(torch.ones(1, 2, 2, dtype=torch.bool))
    unequal = torch.tensor([[[True, False]], [[False, False]]])
    with pytest.raises(ValueError, match=r'same number of patches, got \[1, 2\]'):
        VisiblePatches(unequal)
    patches = VisiblePatches(random_mask(1, (2, 2), 1))
    for shape in [(1, 3, 4, 5), (1, 3, 4, 8), (2, 3, 4, 4)]:
        with pytest.raises(ValueError, match='do not fit a mask of shape'):
            patches.pack(torch.zeros(shape))


def test_everything__is_a_mask_that_hides_nothing_made_once():
    device = torch.device('cpu')
    patches = VisiblePatches.everything(2, (2, 3), device)
    wanted = VisiblePatches(torch.zeros(2, 2, 3, dtype=torch.bool))
    maps = torch.randn(2, 4, 4, 6)

    assert VisiblePatches.everything(2, (2, 3), device) is patches
    assert patches.num_visible == wanted.num_visible == 6
    assert torch.equal(patches.pack(maps), wanted.pack(maps))
    assert torch.equal(patches.neighbours(1), wanted.neighbours(1))


def test_everything__in_inference_mode_does_not_stay_for_training():
    device = torch.device('cpu')
    with torch.inference_mode():
        VisiblePatches.everything(1, (3, 3), device).neighbours(1)

    table = VisiblePatches.everything(1, (3, 3), device).neighbours(1)

    assert not table.is_inference()
