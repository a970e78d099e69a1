import pytest
import torch

from tests.masks import expand, random_mask
from videomac_mm.sparse import VisiblePatches
from videomac_mm.sparse.geometry import halo_places, window_rows


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


@pytest.mark.parametrize(
    'side, kernel, stride, before', [(2, 3, 1, 1), (4, 3, 2, 1), (1, 5, 1, 2), (2, 8, 2, 3)]
)
def test_window_rows__are_what_windows_of_the_map_see(side, kernel, stride, before):
    patches = VisiblePatches(random_mask(2, (3, 4), 5))
    numbers = torch.arange(10.0 * side**2).view(10, side, side, 1).permute(0, 3, 1, 2)
    maps = torch.nn.functional.pad(patches.unpack(numbers, -1.0), (before, kernel) * 2, value=-1.0)
    windows = maps.unfold(2, kernel, stride).unfold(3, kernel, stride)[:, 0]
    num = side // stride
    tiles = windows[:, : 3 * num, : 4 * num].unflatten(2, (4, num)).unflatten(1, (3, num))
    wanted = tiles.permute(0, 1, 3, 2, 4, 5, 6)[~patches.mask].reshape(-1, kernel**2)

    rows = window_rows(patches.neighbours(3), side, kernel, stride, before)

    assert torch.equal(rows, wanted.long())


@pytest.mark.parametrize('side, before, after', [(2, 1, 1), (4, 3, 2), (1, 3, 3), (2, 3, 0)])
def test_halo_places__are_window_rows_reversed(side, before, after):
    near = VisiblePatches(random_mask(2, (3, 4), 5)).neighbours(3)
    size = before + side + after
    rows = window_rows(near, side, size, side, before).flatten()
    places = halo_places(near, side, before, after)

    assert places.shape == (10 * side**2, (-(-size // side)) ** 2)
    seen = {(row, place) for place, row in enumerate(rows.tolist()) if row >= 0}
    found = [(row, place) for row, line in enumerate(places.tolist()) for place in line]
    found = [pair for pair in found if pair[1] >= 0]
    assert len(found) == len(seen) and set(found) == seen


def test_errors__name_what_was_given():
    with pytest.raises(TypeError, match='bool.*got torch.float32'):
        VisiblePatches(torch.zeros(1, 2, 2))
    with pytest.raises(TypeError, match='must be bool .*, a tensor, got list'):
        VisiblePatches.of([[[True, False]]])
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
    patches = VisiblePatches(random_mask(2, (2, 3), 2))
    everything = patches.everything()
    wanted = VisiblePatches(torch.zeros(2, 2, 3, dtype=torch.bool))
    maps = torch.randn(2, 4, 4, 6)

    assert patches.everything() is everything
    assert everything.num_visible == everything.num_patches == 6
    assert torch.equal(everything.pack(maps), wanted.pack(maps))
    assert torch.equal(everything.neighbours(1), wanted.neighbours(1))


def test_geometry__of_fake_tensors_leaves_nothing_behind():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    mask = random_mask(2, (2, 3), 2)
    with FakeTensorMode() as mode:
        fake = VisiblePatches.with_count(mode.from_tensor(mask), 2).everything()
        assert isinstance(fake.neighbours(1), FakeTensor)
    assert not isinstance(VisiblePatches(mask).everything().neighbours(1), FakeTensor)


@pytest.mark.parametrize('grid', [(3, 4), (2, 3, 4)])
def test_visible_and_hidden__are_the_places_of_the_mask(grid):
    mask = random_mask(3, grid, 5)
    checked, counted = VisiblePatches(mask), VisiblePatches.with_count(mask, 5)
    for patches in (checked, counted):
        assert patches.visible.tolist() == (~mask).flatten().nonzero().flatten().tolist()
        assert patches.hidden.tolist() == mask.flatten().nonzero().flatten().tolist()
        assert (patches.grid, patches.num_visible) == (grid, 5)


def test_frames__are_the_time_slots_of_clips():
    slot = random_mask(2, (2, 3), 2)
    mask = slot[:, None].expand(-1, 4, -1, -1)
    checked = VisiblePatches(mask).frames()
    told = VisiblePatches.with_count(mask, 8).with_even_frames().frames()
    for frames in (checked, told):
        assert (frames.batch_size, frames.grid, frames.num_visible) == (8, (2, 3), 2)
        assert torch.equal(frames.mask, mask.flatten(0, 1))
    uneven = torch.tensor([[[[True, False]], [[False, False]]]])
    with pytest.raises(ValueError, match=r'same number of patches, got \[1, 2\]'):
        VisiblePatches(uneven).frames()


def test_with_count__asks_the_device_for_nothing(monkeypatch):
    mask = random_mask(2, (3, 3), 4)
    maps = torch.randn(2, 3, 6, 6, device='meta')  # which cannot answer
    patches = VisiblePatches.with_count(mask.to('meta'), 4)
    patches.unpack(patches.pack(maps)), patches.neighbours(1), patches.everything().neighbours(3)
    with pytest.raises((NotImplementedError, RuntimeError), match='meta'):
        VisiblePatches(mask.to('meta'))
