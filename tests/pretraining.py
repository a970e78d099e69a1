"""What pre-training with VideoMAC leaves behind, for tests of what comes after it."""

from os import PathLike

import torch

from videomac_mm.models import SparseConvNeXt, SparseResNet
from videomac_mm.models.backbones.sparse_resnet import SparseBottleneck
from videomac_mm.registry import MODELS

CHANNELS = [4, 6, 8, 10]


def convnet_channels(backbone: dict) -> int:
    """Channels of the last stage of a `SparseConvNeXt` or `SparseResNet`."""
    if backbone['type'] == 'videomac_mm.SparseResNet':
        block, _ = SparseResNet.arch_settings[backbone['depth']]
        return backbone.get('base_channels', 64) * 8 * (4 if block is SparseBottleneck else 1)
    arch = backbone['arch']
    return (SparseConvNeXt.arch_settings[arch] if isinstance(arch, str) else arch)['channels'][-1]


def shrink_backbone(backbone: dict) -> int:
    """Make a `SparseConvNeXt` or `SparseResNet` small, in place.

    Returns:
        Channels of its last stage.
    """
    if backbone['type'] == 'videomac_mm.SparseResNet':
        backbone.update(base_channels=4, stem_channels=4)
    else:
        arch = SparseConvNeXt.arch_settings[backbone['arch']]
        stages = len(arch['depths'])
        backbone['arch'] = {**arch, 'depths': [1] * stages, 'channels': CHANNELS[-stages:]}
    return convnet_channels(backbone)


def write_pretraining_checkpoint(backbone: dict, path: str | PathLike) -> dict[str, torch.Tensor]:
    """Write a checkpoint of VideoMAC with this encoder, and return its weights.

    No value is one that an initialisation would give.
    """
    encoder = {key: value for key, value in backbone.items() if key != 'frozen_stages'}
    encoder.update(drop_path_rate=0.0, out_indices=(3,))
    model = dict(
        type='videomac_mm.VideoMAC',
        backbone=encoder,
        neck=dict(
            type='videomac_mm.MaskTokenDecoder',
            in_channels=convnet_channels(encoder),
            embed_dims=4,
            patch_size=32,
        ),
        head=dict(type='videomac_mm.PixelHead', patch_size=32),
        mask_generator=dict(type='videomac_mm.RandomPatchMask', patch_size=32),
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor',
            mean=[0, 0, 0],
            std=[1, 1, 1],
            format_shape='NCTHW',
        ),
    )
    state = MODELS.build(model).state_dict()
    for value in state.values():
        value.add_(0.1 * torch.randn_like(value))
    torch.save(dict(state_dict=state), path)
    return state
