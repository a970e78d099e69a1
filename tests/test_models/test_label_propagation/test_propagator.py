import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import nn

from videomac_mm.models import KeypointCodec, LabelPropagator, MaskCodec
from videomac_mm.models.label_propagation.propagator import set_stride
from videomac_mm.registry import MODELS

CONVNEXT = dict(
    type='videomac_mm.SparseConvNeXt',
    arch=dict(depths=[1, 1, 1, 1], channels=[4, 6, 8, 10]),
    stage_norm='inline',
    out_indices=(2,),
)
RESNET = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16),
    img_size=64,
    patch_size=16,
)


def sample(frame_id=0, size=(48, 64), image=None, video='v', **fields) -> BaseDataElement:
    metainfo = dict(
        video=video, frame_id=frame_id, num_frames=3, ori_shape=size, img_shape=image or size
    )
    return BaseDataElement(metainfo=metainfo, **fields)


def square(size=(48, 64), top=16, left=16, side=16) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


# ------------------------------------------------------------------------------ codecs


@pytest.mark.parametrize('resize', ['nearest', 'bilinear'])
def test_mask_codec__there_and_back(resize):
    mask = 3 * square()
    first = sample(gt_label=mask)
    codec = MaskCodec(label_resize=resize)
    labels, ids = codec.encode(first, (6, 8))
    torch.testing.assert_close(labels.sum(0), torch.ones(6, 8))
    frame = sample(1)
    codec.decode(labels, ids, frame)
    assert frame.pred_label.dtype == np.uint8
    wrong = frame.pred_label != mask
    assert set(np.unique(frame.pred_label)) == {0, 3}
    assert 0 < wrong.sum() <= 4 * 6  # interpolation rounds the corners
    codec.decode_first(labels, ids, first)
    assert (first.pred_label != mask).sum() == (0 if resize == 'nearest' else wrong.sum())


def test_mask_codec__ids():
    mask = square()
    mask[mask == 1] = 7
    mask[0, 0] = 9  # lost on the grid
    for resize, wanted in (('nearest', np.arange(8)), ('bilinear', [0, 7, 9])):
        labels, ids = MaskCodec(resize).encode(sample(gt_label=mask), (6, 8))
        np.testing.assert_array_equal(ids, wanted)
        assert len(labels) == len(ids)


def test_mask_codec__blending_makes_ids_up():
    mask = 4 * square(top=15, left=17)
    first = sample(image=(40, 40), gt_label=mask)
    _, ids = MaskCodec('bilinear', blend_ids=True).encode(first, (5, 5))
    assert set(ids) > {0, 4}
    _, ids = MaskCodec('bilinear').encode(first, (5, 5))
    assert set(ids) == {0, 4}


def test_mask_codec__sizes():
    maps = torch.zeros(2, 6, 8)
    maps[0] = 1
    for size, shape in (('native', (50, 70)), ('image', (48, 64))):
        frame = sample(1, size=(50, 70), image=(48, 64))
        MaskCodec(output_size=size).decode(maps, np.arange(2), frame)
        assert frame.pred_label.shape == shape


def test_mask_codec__min_max_revives_a_faded_object():
    maps = torch.zeros(2, 6, 8)
    maps[0] = torch.linspace(0.9, 1, 48).view(6, 8)
    maps[1, 2, 2] = 0.01
    frames = sample(1), sample(1)
    for frame, codec in zip(frames, (MaskCodec(), MaskCodec(min_max=True))):
        codec.decode(maps, np.arange(2), frame)
    assert frames[0].pred_label.max() == 0
    assert frames[1].pred_label[20, 20] == 1


def test_mask_codec__a_vanished_object_stays_vanished():
    maps = torch.zeros(3, 6, 8)
    maps[0] = 1
    frame = sample(1)
    MaskCodec(min_max=True).decode(maps, np.arange(3), frame)
    assert frame.pred_label.max() == 0


def test_keypoint_codec__there_and_back():
    points = np.array([[20.0, 40.0, -50.0], [12.0, 30.0, 10.0]])
    codec = KeypointCodec()
    frame = sample(gt_keypoints=points)
    labels, ids = codec.encode(frame, (6, 8))
    assert labels.shape == (4, 6, 8)
    assert ((labels[0] == 1) == (labels[1:] == 0).all(0)).all()
    codec.decode(labels, ids, frame)
    np.testing.assert_allclose(frame.pred_keypoints[:, :2] * 8, points[:, :2], atol=8)
    np.testing.assert_array_equal(frame.pred_keypoints[:, 2], -1)  # outside of the image


@pytest.mark.parametrize(
    'codec, field', [(MaskCodec(), 'gt_label'), (KeypointCodec(), 'gt_keypoints')]
)
def test_codecs__no_first_label(codec, field):
    with pytest.raises(ValueError, match=f"first frame of 'v' has no {field}"):
        codec.encode(sample(), (6, 8))


