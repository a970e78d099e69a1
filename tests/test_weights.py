"""Weights in the layouts of official code, made here, and of other toolboxes, and back."""

import argparse
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import load_checkpoint
from mmpretrain.models.backbones.convnext import ConvNeXt
from mmpretrain.models.backbones.resnet import ResNet
from torch import Tensor, nn

from tests.test_models import test_videomae
from videomac_mm.models import SparseConvNeXt, SparseResNet, VideoMAC, VideoVisionTransformer
from videomac_mm.models.backbones.sparse_resnet import SparseBasicBlock, SparseBottleneck
from videomac_mm.registry import MODELS
from videomac_mm.weights import (
    check_complete,
    from_fcmae,
    from_mmaction,
    from_timm,
    from_videomac,
    from_videomae,
    read_checkpoint,
    to_mmaction,
    to_mmpretrain,
    to_timm,
)

CHANNELS = [4, 6, 8, 10]
# (pattern of our name, the official name); the first that matches whole is taken.
OFFICIAL_NAMES = [
    (r'neck\.mask_token', r'mask_token'),
    (r'neck\.(proj|pred)\.(\w+)', r'\1.\2'),
    (r'neck\.decoder\.0\.depthwise_conv\.(\w+)', r'decoder.0.dwconv.\1'),
    (r'neck\.decoder\.0\.pointwise_conv(\d)\.(\w+)', r'decoder.0.pwconv\1.\2'),
    (r'neck\.decoder\.0\.(\w+)\.(\w+)', r'decoder.0.\1.\2'),
    (r'backbone\.downsample_layers\.0\.(\d)\.(\w+)', r'encoder.downsample_layers.0.\1.\2'),
    (r'backbone\.downsample_layers\.(\d)\.0\.(\w+)', r'encoder.downsample_layers.\1.0.ln.\2'),
    (r'backbone\.downsample_layers\.(\d)\.1\.(\w+)', r'encoder.downsample_layers.\1.1.\2'),
    (r'backbone\.(stages.*)\.depthwise_conv\.(\w+)', r'encoder.\1.dwconv.\2'),
    (r'backbone\.(stages.*)\.pointwise_conv(\d)\.(\w+)', r'encoder.\1.pwconv\2.linear.\3'),
    (r'backbone\.(stages.*)\.norm\.(\w+)', r'encoder.\1.norm.ln.\2'),
    (r'backbone\.(stages.*)\.grn\.(\w+)', r'encoder.\1.grn.\2'),
    (r'backbone\.norm(\d)\.(\w+)', r'encoder.norm\1.ln.\2'),
    (r'backbone\.conv1\.(\w+)', r'encoder.stem.0.\1'),
    (r'backbone\.ln1\.(\w+)', r'encoder.stem.1.\1'),
    (r'backbone\.(layer.*)\.ln(\d)\.(\w+)', r'encoder.\1.norm\2.ln.\3'),
    (r'backbone\.(layer.*)\.conv(\d)\.(\w+)', r'encoder.\1.conv\2.\3'),
    (r'backbone\.(layer.*)\.downsample\.0\.(\w+)', r'encoder.\1.downsample.0.\2'),
    (r'backbone\.(layer.*)\.downsample\.1\.(\w+)', r'encoder.\1.downsample.1.ln.\2'),
]


