"""Weights in the layouts of official code and of other toolboxes, made here."""

import re

import pytest
import torch
from torch import Tensor, nn

from videomac_mm.models import SparseConvNeXt, SparseResNet, VideoMAC
from videomac_mm.models.backbones.sparse_resnet import SparseBasicBlock, SparseBottleneck

CHANNELS = [4, 6, 8, 10]
ARCH = dict(depths=[1, 2, 1, 1], channels=CHANNELS)
CONVNEXTS = {
    'convnext-v1': dict(),
    'convnext-v1-convs': dict(linear_pw_conv=False),
    'convnext-v2': dict(use_grn=True, layer_scale_init_value=0.0),
    'convnext-v2-convs': dict(use_grn=True, layer_scale_init_value=0.0, linear_pw_conv=False),
}
RESNETS = {'resnet-18': 18, 'resnet-50': 50}

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
        arch=ARCH,
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
