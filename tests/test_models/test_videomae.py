"""VideoMAE, and MotionMAE with one decoder ("Sha") or two ("Ind")."""

import pytest
import torch
from torch import Tensor, nn

from tests.masks import expand, random_mask
from videomac_mm.models import MotionMAE, VideoMAE
from videomac_mm.models.masking import pick
from videomac_mm.models.pixels import to_pixels
from videomac_mm.sparse import VisiblePatches

GRID = (2, 3, 3)
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
BOTH = dict(type='videomac_mm.VideoPixelHead', patch_size=8, targets=('pixel', 'motion'))
VARIANTS = ['VideoMAE', 'MotionMAE-Sha', 'MotionMAE-Ind']


def parts(**changes: dict) -> dict:
    """Configs of a small VideoMAE, with other values in some of its parts."""
    cfg = dict(
        backbone=dict(
            type='videomac_mm.VideoVisionTransformer',
            img_size=24,
            patch_size=8,
            embed_dims=12,
            depth=2,
            num_heads=3,
            num_frames=4,
            use_mean_pooling=False,
        ),
        neck=dict(
            type='videomac_mm.TokenDecoder',
            num_patches=18,
            in_channels=12,
            embed_dims=8,
            depth=1,
            num_heads=2,
            pred_dims=(384,),
        ),
        head=dict(type='videomac_mm.VideoPixelHead', patch_size=8),
        mask_generator=dict(type='videomac_mm.TubeMask', patch_size=8, mask_ratio=0.7),
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor', mean=MEAN, std=STD, format_shape='NCTHW'
        ),
    )
    for name, change in changes.items():
        cfg[name] = {**cfg.get(name, {}), **change}
    return cfg


def build(variant: str = 'VideoMAE', **changes: dict) -> VideoMAE:
    """A small model without a zero, or otherwise special, parameter."""
    if variant == 'VideoMAE':
        model = VideoMAE(**parts(**changes))
    else:
        neck = dict(pred_dims=(384, 192), shared=variant.endswith('Sha'))
        model = MotionMAE(**parts(**{'neck': neck, 'head': BOTH, **changes}))
    return randomise(model)


def randomise(model: nn.Module) -> nn.Module:
    for param in model.parameters():
        nn.init.normal_(param, std=0.3)
    return model.double()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(2, 1, 3, 4, 24, 24, dtype=torch.float64)


@pytest.fixture
def mask() -> Tensor:
    return random_mask(2, GRID, 5)


def gradients(model: nn.Module, losses: dict[str, Tensor]) -> list[Tensor]:
    return torch.autograd.grad(sum(losses.values()), list(model.parameters()))


def assert_every_part_learns(model: nn.Module) -> None:
    """Each parameter has a gradient, of finite numbers, and in qkv each of the three."""
    for name, param in model.named_parameters():
        assert param.grad is not None and param.grad.isfinite().all(), name
        for part in param.grad.chunk(3) if 'qkv' in name else [param.grad]:
            assert part.abs().sum() > 0, name


@pytest.mark.parametrize('variant', VARIANTS)
def test_loss__compares_predictions_with_the_hidden_tubelets(variant, inputs, mask):
    model = build(variant)
    losses = model.loss(inputs, mask=mask)
    names = ['loss_pixel', 'loss_motion'][: 1 + variant.startswith('MotionMAE')]
    assert list(losses) == names

    patches = VisiblePatches(mask)
    clips = inputs[:, 0]
    tokens = pick(model.backbone.patch_embed(clips)[0] + model.backbone.pos_embed, patches.visible)
    for block in model.backbone.blocks:
        tokens = block(tokens)
    preds = model.neck(model.backbone.norm(tokens), mask)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    pixels = ((clips * std + mean) / 255).unfold(2, 2, 2).unfold(3, 8, 8).unfold(4, 8, 8)
    cubes = pixels.permute(0, 2, 3, 4, 5, 6, 7, 1)  # (B, t, h, w, frames, p, p, C)
    for name, pred in zip(names, preds):
        if name == 'loss_motion':
            cubes = cubes.diff(dim=4).abs()
        rows = pick(cubes.flatten(1, 3).flatten(2), patches.hidden).unflatten(2, (-1, 3))
        target = (rows - rows.mean(2, keepdim=True)) / (rows.std(2, keepdim=True) + 1e-6)
        wanted = (pred - target.flatten(2)).square().mean()
        torch.testing.assert_close(losses[name], wanted)