def minkowski_kernel(weight: Tensor) -> Tensor:
    """(out, in, K, K) -> (K², in, out), or (K², C) if depth-wise; written as loops on purpose.

    Entry k of a kernel belongs to the offset (row k % K, column k // K) of the window.
    """
    side = weight.shape[-1]
    offsets = [(k % side, k // side) for k in range(side**2)]
    kernel = torch.stack([weight[:, :, row, column].T for row, column in offsets])
    if weight.shape[1] == 1:  # here, in encoders, only depth-wise convs
        return kernel[:, 0]
    return kernel


def to_official(state_dict: dict) -> dict:
    """The inverse of `from_videomac`."""
    official = {}
    for key, value in state_dict.items():
        if key.startswith('target.'):
            continue
        name = next(
            match.expand(name)
            for pattern, name in OFFICIAL_NAMES
            if (match := re.fullmatch(pattern, key))
        )
        stem = 'downsample_layers.0.' in name or 'stem' in name
        if name.startswith('encoder') and value.ndim == 4 and not stem:
            name = name.removesuffix('weight') + 'kernel'
            value = minkowski_kernel(value)
            if len(value) == 1 and 'downsample' not in name:
                value = value[0]  # as 1x1 convs of stride 1 are saved
        elif name.startswith('encoder') and 'grn' in name:
            value = value[None]
        elif name.startswith('decoder') and 'grn' in name:
            value = value[None, None, None]
        elif name.startswith('encoder') and value.ndim == 1 and not stem:
            if 'dwconv' in name or re.search(r'downsample_layers\.\d\.1\.bias', name):
                value = value[None]  # biases of sparse convs
        official[name] = value
    return official


def convnext(use_grn: bool) -> dict:
    return dict(
        type='videomac_mm.SparseConvNeXt',
        arch=dict(depths=[1, 2, 1, 1], channels=CHANNELS),
        use_grn=use_grn,
        layer_scale_init_value=0.0,
        stage_norm='inline',
    )


def resnet(block: type) -> SparseResNet:
    class ShallowResNet(SparseResNet):
        arch_settings = {0: (block, (1, 2, 1, 1))}

    return ShallowResNet(0, variant='videomac', stem_channels=4, base_channels=4)


BACKBONES = {
    'convnext-v1': lambda: convnext(use_grn=False),
    'convnext-v2': lambda: convnext(use_grn=True),
    'basic-block': lambda: resnet(SparseBasicBlock),
    'bottleneck': lambda: resnet(SparseBottleneck),
}


def build(name: str) -> VideoMAC:
    """A small VideoMAC without a zero, or otherwise special, parameter."""
    channels = {'basic-block': 32, 'bottleneck': 128}.get(name, CHANNELS[-1])
    neck = dict(type='videomac_mm.MaskTokenDecoder', in_channels=channels, embed_dims=8)
    model = VideoMAC(
        BACKBONES[name](),
        neck,
        dict(type='videomac_mm.PixelHead'),
        data_preprocessor=dict(type='mmaction.ActionDataPreprocessor'),
    )
    for param in model.parameters():
        torch.nn.init.normal_(param)
    return model


@pytest.fixture
def run_tool(root, monkeypatch, capsys) -> Callable[..., str]:
    """Run the tool in this process, which spares the imports; returns what it prints."""

    def run(src: Path, dst: Path, *options: str) -> str:
        tool = str(root / 'tools/convert_weights.py')
        monkeypatch.setattr(sys, 'argv', [tool, str(src), str(dst), *options])
        runpy.run_path(tool, run_name='__main__')
        return capsys.readouterr().out

    return run


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


def test_from_videomac__unknown_keys_are_listed():
    official = to_official(build('convnext-v2').state_dict())
    official['encoder.head.weight'] = official['encoder.stages.0.0.dwconv.scale.x'] = torch.ones(1)
    with pytest.raises(KeyError, match='encoder.head.weight.*encoder.stages.0.0.dwconv.scale.x'):
        from_videomac(official)


def test_tool__converts_both_networks_of_an_official_checkpoint(tmp_path, run_tool):
    model = build('convnext-v2')  # its target has other weights than its online network
    weights = model.state_dict()
    target = {k.removeprefix('target.'): v for k, v in weights.items() if k.startswith('target.')}
    checkpoint = dict(
        model_online={f'module.{key}': value for key, value in to_official(weights).items()},
        model_target=to_official(target),
        epoch=99,
        args=argparse.Namespace(model='mac_convnextv2_tiny'),
    )
    torch.save(checkpoint, tmp_path / 'official.pth')
    printed = run_tool(tmp_path / 'official.pth', tmp_path / 'new' / 'ours.pth')
    assert re.search(rf'backbone\s+{len(model.backbone.state_dict())} tensors', printed)

    other = build('convnext-v2')
    loaded = load_checkpoint(other, str(tmp_path / 'new' / 'ours.pth'), strict=True)
    assert loaded['meta']['epoch'] == 100
    for key, value in weights.items():
        assert torch.equal(other.state_dict()[key], value), key


def test_tool__one_network_becomes_online_and_target(tmp_path, run_tool):
    model = build('bottleneck')
    torch.save(dict(model=to_official(model.state_dict())), tmp_path / 'official.pth')
    printed = run_tool(tmp_path / 'official.pth', tmp_path / 'ours.pth')
    assert 'the target becomes its copy' in printed
    state_dict = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert set(state_dict) == set(model.state_dict())
    for key, value in state_dict.items():
        assert torch.equal(value, model.state_dict()[key.removeprefix('target.')]), key


class Intruder:
    def __reduce__(self):
        return os.mkdir, ('intruder-was-here',)


def test_tool__refuses_files_that_hold_code(tmp_path, run_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(model={}, extra=Intruder()), 'bad.pth')
    with pytest.raises(ValueError, match='(?s)bad.pth is refused: .*tensors and plain.*mkdir'):
        run_tool(Path('bad.pth'), Path('ours.pth'))
    assert [path.name for path in tmp_path.iterdir()] == ['bad.pth']


def test_tool__names_what_it_found_instead_of_weights(tmp_path, run_tool):
    torch.save(dict(epoch=3, scaler={}), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=r"got the keys \['epoch', 'scaler'\]"):
        run_tool(tmp_path / 'bad.pth', tmp_path / 'ours.pth')


def test_tool__lists_keys_of_other_code(tmp_path, run_tool):
    torch.save({'features.0.weight': torch.ones(1)}, tmp_path / 'bad.pth')
    with pytest.raises(KeyError, match='features.0.weight'):
        run_tool(tmp_path / 'bad.pth', tmp_path / 'ours.pth')


# ------------------------------------------------------------------- VideoMAE

# Parts of our names and what they are in the official ones, one after the other.
VIDEOMAE_NAMES = [
    ('backbone.', 'encoder.'),
    ('neck.decoders.0.mask_token', 'mask_token'),
    ('neck.decoders.0.proj.', 'encoder_to_decoder.'),
    ('neck.decoders.0.preds.0.', 'decoder.head.'),
    ('neck.decoders.0.', 'decoder.'),
    ('patch_embed.projection.', 'patch_embed.proj.'),
    ('mlp.layers.0.0.', 'mlp.fc1.'),
    ('mlp.layers.1.', 'mlp.fc2.'),
]


def to_official_videomae(state_dict: dict) -> dict:
    """The inverse of `from_videomae`; the official code saves no positions."""
    official = {}
    for name, value in state_dict.items():
        if not name.endswith('pos_embed'):
            for ours, theirs in VIDEOMAE_NAMES:
                name = name.replace(ours, theirs)
            official[name] = value
    return official


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


def test_tool__converts_a_checkpoint_of_videomae(tmp_path, run_tool):
    model = test_videomae.build()
    weights = model.state_dict()
    checkpoint = dict(
        model={f'module.{key}': value for key, value in to_official_videomae(weights).items()},
        epoch=799,
        args=argparse.Namespace(model='pretrain_videomae_base_patch16_224'),
    )
    torch.save(checkpoint, tmp_path / 'official.pth')
    printed = run_tool(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--source', 'videomae')
    assert re.search(rf'backbone\s+{len(model.backbone.state_dict()) - 1} tensors', printed)
    assert re.search(rf'neck\s+{len(model.neck.state_dict())} tensors', printed)
    assert 'target' not in printed

    loaded = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert loaded['meta']['epoch'] == 800 and loaded['meta']['source'] == 'videomae'
    other = test_videomae.build()
    missing, unexpected = other.load_state_dict(loaded['state_dict'], strict=False)
    assert (missing, unexpected) == (['backbone.pos_embed'], [])
    for key, value in weights.items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize('source', ['videomac', 'videomae'])
def test_tool__refuses_weights_of_the_other_code(source, tmp_path, run_tool):
    if source == 'videomac':
        weights = to_official_videomae(test_videomae.build().state_dict())
    else:
        weights = to_official(build('convnext-v2').state_dict())
    torch.save(dict(model=weights), tmp_path / 'official.pth')
    with pytest.raises(KeyError, match=rf'(?i)not weights of the official {source} code'):
        run_tool(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--source', source)
    assert not (tmp_path / 'ours.pth').exists()


# ---------------------------------------------------- FCMAE and other toolboxes

ARCH = dict(depths=[1, 2, 1, 1], channels=CHANNELS)
CONVNEXTS = {
    'convnext-v1': dict(),
    'convnext-v1-convs': dict(linear_pw_conv=False),
    'convnext-v2': dict(use_grn=True, layer_scale_init_value=0.0),
    'convnext-v2-convs': dict(use_grn=True, layer_scale_init_value=0.0, linear_pw_conv=False),
}
RESNETS = {'resnet-18': 18, 'resnet-50': 50}
BLOCKS = {18: SparseBasicBlock, 50: SparseBottleneck}


def randomise(model: nn.Module, std: float = 0.2) -> nn.Module:
    """No parameter, or statistic, is special; features stay of ordinary size."""
    for param in model.parameters():
        nn.init.normal_(param, std=std)
    for name, buffer in model.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model.eval()


def dense(name: str) -> dict[str, Tensor]:
    """Weights of a backbone that others have too, with a classifier of 5 classes."""
    if name in CONVNEXTS:
        backbone = SparseConvNeXt(ARCH, **CONVNEXTS[name])
    else:
        backbone = SparseResNet(RESNETS[name], stem_channels=4, base_channels=4)
    channels = backbone.channels[-1] if name in CONVNEXTS else backbone.feat_dim
    model = nn.ModuleDict(
        dict(backbone=backbone, head=nn.ModuleDict(dict(fc=nn.Linear(channels, 5))))
    )
    return randomise(model).state_dict()


def of_backbone(weights: dict) -> dict:
    return {k.removeprefix('backbone.'): v for k, v in weights.items() if 'backbone.' in k}


def assert_same(got: dict, wanted: dict) -> None:
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        assert torch.equal(got[key], value), key


def timm_model(name: str, **kwargs) -> nn.Module:
    timm = pytest.importorskip('timm')
    if name in RESNETS:
        return timm.create_model(name.replace('-', ''), **kwargs)
    options = dict(
        use_grn='v2' in name, ls_init_value=None if 'v2' in name else 1e-6, conv_mlp='convs' in name
    )
    convnext = timm.models.convnext.ConvNeXt
    return convnext(depths=ARCH['depths'], dims=CHANNELS, **options, **kwargs)


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


@pytest.mark.parametrize(
    'name', [*CONVNEXTS, *RESNETS, 'videomac-v1', 'videomac-resnet', 'videomae']
)
def test_check_complete__lists_whatever_is_missing(name):
    inline = name.startswith('videomac-v')
    if name == 'videomae':
        weights = test_videomae.build().state_dict()
    elif name.startswith('videomac'):
        model = build('convnext-v1' if inline else 'basic-block')
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith('target.')}
    else:
        weights = dense(name)
    check_complete(weights, inline_norms=inline)
    needed = [key for key in weights if not key.endswith(('num_batches_tracked', 'pos_embed'))]
    # The last block's keys, of those that all blocks have, are the hardest to miss.
    for key in needed[:: max(1, len(needed) // 40)] + needed[-4:]:
        with pytest.raises(KeyError, match=re.escape(repr(key))):
            check_complete({k: v for k, v in weights.items() if k != key}, inline_norms=inline)
    with pytest.raises(KeyError, match=r"unknown \['backbone.spare.weight'\]"):
        check_complete(weights | {'backbone.spare.weight': torch.ones(1)}, inline_norms=inline)


def test_check_complete__counters_and_fixed_positions_may_be_missing():
    weights = dense('resnet-18')
    check_complete({k: v for k, v in weights.items() if not k.endswith('num_batches_tracked')})
    weights = test_videomae.build().state_dict()
    assert weights.pop('backbone.pos_embed') is not None
    check_complete(weights)


def test_check_complete__names_what_is_no_backbone():
    with pytest.raises(KeyError, match=r"no backbone.*\['features.0.weight'\]"):
        check_complete({'backbone.features.0.weight': torch.ones(1)})


@pytest.mark.parametrize('target', ['mmpretrain', 'mmaction', 'timm'])
@pytest.mark.parametrize('name', ['convnext-v2', 'resnet-18'])
def test_tool__exports_and_takes_back(tmp_path, run_tool, name, target):
    weights = dense(name)
    extra = {'neck.mask_token': torch.ones(1), 'target.neck.mask_token': torch.ones(1)}
    torch.save(dict(state_dict=weights | extra, meta=dict(epoch=3)), tmp_path / 'ours.pth')
    path = tmp_path / 'new' / 'theirs.pth'
    printed = run_tool(tmp_path / 'ours.pth', path, '--source', 'ours', '--target', target)
    assert 'left out: neck.mask_token, target.neck.mask_token' in printed
    source = 'ours' if target == 'mmpretrain' else target
    run_tool(path, tmp_path / 'back.pth', '--source', source)
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict']
    assert_same(back, weights)


@pytest.mark.parametrize('name', [*CONVNEXTS, 'resnet-18'])
def test_tool__writes_and_reads_a_backbone_as_safetensors(tmp_path, run_tool, name):
    safetensors = pytest.importorskip('safetensors.torch')
    weights = dense(name)
    torch.save(dict(state_dict=weights), tmp_path / 'ours.pth')
    ours, timms = tmp_path / 'backbone.safetensors', tmp_path / 'timm.safetensors'
    run_tool(tmp_path / 'ours.pth', ours, '--source', 'ours')
    assert_same(safetensors.load_file(ours), of_backbone(weights))
    run_tool(ours, timms, '--source', 'ours', '--target', 'timm')
    if name in CONVNEXTS:  # the small ResNets of this file have other widths
        model = timm_model(name, num_classes=0)
        model.load_state_dict(safetensors.load_file(timms), strict=True)
    back = tmp_path / 'back.safetensors'
    run_tool(timms, back, '--source', 'timm')
    assert_same(safetensors.load_file(back), of_backbone(weights))


def test_tool__drops_only_what_is_named(tmp_path, run_tool):
    model = build('convnext-v2')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'ours.pth')
    options = ('--source', 'ours', '--target', 'mmpretrain')
    with pytest.raises(KeyError, match=r"mmpretrain for: \['backbone.norm0.weight'.*norm2.bias'\]"):
        run_tool(tmp_path / 'ours.pth', tmp_path / 'theirs.pth', *options)
    assert not (tmp_path / 'theirs.pth').exists()
    drop = ('--drop', r'backbone\.norm[0-2]\..*')
    printed = run_tool(tmp_path / 'ours.pth', tmp_path / 'theirs.pth', *options, *drop)
    assert 'backbone.norm0.weight' in printed
    state_dict = torch.load(tmp_path / 'theirs.pth', weights_only=True)['state_dict']
    theirs = ConvNeXt(ARCH, use_grn=True, layer_scale_init_value=0.0)
    theirs.load_state_dict(of_backbone(state_dict), strict=True)


@pytest.mark.parametrize('source', ['timm', 'fcmae', 'mmaction'])
def test_tool__lists_missing_keys_and_writes_nothing(tmp_path, run_tool, source):
    weights = dense('convnext-v2')
    official = {
        'timm': to_timm,
        'mmaction': to_mmaction,
        'fcmae': lambda weights: to_official(
            {k: v for k, v in weights.items() if not re.match(r'head|backbone\.norm', k)}
        ),
    }[source](weights)
    missing = next(k for k in official if re.search(r'stages\.2\.(blocks\.)?0\.', k))
    torch.save({k: v for k, v in official.items() if k != missing}, tmp_path / 'official.pth')
    with pytest.raises(KeyError, match=r"missing \['backbone.stages.2.0.[\w.]+'\], unknown \[\]"):
        run_tool(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--source', source)
    assert not (tmp_path / 'ours.pth').exists()


def test_safetensors__absent_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ImportError, match=r"pip install 'videomac_mm\[weights\]'"):
        read_checkpoint(tmp_path / 'backbone.safetensors')
