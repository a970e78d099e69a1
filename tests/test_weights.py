"""Weights in the layouts of the official VideoMAC and VideoMAE code, made here, and back."""

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
from torch import Tensor

from tests.test_models import test_videomae
from videomac_mm.models import SparseResNet, VideoMAC
from videomac_mm.models.backbones.sparse_resnet import SparseBasicBlock, SparseBottleneck
from videomac_mm.weights import from_videomac, from_videomae

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
    assert re.search(r'target\s+0 tensors', printed)

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