@pytest.mark.parametrize('name', ['label_resize', 'output_size'])
def test_mask_codec__errors(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .* got 'other'"):
        MaskCodec(**{name: 'other'})


# ------------------------------------------------------------------------------ stride


def features(backbone: dict, stride=None, dilate=False, size=(80, 112)):
    model = LabelPropagator(backbone, stride=stride, dilate=dilate).eval()
    return model, model.extract_feat(torch.randn(1, 3, *size))


@pytest.mark.parametrize('dilate', [False, True])
@pytest.mark.parametrize(
    'backbone, stride, own',
    [
        (CONVNEXT, 4, 16),
        (CONVNEXT, 8, 16),
        (dict(CONVNEXT, out_indices=(3,)), 8, 32),
        (dict(RESNET, out_indices=(3,)), 8, 32),
        (dict(RESNET, out_indices=(2,)), 16, 16),
        (dict(RESNET, type='mmpretrain.ResNetV1d', out_indices=(3,)), 4, 32),
        (dict(type='videomac_mm.SparseResNet', depth=18, variant='videomac'), 8, 32),
    ],
    ids=str,
)
def test_stride__any(backbone, stride, own, dilate):
    model, maps = features(backbone, stride, dilate)
    assert model.stride == stride
    assert maps.shape[2:] == (80 // stride, 112 // stride)
    assert features(backbone)[0].stride == own


@pytest.mark.parametrize('dilate', [False, True])
def test_stride__weights_untouched(dilate):
    network = MODELS.build(CONVNEXT)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    training = network.training
    set_stride(network, 4, dilate)
    assert network.training == training
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize('stage_norm', ['side', 'inline'])
def test_stride__dilated_maps_hold_the_coarse_ones(stage_norm):
    """Dilation keeps what kernels see: every other cell is what the strided network gives."""
    backbone = dict(CONVNEXT, stage_norm=stage_norm, gap_before_final_norm=False)
    torch.manual_seed(0)
    coarse, _ = features(backbone)
    dense, _ = features(backbone, stride=8, dilate=True)
    dense.load_state_dict(coarse.state_dict())
    image = torch.randn(1, 3, 96, 128)
    wanted, got = coarse.extract_feat(image), dense.extract_feat(image)
    torch.testing.assert_close(got[..., ::2, ::2], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('out_type', ['featmap', 'raw'])
def test_features__vision_transformers(out_type):
    torch.manual_seed(0)
    model, maps = features(dict(VIT, out_type=out_type))
    assert model.stride == 16
    assert maps.shape == (1, 16, 5, 7)


def test_features__class_tokens_are_left_out():
    models = [LabelPropagator(dict(VIT, out_type=kind)).eval() for kind in ('featmap', 'raw')]
    models[1].load_state_dict(models[0].state_dict())
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(*(model.extract_feat(image) for model in models))


@pytest.mark.parametrize('backbone', [CONVNEXT, dict(RESNET, out_indices=(2,)), VIT], ids=str)
def test_features__cells_cut_by_the_border_count(backbone):
    if backbone is VIT:
        backbone = dict(VIT, out_type='raw')
    model, maps = features(backbone, size=(81, 100))
    assert maps.shape[2:] == (-(-81 // model.stride), -(-100 // model.stride))


@pytest.mark.parametrize(
    'backbone, stride, message',
    [
        (CONVNEXT, 32, 'has a stride of 16: 32 is coarser'),
        (dict(VIT, out_type='featmap'), 8, 'of stride 16, cannot have a stride of 8'),
        (VIT, None, 'maps .* or tokens .* got a tensor of shape'),
    ],
)
def test_stride__errors(backbone, stride, message):
    with pytest.raises(ValueError, match=message):
        LabelPropagator(backbone, stride=stride)


# ---------------------------------------------------------------------------- propagator


def frames(num: int = 3, **first) -> list[tuple[torch.Tensor, BaseDataElement]]:
    scene = torch.rand(1, 3, 48, 64)
    first = first or dict(gt_label=square())
    return [(scene.roll(4 * t, 3), sample(t, **(first if t == 0 else {}))) for t in range(num)]


def predict(model, items):
    return [model(image, [frame], mode='predict')[0] for image, frame in items]


@pytest.fixture
def model() -> LabelPropagator:
    model = LabelPropagator(CONVNEXT, stride=4, radius=4).eval()
    model.load_state_dict(model.state_dict())
    return model


def test_predict__only_the_first_label_is_read(model):
    items = frames()
    wanted = [frame.pred_label for frame in predict(model, items)]
    for _, frame in items[1:]:
        frame.gt_label = np.full((48, 64), 5, np.uint8)
    for frame, label in zip(predict(model, items), wanted):
        np.testing.assert_array_equal(frame.pred_label, label)
    assert wanted[0].shape == (48, 64) and set(np.unique(wanted[-1])) == {0, 1}


def test_predict__videos_do_not_touch_each_other(model):
    video, other = frames(), frames(gt_label=square(side=24))
    alone = [frame.pred_label for frame in predict(model, video)]
    predict(model, other)
    for frame, wanted in zip(predict(model, video), alone):
        np.testing.assert_array_equal(frame.pred_label, wanted)


def test_predict__keypoints():
    model = LabelPropagator(
        CONVNEXT, codec=dict(type='videomac_mm.KeypointCodec'), stride=4, radius=4
    ).eval()
    model.load_state_dict(model.state_dict())
    points = np.array([[20.0, 40.0], [12.0, 30.0]])
    out = predict(model, frames(gt_keypoints=points))
    assert all(frame.pred_keypoints.shape == (2, 2) and frame.grid == (12, 16) for frame in out)


@pytest.mark.parametrize('ids', [[0, 2], [1], [0, 1, 1]])
def test_predict__frames_out_of_order(model, ids):
    items = frames()
    with pytest.raises(ValueError, match='must come in order, as VideoSampler gives them'):
        predict(model, [items[i] for i in ids])


def test_predict__first_frame_of_another_video_missing(model):
    items = frames()
    items[1][1].set_metainfo(dict(video='other'))
    with pytest.raises(ValueError, match="frame 1 of 'other' came after"):
        predict(model, items)


def test_predict__one_frame_video_and_empty_mask(model):
    empty = np.zeros((48, 64), np.uint8)
    (frame,) = predict(model, frames(1, gt_label=empty))
    np.testing.assert_array_equal(frame.pred_label, empty)
    assert all(frame.pred_label.max() == 0 for frame in predict(model, frames(gt_label=empty)))


def test_predict__batches_are_refused(model):
    with pytest.raises(ValueError, match='one frame at a time, got 2'):
        model(torch.zeros(2, 3, 48, 64), [sample(), sample()], mode='predict')


def test_forward__no_loss(model):
    with pytest.raises(ValueError, match="got 'loss'"):
        model(torch.zeros(1, 3, 48, 64), mode='loss')


def test_memory__half_precision():
    model = LabelPropagator(CONVNEXT, stride=4, radius=4, dtype='float16').eval()
    predict(model, frames(2))
    assert model._frames._strips.dtype == torch.float16


# ------------------------------------------------------------------------------- weights


def test_weights__of_a_pre_training_checkpoint(model):
    state = {name: torch.rand_like(value) for name, value in model.state_dict().items()}
    found = nn.Module.load_state_dict(model, {**state, 'neck.a': torch.zeros(1)}, strict=False)
    assert not found.missing_keys and not found.unexpected_keys
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_weights__of_another_kind_are_refused(model):
    with pytest.raises(ValueError, match='no weight of the backbone: .*got .*conv1.weight'):
        model.load_state_dict({'conv1.weight': torch.zeros(1)}, strict=False)


def test_weights__random_ones_are_those_of_init_cfg():
    init_cfg = dict(type='Constant', layer='LayerNorm', val=3.0)
    model = LabelPropagator(dict(CONVNEXT, init_cfg=init_cfg), stride=4).eval()
    predict(model, frames(1))
    assert (model.backbone.norm2.weight == 3).all()


@pytest.mark.parametrize('name', ['topk', 'temperature', 'num_frames'])
def test_propagator__errors(name):
    with pytest.raises(ValueError, match=f'{name} must be positive, got 0'):
        LabelPropagator(CONVNEXT, **{name: 0})


def test_propagator__unknown_dtype():
    with pytest.raises(ValueError, match="dtype must be one of .* got 'half'"):
        LabelPropagator(CONVNEXT, dtype='half')


def test_predict__never_changes_weights(model):
    weights = {k: torch.randn_like(v) for k, v in model.backbone.state_dict().items()}
    model.backbone.load_state_dict(weights)
    predict(model, frames())
    assert all(torch.equal(v, weights[k]) for k, v in model.backbone.state_dict().items())

    model = LabelPropagator(CONVNEXT).eval()
    with torch.no_grad():
        for param in model.backbone.parameters():
            param.copy_(torch.randn_like(param))
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    predict(model, frames())
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())


def test_weights__of_another_size_or_with_a_missing_stage_are_refused():
    model = LabelPropagator(CONVNEXT)
    wide = dict(CONVNEXT, arch=dict(depths=[1, 1, 1, 1], channels=[4, 6, 10, 12]))
    for wrong in (
        LabelPropagator(wide).state_dict(),
        {k: v for k, v in model.state_dict().items() if 'stages.1' not in k},
    ):
        with pytest.raises(ValueError, match='does not fill the backbone.*missing.*another shape'):
            model.load_state_dict(wrong, strict=False)
