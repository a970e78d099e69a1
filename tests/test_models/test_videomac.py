import pytest
import torch

from tests.masks import expand, random_mask
from videomac_mm.models import RandomPatchMask, VideoMAC
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches


def build(backbone: dict = None, **kwargs) -> VideoMAC:
    arch = dict(depths=[1, 1, 1, 1], channels=[4, 6, 8, 10])
    default = dict(
        type='videomac_mm.SparseConvNeXt',
        arch=arch,
        use_grn=True,
        layer_scale_init_value=0.0,
        stage_norm='inline',
    )
    model = VideoMAC(
        backbone or default,
        dict(type='videomac_mm.MaskTokenDecoder', in_channels=10, embed_dims=8),
        dict(type='videomac_mm.PixelHead'),
        data_preprocessor=dict(type='mmaction.ActionDataPreprocessor'),
        **kwargs,
    )
    for param in [*model.backbone.parameters(), *model.neck.parameters()]:
        torch.nn.init.normal_(param, std=0.3)
    for param in model.target.buffers():
        torch.nn.init.normal_(param, std=0.3)
    return model.double()


@pytest.fixture
def model() -> VideoMAC:
    return build()


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(2, 1, 3, 2, 96, 64, dtype=torch.float64)


def gradients(model: VideoMAC, losses: dict) -> list:
    return torch.autograd.grad(sum(losses.values()), list(model.parameters()))


def test_loss__is_the_sum_of_three_hand_computed_terms(model, clips):
    mask = random_mask(2, (3, 2), 2)
    losses = model.loss(clips, mask=mask)
    assert list(losses) == ['loss_online', 'loss_target', 'loss_consistency']

    preds, errors = [], []
    for network, frame in zip((model, model.target), clips[:, 0].unbind(2)):
        pred = network.neck(network.backbone(frame, mask)[-1], mask)  # (B, L, P)
        patches = frame.unfold(2, 32, 32).unfold(3, 32, 32)  # (B, C, h, w, p, p)
        patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, 6, -1)
        patches = patches - patches.mean(-1, keepdim=True)
        patches = patches / (patches.square().sum(-1, keepdim=True) / 3071 + 1e-6).sqrt()
        errors.append((pred - patches).square().mean(-1)[mask.flatten(1)].mean())
        preds.append(pred)
    consistency = (preds[0] - preds[1]).square().mean(-1)[mask.flatten(1)].mean()
    for got, want in zip(losses.values(), [*errors, consistency]):
        torch.testing.assert_close(got, want)


def test_loss__all_parts_share_the_geometry_of_the_mask(model, clips):
    seen = []
    parts = model.backbone, model.neck, model.target.backbone, model.target.neck
    for part in (*parts, model.consistency_loss):
        part.register_forward_pre_hook(lambda _, args: seen.append(args[-1]))
    model.loss(clips)
    assert len(seen) == 5 and all(patches is seen[0] for patches in seen)
    assert isinstance(seen[0], VisiblePatches) and seen[0].num_visible == 1


def test_loss__hidden_pixels_reach_the_target_values_only(model, clips):
    # Scaling and shifting a hidden patch changes no normalised target and no input of the
    # encoder: a leak anywhere would change the loss or its gradients.
    mask = random_mask(2, (3, 2), 2)
    hidden = expand(mask, (96, 64))[:, None, :, None]
    results = []
    for inputs in (clips, clips.where(~hidden, 5 * clips + 7)):
        losses = model.loss(inputs, mask=mask)
        results.append([*losses.values(), *gradients(model, losses)])
    for first, second in zip(*results):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-7)


def test_loss__visible_patches_are_not_scored(model, clips):
    mask = random_mask(2, (3, 2), 2)
    frame = clips[:, 0, :, 0]
    pred = torch.randn(2, 6, 3072, dtype=torch.float64)
    other = pred.where(mask.flatten(1)[..., None], 100.0)
    assert torch.equal(model.head.loss(pred, frame, mask), model.head.loss(other, frame, mask))


def test_loss__predicting_the_mean_costs_one(model, clips):
    mask = random_mask(2, (3, 2), 2)
    loss = model.head.loss(torch.zeros(2, 6, 3072).double(), clips[:, 0, :, 0], mask)
    assert loss.item() == pytest.approx(1, abs=1e-3)


def test_loss__the_target_gets_no_gradient_and_every_other_parameter_does(model, clips):
    losses = model.loss(clips)
    assert not losses['loss_target'].requires_grad
    sum(losses.values()).backward()
    for name, param in model.named_parameters():
        assert not name.startswith('target.')
        assert param.grad.abs().sum() > 0, name
    assert not any(weight.requires_grad for weight in model.target.buffers())


