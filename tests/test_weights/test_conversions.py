"""Names and layouts of official code and of other toolboxes, and back."""

import re

import pytest
import torch
from mmpretrain.models.backbones.convnext import ConvNeXt
from mmpretrain.models.backbones.resnet import ResNet
from torch import nn

from tests.test_models import test_videomae
from tests.test_weights.examples import (
    ARCH,
    BACKBONES,
    CONVNEXTS,
    RESNETS,
    assert_same,
    build,
    dense,
    of_backbone,
    randomise,
    timm_model,
    to_official,
    to_official_videomae,
)
from videomac_mm.models import SparseConvNeXt, SparseResNet, VideoVisionTransformer
from videomac_mm.registry import MODELS
from videomac_mm.weights import (
    check_complete,
    from_fcmae,
    from_mmaction,
    from_timm,
    from_videomac,
    from_videomae,
    to_mmaction,
    to_mmpretrain,
    to_timm,
)


@pytest.mark.parametrize('name', BACKBONES)
def test_from_videomac__round_trip_is_exact(name):
    model = build(name)
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith('target.')}
    official = to_official(wanted)
    assert len(official) == len(wanted)
    converted = from_videomac(official)
    assert set(converted) == set(wanted)
    for key, value in wanted.items():
        assert torch.equal(converted[key], value), key


def test_from_videomac__unknown_keys_are_listed():
    official = to_official(build('convnext-v2').state_dict())
    official['encoder.head.weight'] = official['encoder.stages.0.0.dwconv.scale.x'] = torch.ones(1)
    with pytest.raises(KeyError, match='encoder.head.weight.*encoder.stages.0.0.dwconv.scale.x'):
        from_videomac(official)


def test_from_videomae__round_trip_is_exact():
    wanted = test_videomae.build().state_dict()
    official = to_official_videomae(wanted)
    assert len(official) == len(wanted) - 1
    assert {name.split('.')[0] for name in official} == {
        *('encoder', 'decoder', 'encoder_to_decoder', 'mask_token')
    }
    converted = from_videomae(official)
    assert set(converted) == set(wanted) - {'backbone.pos_embed'}
    for key, value in converted.items():
        assert torch.equal(value, wanted[key]), key


def test_from_videomae__unknown_keys_are_listed():
    official = to_official_videomae(test_videomae.build().state_dict())
    official['head.weight'] = official['encoder.fc_norm.weight'] = torch.ones(1)
    with pytest.raises(KeyError, match="VideoMAE.*'head.weight', 'encoder.fc_norm.weight'"):
        from_videomae(official)


# Parts of our names and what they are in the dense ones of ConvNeXt V2's code.
DENSE_FCMAE_NAMES = [
    ('backbone.norm3.', 'norm.'),
    ('backbone.', ''),
    ('head.fc.', 'head.'),
    ('depthwise_conv', 'dwconv'),
    ('pointwise_conv', 'pwconv'),
]


@pytest.mark.parametrize('grn_axes', [1, 2, 4])
def test_from_fcmae__round_trip_of_a_dense_layout_is_exact(grn_axes):
    wanted = dense('convnext-v2')
    official = {}
    for name, value in wanted.items():
        for ours, theirs in DENSE_FCMAE_NAMES:
            name = name.replace(ours, theirs)
        # Saved as (1, 1, 1, C) by the dense network, as (1, C) by the sparse one.
        official[name] = value.view(*[1] * (grn_axes - 1), -1) if 'grn' in name else value
    assert {'norm.weight', 'head.bias', 'stages.1.1.pwconv2.bias'} < set(official)
    converted = from_fcmae(official)
    assert_same(converted, wanted)
    check_complete(converted)


def test_from_fcmae__round_trip_of_the_layout_of_pre_training_is_exact():
    wanted = {
        key: value
        for key, value in build('convnext-v2').state_dict().items()
        if not re.match(r'target\.|backbone\.norm\d', key)  # FCMAE has no such norms
    }
    official = to_official(wanted)
    assert official['encoder.stages.1.1.dwconv.kernel'].shape == (49, 6)
    assert official['encoder.stages.1.1.grn.gamma'].shape == (1, 24)
    converted = from_fcmae(official)
    assert_same(converted, wanted)
    check_complete(converted)
    backbone = SparseConvNeXt(ARCH, **CONVNEXTS['convnext-v2'])
    missing, unknown = backbone.load_state_dict(of_backbone(converted), strict=False)
    assert (missing, unknown) == (['norm3.weight', 'norm3.bias'], [])


