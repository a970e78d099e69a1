"""Masks of clips, and the tokens that they leave; masks of frames are in test_videomac.py."""

import pytest
import torch
from torch import Tensor

from tests.masks import random_mask
from videomac_mm.models import RandomTubeletMask, TubeMask
from videomac_mm.models.masking import RandomPatchMask, StepNoise, pick, pick_shared
from videomac_mm.sparse import VisiblePatches

KINDS = [TubeMask, RandomTubeletMask]


def clips(num: int, frames: int = 16, height: int = 224, width: int = 224) -> Tensor:
    return torch.empty(1, 1, 1, 1, 1).expand(num, 3, frames, height, width)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('ratio, hidden', [(0.9, 176), (0.95, 186), (0.75, 147), (0.5, 98)])
def test_mask__hides_as_many_in_every_slot_and_rounds_as_the_paper(kind, ratio, hidden):
    mask = kind(mask_ratio=ratio)(clips(3)).mask
    assert mask.shape == (3, 8, 14, 14) and mask.dtype == torch.bool
    assert (mask.sum((2, 3)) == hidden).all()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('ratio', [0.03, 0.29, 0.58, 0.93])
def test_mask__of_other_sizes_follows_the_ratio(kind, ratio):
    mask = kind(patch_size=8, tubelet_size=3, mask_ratio=ratio)(clips(2, 15, 48, 80)).mask
    assert mask.shape == (2, 5, 6, 10)
    assert (mask.sum((2, 3)) == int(60 * ratio)).all()


@pytest.mark.parametrize('kind', KINDS)
def test_mask__samples_differ_and_all_patches_have_their_turn(kind):
    mask = kind()(clips(256, frames=4)).mask
    assert len({tuple(row.tolist()) for row in mask.flatten(1)}) == 256
    shares = mask.float().mean(0)  # of 256 draws with a probability of 176 / 196
    assert shares.min() > 0.8 and shares.max() < 0.98


def test_tube_mask__is_the_same_in_all_slots():
    mask = TubeMask()(clips(4)).mask
    assert (mask == mask[:, :1]).all()


def test_random_tubelet_mask__differs_from_slot_to_slot():
    mask = RandomTubeletMask()(clips(4)).mask
    assert len({tuple(row.tolist()) for row in mask.flatten(0, 1).flatten(1)}) == 4 * 8


@pytest.mark.parametrize('kind', KINDS)
def test_mask__is_reproducible_from_a_generator(kind):
    draw = kind()
    first, second = (draw(clips(3), torch.Generator().manual_seed(7)).mask for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw(clips(3), torch.Generator().manual_seed(8)).mask)
    state = torch.get_rng_state()
    draw(clips(3), torch.Generator())
    assert torch.equal(state, torch.get_rng_state())
    draw(clips(3))  # now torch's own
    assert not torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('kind', KINDS)
def test_grid__of_frames_and_pixels(kind):
    assert kind(8, 4).grid((8, 32, 48)) == (2, 4, 6)
    assert kind(8, 1).grid((1, 8, 8)) == (1, 1, 1)


@pytest.mark.parametrize('kind', KINDS)
def test_bad_arguments_and_sizes__are_named(kind):
    with pytest.raises(ValueError, match=r'mask_ratio must lie inside \(0, 1\), got 1.0'):
        kind(mask_ratio=1.0)
    with pytest.raises(ValueError, match='patch_size must be at least 1 pixel, got 0'):
        kind(patch_size=0)
    with pytest.raises(ValueError, match='tubelet_size must be at least 1 frame, got 0'):
        kind(tubelet_size=0)
    with pytest.raises(ValueError, match='15 frames are not divisible by tubelets of 2'):
        kind()(clips(1, frames=15))
    with pytest.raises(ValueError, match='224x220 is not divisible by the mask patches of 16'):
        kind()(clips(1, width=220))
    with pytest.raises(ValueError, match='mask_ratio 0.2 leaves 4 of 4 patches visible'):
        kind(mask_ratio=0.2)(clips(1, 2, 32, 32))


def test_check__names_what_is_wrong():
    draw, four = TubeMask(), clips(4, 4, 64, 32)
    mask = random_mask(4, (2, 4, 2), 3)
    assert torch.equal(draw.check(mask, four).mask, mask)  # any mask with as much of every sample
    patches = VisiblePatches(mask)
    assert draw.check(patches, four) is patches
    with pytest.raises(TypeError, match='mask must be bool .*torch.uint8'):
        draw.check(mask.byte(), four)
    with pytest.raises(ValueError, match=r'shape \(4, 2, 4, 2\), got \(3, 2, 4, 2\)'):
        draw.check(mask[1:], four)
    with pytest.raises(ValueError, match=r'shape \(4, 2, 4, 2\), got \(3, 2, 4, 2\)'):
        draw.check(VisiblePatches(mask[1:]), four)
    with pytest.raises(ValueError, match=r'shape \(4, 2, 4, 2\), got \(4, 2, 2, 4\)'):
        draw.check(mask.transpose(2, 3), four)
    with pytest.raises(ValueError, match='hides no patch'):
        draw.check(torch.zeros_like(mask), four)
    with pytest.raises(ValueError, match='hides no patch'):
        draw.check(patches.everything(), four)
    with pytest.raises(ValueError, match='hides every patch'):
        draw.check(torch.ones_like(mask), four)
    mask[0] = random_mask(1, (2, 4, 2), 4)[0]
    with pytest.raises(ValueError, match=r'the same number of patches, got \[4, 3, 3, 3\]'):
        draw.check(mask, four)
    with pytest.raises(ValueError, match='3 frames are not divisible by tubelets of 2'):
        draw.check(mask, clips(4, 3, 64, 32))