def test_loss__is_zero_where_both_networks_and_frames_agree(model, clips):
    model.target.follow(model, momentum=0.0)
    still = clips[:, :, :, :1].expand_as(clips)
    assert model.loss(still)['loss_consistency'] == 0


def test_loss__weight_scales_consistency_only(clips):
    mask = random_mask(2, (3, 2), 2)
    one, three = build(), build(consistency_loss=dict(type='ConsistencyLoss', loss_weight=3.0))
    three.load_state_dict(one.state_dict())
    first, second = one.loss(clips, mask=mask), three.loss(clips, mask=mask)
    assert second['loss_online'] == first['loss_online']
    torch.testing.assert_close(second['loss_consistency'], 3 * first['loss_consistency'])


def test_loss__of_several_pairs_per_video_equals_that_of_as_many_videos(model, clips):
    mask = random_mask(2, (3, 2), 2)
    together = model.loss(clips.transpose(0, 1), mask=mask)
    assert together == model.loss(clips, mask=mask)


def test_autocast__computes_losses_in_float32(clips):
    model = build().float()
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(clips.float(), mask=random_mask(2, (3, 2), 2))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_target__starts_equal_stays_in_eval_mode_and_is_saved():
    resnet = dict(type='videomac_mm.SparseResNet', depth=18, base_channels=2, stem_channels=4)
    model = VideoMAC(
        resnet,
        dict(type='videomac_mm.MaskTokenDecoder', in_channels=16, embed_dims=8),
        dict(type='videomac_mm.PixelHead'),
        data_preprocessor=dict(type='mmaction.ActionDataPreprocessor'),
    )
    model.init_weights()
    model.train()
    assert not any(module.training for module in model.target.modules())
    state = model.state_dict()
    for name, value in state.items():
        if name.startswith('target.'):
            assert torch.equal(value, state[name[len('target.') :]]), name

    # Running statistics travel with the weights.
    model.loss(torch.randn(2, 1, 3, 2, 64, 64))
    model.target.follow(model, momentum=0.9)
    online, target = model.backbone.bn1, model.target.backbone.bn1
    assert torch.equal(online.running_mean, target.running_mean)
    assert online.running_mean.abs().sum() > 0


def test_target__closed_form_of_the_moving_average(model):
    momenta = [0.5, 0.9, 0.99]
    start = {name: w.clone() for name, w in model.target.named_buffers()}
    wanted = dict(start)
    for momentum in momenta:
        for name, param in model.named_parameters():
            param.data += 1.0
            wanted[name] = momentum * wanted[name] + (1 - momentum) * param.data
        model.target.follow(model, momentum)
    for name, weight in model.target.named_buffers():
        torch.testing.assert_close(weight, wanted[name])


def test_reconstruct__pastes_predictions_into_what_is_visible(model):
    mean, std = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    preprocessor = dict(
        type='mmaction.ActionDataPreprocessor', mean=mean, std=std, format_shape='NCTHW'
    )
    model.data_preprocessor = MODELS.build(preprocessor)
    pixels = torch.randint(256, (2, 1, 3, 2, 96, 64), dtype=torch.uint8)
    inputs = model.data_preprocessor(dict(inputs=list(pixels), data_samples=None))['inputs']
    mask = random_mask(2, (3, 2), 2)
    pictures = model.reconstruct(inputs.double(), mask)

    hidden = expand(mask, (96, 64))[:, :, None].expand(2, 3, 2, 96, 64)
    original = pixels[:, 0].double() / 255
    torch.testing.assert_close(pictures['original'], original, rtol=0, atol=1e-6)
    grey = torch.tensor(mean, dtype=torch.float64).view(3, 1, 1, 1).expand_as(original) / 255
    torch.testing.assert_close(pictures['masked'][hidden], grey[hidden])
    for name in ('masked', 'predicted'):
        torch.testing.assert_close(pictures[name][~hidden], original[~hidden], rtol=0, atol=1e-6)
        assert 0 <= pictures[name].min() and pictures[name].max() <= 1
    assert (pictures['predicted'] - original)[hidden].abs().max() > 0.1


def test_picture__of_a_perfect_prediction_is_the_image(model, clips):
    mask, frame = random_mask(2, (3, 2), 2), clips[:, 0, :, 0]
    perfect = model.head.construct_target(frame)
    torch.testing.assert_close(model.head.picture(perfect, frame, mask), frame)


def test_extract_feat__takes_images_and_clips(model, clips):
    images = clips[:, 0].transpose(1, 2).flatten(0, 1)
    (from_clips,), (from_images,) = model.extract_feat(clips), model.extract_feat(images)
    assert from_clips.shape == (4, 10, 3, 2)
    assert torch.equal(from_clips, from_images)
    masked = model.extract_feat(images, random_mask(4, (3, 2), 2))[0]
    assert (masked == 0).any() and not (from_images == 0).any()