def test_from_fcmae__names_given_twice_are_refused():
    weight = torch.ones(4, 1, 7, 7)
    twice = {'stages.0.0.dwconv.weight': weight, 'encoder.stages.0.0.dwconv.weight': weight}
    with pytest.raises(KeyError, match='encoder.stages.0.0.dwconv.weight'):
        from_fcmae(twice)


def test_from_fcmae__unknown_keys_are_listed():
    with pytest.raises(KeyError, match="ConvNeXt V2.*'encoder.norm0.ln.weight', 'fc.weight'"):
        from_fcmae({'encoder.norm0.ln.weight': torch.ones(1), 'fc.weight': torch.ones(1)})


@pytest.mark.parametrize('name', CONVNEXTS)
def test_convnext__agrees_with_timm_and_mmpretrain(name):
    theirs = randomise(timm_model(name, num_classes=5))
    state_dict = theirs.state_dict()
    weights = from_timm(state_dict)
    check_complete(weights)
    assert_same(to_timm(weights), state_dict)
    assert to_mmpretrain(weights).keys() == weights.keys()

    images = torch.randn(2, 3, 64, 64)
    for gap in (True, False):
        options = dict(arch=ARCH, gap_before_final_norm=gap, **CONVNEXTS[name])
        ours, mmpretrains = SparseConvNeXt(**options), ConvNeXt(**options)  # no drop path
        ours.load_state_dict(of_backbone(weights), strict=True)
        mmpretrains.load_state_dict(of_backbone(to_mmpretrain(weights)), strict=True)
        with torch.no_grad():
            (got,) = ours(images)
            features = theirs.forward_features(images)
            if gap:
                wanted = theirs.forward_head(features, pre_logits=True)
            else:
                wanted = theirs.head.norm(features)
            (of_mmpretrain,) = mmpretrains(images)
        assert got.std() > 0.01
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(got, of_mmpretrain, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', RESNETS)
def test_resnet__agrees_with_timm_mmpretrain_and_mmaction(name):
    theirs = timm_model(name, num_classes=5).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)  # the last of a block starts at zero
            nn.init.normal_(module.bias, std=0.1)
    state_dict = theirs.state_dict()
    weights = from_timm(state_dict)
    check_complete(weights)
    assert_same(to_timm(weights), state_dict)
    for_mmaction = to_mmaction(weights)
    assert {'cls_head.fc_cls.weight', 'backbone.layer2.0.downsample.bn.bias'} < set(for_mmaction)
    assert_same(from_mmaction(for_mmaction), weights)

    depth = RESNETS[name]
    others = {
        SparseResNet(depth): weights,
        ResNet(depth): to_mmpretrain(weights),
        MODELS.build(dict(type='mmaction.ResNet', depth=depth)): for_mmaction,
    }
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs.forward_features(images)
        assert 0.1 < wanted.std() < 10
        for model, state_dict in others.items():
            model.load_state_dict(of_backbone(state_dict), strict=True)
            model.eval()  # mmpretrain's returns nothing
            out = model(images)
            got = out[0] if isinstance(out, tuple) else out
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_vision_transformer__goes_to_mmaction_unchanged():
    options = dict(
        img_size=32, embed_dims=8, depth=2, num_heads=2, mlp_ratio=2, num_frames=4, tubelet_size=2
    )
    ours = randomise(VideoVisionTransformer(**options))
    weights = {f'backbone.{key}': value for key, value in ours.state_dict().items()}
    check_complete(weights)
    exported = to_mmaction(weights)
    assert_same(exported, weights)
    assert_same(from_mmaction(exported), weights)
    theirs = MODELS.build(dict(type='mmaction.VisionTransformer', **options)).eval()
    theirs.load_state_dict(of_backbone(exported), strict=True)
    clips = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(ours(clips), theirs(clips), atol=1e-5, rtol=0)
    with pytest.raises(KeyError, match="timm for: .*'backbone.pos_embed'"):
        to_timm(weights)


@pytest.mark.parametrize('name', ['convnext-v2', 'bottleneck'])
@pytest.mark.parametrize('export', [to_mmpretrain, to_mmaction, to_timm])
def test_export__norms_that_others_have_not_are_listed(export, name):
    backbone = build(name).backbone.state_dict()
    weights = {f'backbone.{key}': value for key, value in backbone.items()}
    foreign = {
        'convnext-v2': [
            f'backbone.norm{i}.{leaf}' for i in range(3) for leaf in ('weight', 'bias')
        ],
        'bottleneck': [key for key in weights if '.ln' in key or key == 'backbone.conv1.bias'],
    }[name]
    with pytest.raises(KeyError) as raised:
        export(weights)
    assert str(foreign) in raised.value.args[0]