@pytest.mark.parametrize('variant', VARIANTS)
def test_loss__hidden_pixels_reach_the_target_values_only(variant, inputs, mask):
    # Scaling and shifting a hidden tubelet changes no normalised target and no input of the
    # encoder: a leak anywhere would change the loss or its gradients.
    model = build(variant)
    hidden = expand(mask, (4, 24, 24))[:, None]
    results = []
    for clips in (inputs, inputs.where(~hidden, 5 * inputs + 7)):
        losses = model.loss(clips, mask=mask)
        results.append([*losses.values(), *gradients(model, losses)])
    for first, second in zip(*results):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('initialised', [False, True])
@pytest.mark.parametrize('variant', VARIANTS)
def test_loss__teaches_every_parameter(variant, initialised, inputs):
    model = build(variant)
    if initialised:
        model.init_weights()
    model.train()
    sum(model(inputs, mode='loss').values()).backward()
    assert_every_part_learns(model)


@pytest.mark.parametrize('variant', VARIANTS)
def test_loss__of_several_clips_per_video_equals_that_of_as_many_videos(variant, inputs, mask):
    model = build(variant)
    together = model.loss(inputs.transpose(0, 1), mask=mask)
    assert together == model.loss(inputs, mask=mask)


@pytest.mark.parametrize('variant', VARIANTS)
def test_checkpointing__changes_no_gradient(variant, inputs, mask):
    plain = build(variant)
    frugal = build(variant)
    frugal.load_state_dict(plain.state_dict())
    frugal.backbone.with_cp = True
    for decoder in frugal.neck.decoders:
        decoder.with_cp = True
    results = [gradients(model, model.loss(inputs, mask=mask)) for model in (plain, frugal)]
    for got, want in zip(*results):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('variant', VARIANTS)
def test_autocast__computes_losses_in_float32(variant, dtype, inputs, mask):
    model = build(variant).float()
    model.init_weights()
    wanted = model.loss(inputs.float(), mask=mask)
    with torch.autocast('cpu', dtype):
        losses = model.loss(inputs.float(), mask=mask)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted[name], rtol=0.01, atol=0)
    (2**16 * sum(losses.values())).backward()
    assert_every_part_learns(model)


def test_masks__are_drawn_anew_by_the_generator_that_was_chosen(inputs):
    tubes = build()
    tubelets = build(mask_generator=dict(type='videomac_mm.RandomTubeletMask'))
    for model, same in ((tubes, True), (tubelets, False)):
        seen = []
        model.backbone.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[1].mask)
        )
        losses = [model.loss(inputs)['loss_pixel'] for _ in range(2)]
        assert losses[0] != losses[1]
        assert not torch.equal(*seen)
        for mask in seen:
            assert mask.shape == (2, *GRID) and (mask.sum((2, 3)) == 6).all()
            assert (mask == mask[:, :1]).all() == same


def test_preprocessor__gives_the_batch_from_uint8_clips():
    model = build().float()
    clips = torch.randint(256, (2, 1, 3, 4, 24, 24), dtype=torch.uint8)
    batch = model.data_preprocessor(dict(inputs=list(clips), data_samples=None))
    assert batch['inputs'].shape == clips.shape
    pixels = to_pixels(batch['inputs'][:, 0], model.data_preprocessor)
    torch.testing.assert_close(pixels, clips[:, 0] / 255, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        model.reconstruct(batch['inputs'])['original'], clips[:, 0] / 255, rtol=0, atol=1e-6
    )
    # Without mean and deviation it makes them float only.
    plain = VideoMAE(
        **{**parts(), 'data_preprocessor': dict(type='mmaction.ActionDataPreprocessor')}
    )
    batch = plain.data_preprocessor(dict(inputs=list(clips), data_samples=None))
    original = plain.reconstruct(batch['inputs'])['original']
    torch.testing.assert_close(original, clips[:, 0] / 255)