def test_bad_inputs__are_named(model, clips):
    with pytest.raises(ValueError, match=r'\(B, V, C, 2, H, W\).*\(2, 1, 3, 1, 96, 64\)'):
        model.loss(clips[:, :, :, :1])
    with pytest.raises(ValueError, match='96x63 is not divisible by the mask patches of 32'):
        model.loss(clips[..., :63])
    with pytest.raises(ValueError, match=r'shape \(2, 3, 2\), got \(2, 2, 2\)'):
        model.loss(clips, mask=random_mask(2, (2, 2), 1))
    with pytest.raises(TypeError, match='mask must be bool.*torch.float32'):
        model.loss(clips, mask=random_mask(2, (3, 2), 1).float())
    with pytest.raises(ValueError, match='hides every patch'):
        model.loss(clips, mask=torch.ones(2, 3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match='hides no patch'):
        model.loss(clips, mask=torch.zeros(2, 3, 2, dtype=torch.bool))
    unequal = random_mask(2, (3, 2), 2)
    unequal[0] = random_mask(1, (3, 2), 3)
    with pytest.raises(ValueError, match=r'same number of patches, got \[3, 2\]'):
        model.loss(clips, mask=unequal)
    with pytest.raises(TypeError, match='VideoMAC needs normalised clips of floats, got .*uint8'):
        model.loss(clips.byte())
    pred, frame = torch.zeros(2, 6, 3072).double(), clips[:, 0, :, 0]
    other = random_mask(1, (3, 2), 2)
    for compare in (
        lambda: model.head.loss(pred, frame, other),
        lambda: model.head.picture(pred, frame, other),
        lambda: model.consistency_loss(pred, pred, other),
    ):
        with pytest.raises(ValueError, match=r'\(2, 6, 3072\) do not fit .* \(1, 3, 2\)'):
            compare()
    features = torch.zeros(2, 10, 6, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r'grid of \(6, 4\) do not fit a mask of \(3, 2\)'):
        model.neck(features, random_mask(2, (3, 2), 2))


# ---------------------------------------------------------------------- masks


def test_mask__hides_the_same_number_everywhere_and_rounds_as_the_paper():
    mask = RandomPatchMask(patch_size=32, mask_ratio=0.75)(torch.empty(64, 3, 224, 224)).mask
    assert mask.shape == (64, 7, 7) and mask.dtype == torch.bool
    assert (mask.flatten(1).sum(1) == 37).all()  # int(49 * 0.25) = 12 stay visible
    # Every patch is hidden at times, and the images differ.
    assert (mask.any(0) & ~mask.all(0)).all()
    assert len({tuple(row.tolist()) for row in mask.flatten(1)}) == 64


@pytest.mark.parametrize('ratio', [0.02, 0.5, 0.6, 0.9, 0.97])
def test_mask__count_follows_the_ratio(ratio):
    patches = RandomPatchMask(16, ratio)(torch.empty(2, 3, 112, 128))
    assert patches.num_visible == int(56 * (1 - ratio))
    assert ((~patches.mask).flatten(1).sum(1) == patches.num_visible).all()


def test_mask__is_reproducible_from_a_generator():
    draw = RandomPatchMask()
    images = torch.empty(3, 3, 128, 96)
    first, second = (draw(images, torch.Generator().manual_seed(7)).mask for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw(images, torch.Generator().manual_seed(8)).mask)


@pytest.mark.parametrize('ratio', [0, 1, -0.1, 1.5])
def test_mask__ratio_outside_of_0_and_1_is_refused(ratio):
    with pytest.raises(ValueError, match=f'mask_ratio must lie inside \\(0, 1\\), got {ratio}'):
        RandomPatchMask(mask_ratio=ratio)


def test_mask__that_would_hide_all_or_nothing_is_refused():
    with pytest.raises(ValueError, match='leaves 0 of 4 patches visible'):
        RandomPatchMask(32, 0.9)(torch.empty(1, 3, 64, 64))
    with pytest.raises(ValueError, match='patch_size must be at least 1 pixel, got 0'):
        RandomPatchMask(0)


def test_compile__of_the_whole_step_makes_few_graphs(model, clips):
    from torch._dynamo.utils import counters

    mask = random_mask(2, (3, 2), 2)
    wanted = gradients(model, model.loss(clips, mask=mask))
    torch._dynamo.reset()
    counters.clear()
    step = torch.compile(model.loss, backend='eager', dynamic=False)

    step(clips)
    num_graphs = counters['stats']['unique_graphs']
    for _ in range(2):
        step(clips)

    assert num_graphs == 1
    assert counters['stats']['unique_graphs'] == num_graphs
    for got, want in zip(gradients(model, step(clips, mask=mask)), wanted):
        torch.testing.assert_close(got, want)