@pytest.mark.parametrize('kind', KINDS)
def test_mask__comes_with_its_geometry(kind):
    patches = kind(mask_ratio=0.5)(clips(2, 8, 64, 96))
    counted = VisiblePatches(patches.mask.clone())
    assert patches.num_visible == counted.num_visible == 4 * 12
    assert torch.equal(patches.visible, counted.visible)
    assert torch.equal(patches.hidden, counted.hidden)
    assert patches.frames().num_visible == counted.frames().num_visible == 12
    assert torch.equal(patches.frames().visible, counted.frames().visible)


# --------------------------------------------------------------------- tokens


def test_pick__takes_what_boolean_indexing_takes():
    mask = random_mask(3, (2, 3, 4), 7)
    patches = VisiblePatches(mask)
    tokens, table = torch.randn(3, 24, 5), torch.randn(1, 24, 5)
    for places, chosen in ((patches.visible, ~mask), (patches.hidden, mask)):
        chosen = chosen.flatten(1)
        assert torch.equal(pick(tokens, places), tokens[chosen].view(3, -1, 5))
        shared = table.expand(3, -1, -1)[chosen].view(3, -1, 5)
        assert torch.equal(pick_shared(table, places, 3), shared)


# ------------------------------------------------------------- masks of a step of a run


@pytest.mark.parametrize('world', [1, 2, 3, 6])
@pytest.mark.parametrize('kind', [RandomPatchMask, TubeMask, RandomTubeletMask])
def test_step_noise__processes_hide_what_one_would(kind, world):
    inputs = clips(6)
    inputs = inputs[:, :, 0] if kind is RandomPatchMask else inputs
    whole = kind()(inputs, StepNoise(seed=1, step=2)).mask
    shares = [kind()(inputs[: 6 // world], StepNoise(1, 2, rank)).mask for rank in range(world)]
    assert torch.equal(torch.cat(shares), whole)


def test_step_noise__is_a_function_of_seed_and_step():
    before = torch.get_rng_state()
    first = StepNoise(seed=1, step=2).draw(4, 49)
    assert torch.equal(torch.get_rng_state(), before)
    moved = StepNoise(seed=1, step=7)
    key = moved.key
    moved.move_to(1, 2)
    assert moved.key is key and torch.equal(moved.draw(4, 49), first)
    others = [StepNoise(1, 3), StepNoise(2, 2), StepNoise(1, 2, rank=1)]
    assert not any(torch.equal(noise.draw(4, 49), first) for noise in others)


def test_step_noise__numbers_are_spread_and_unrelated():
    """Over rows, columns, steps and seeds, as random numbers of 32 bits are."""
    draws = torch.stack([StepNoise(0, step).draw(64, 49) for step in range(64)])
    assert draws.min() >= 0 and draws.max() < 2**32
    assert len(draws.unique()) > 0.9999 * draws.numel()
    unit = draws.double() / 2**32 - 0.5
    num = unit.numel()
    assert abs(unit.mean()) < 4 / (12 * num) ** 0.5
    assert unit.var().item() == pytest.approx(1 / 12, rel=4 * (0.8 / num) ** 0.5)
    for axis in range(3):
        near = (unit * unit.roll(1, axis)).mean() * 12
        assert abs(near) < 4 / num**0.5, axis
    bits = torch.stack([(draws >> bit & 1).double().mean() for bit in range(32)])
    assert (bits - 0.5).abs().max() < 4.5 * 0.5 / num**0.5


def test_step_noise__masks_hide_all_patches_alike():
    images = torch.empty(1, 1, 224, 224).expand(64, -1, -1, -1)
    generator = RandomPatchMask()
    masks = [generator(images, StepNoise(3, step)).mask.flatten(1) for step in range(64)]
    counts = torch.cat(masks).double().sum(0)
    num, share = 64 * 64, 37 / 49
    assert (counts - num * share).abs().max() < 4.5 * (num * share * (1 - share)) ** 0.5
    together = (~torch.cat(masks)).double()
    pairs = (together.T @ together).fill_diagonal_(0).sum() / (49 * 48 * num)
    assert pairs.item() == pytest.approx(12 * 11 / (49 * 48), abs=1e-12)


def test_step_noise__large_batches_do_not_repeat():
    """Beyond 2**32 patches places need a second word."""
    noise = StepNoise(0, 0)
    noise.rank = 2**32 // 64
    far = noise.draw(8, 8)
    assert not torch.equal(far, StepNoise(0, 0).draw(8, 8))