@pytest.mark.parametrize('variant', VARIANTS)
def test_reconstruct__pastes_predictions_into_what_is_visible(variant, mask):
    model = build(variant)
    pixels = torch.rand(1, 2, 3, 4, 24, 24, dtype=torch.float64)  # two clips of one video
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    clips = (255 * pixels - mean) / std
    pictures = model.reconstruct(clips, mask)
    names = ['original', 'masked', 'predicted']
    motion = ['motion', 'predicted_motion'] if variant.startswith('MotionMAE') else []
    assert list(pictures) == names + motion
    hidden = expand(mask, (4, 24, 24)).expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(pictures['original'], pixels[0])
    for name in pictures:
        assert pictures[name].shape == (2, 3, 4, 24, 24)
        assert not pictures[name].requires_grad
        assert -1e-9 < pictures[name].min() and pictures[name].max() < 1 + 1e-9
        if name not in ('original', 'motion'):
            original = pictures['motion' if 'motion' in name else 'original']
            torch.testing.assert_close(pictures[name][~hidden], original[~hidden])
            assert (pictures[name] - original)[hidden].abs().mean() > 0.05
    nn.init.normal_(model.neck.decoders[0].preds[0].weight, std=9.0)
    predicted = model.reconstruct(clips, mask)['predicted']  # far too large, but clamped
    assert predicted.min() == 0 and predicted.max() == 1
    assert model.reconstruct(clips)['predicted'].shape == (2, 3, 4, 24, 24)  # masks drawn


def test_extract_feat__takes_clips_and_images(inputs, mask):
    model = build(backbone=dict(return_feat_map=True))
    maps = model.extract_feat(inputs)
    assert maps.shape == (2, 12, *GRID)
    assert torch.equal(model(inputs), maps)  # mode='tensor'
    assert torch.equal(model.extract_feat(inputs[:, 0]), maps)
    assert torch.equal(model.extract_feat(inputs.transpose(0, 1)), maps)
    assert model.extract_feat(inputs[:, 0, :, 0]).shape == (2, 12, 3, 3)
    assert model.extract_feat(inputs, mask).shape == (2, 5, 12)


def test_state__has_the_backbone_of_mmaction_and_no_more_than_its_parts():
    state = build().state_dict()
    prefixes = {key.split('.')[0] for key in state}
    assert prefixes == {'backbone', 'neck'}
    twin = type(build().backbone).__base__(
        img_size=24,
        patch_size=8,
        embed_dims=12,
        depth=2,
        num_heads=3,
        num_frames=4,
        use_mean_pooling=False,
    )
    ours = {key[9:]: value for key, value in state.items() if key.startswith('backbone.')}
    twin.load_state_dict(ours)


def test_parts_that_do_not_fit__are_refused():
    with pytest.raises(ValueError, match=r'neck predicts \(384, 192\) .* compares \(384,\)'):
        build(neck=dict(pred_dims=(384, 192)))
    with pytest.raises(ValueError, match=r'neck predicts \(384,\) .* compares \(192,\)'):
        build(head=dict(tubelet_size=1))
    with pytest.raises(ValueError, match='use_mean_pooling=False'):
        build(backbone=dict(use_mean_pooling=True))
    with pytest.raises(ValueError, match=r"targets=\('pixel', 'motion'\), got \('pixel',\)"):
        MotionMAE(**parts())


def test_bad_inputs__are_named(inputs, mask):
    model = build()
    with pytest.raises(ValueError, match=r'\(B, V, C, T, H, W\), got .*\(2, 3, 4, 24, 24\)'):
        model.loss(inputs[:, 0])
    with pytest.raises(ValueError, match='24x20 is not divisible by the mask patches of 8'):
        model.loss(inputs[..., :20])
    with pytest.raises(ValueError, match='3 frames are not divisible by tubelets of 2'):
        model.loss(inputs[:, :, :, :3])
    with pytest.raises(ValueError, match=r'shape \(2, 2, 3, 3\), got \(2, 3, 3\)'):
        model.loss(inputs, mask=mask[:, 0])
    with pytest.raises(TypeError, match='mask must be bool.*torch.float32'):
        model.loss(inputs, mask=mask.float())
    with pytest.raises(ValueError, match='hides no patch'):
        model.loss(inputs, mask=torch.zeros_like(mask))
    mask[0] = random_mask(1, GRID, 6)
    with pytest.raises(ValueError, match=r'same number of patches, got \[6, 5\]'):
        model.reconstruct(inputs, mask)
    with pytest.raises(ValueError, match='longer than num_frames=4'):
        model.loss(torch.cat([inputs, inputs], 3))
    with pytest.raises(ValueError, match=r'num_patches=18 .*\(2, 1, 3, 3\) has 9'):
        model.loss(inputs[:, :, :, :2])
