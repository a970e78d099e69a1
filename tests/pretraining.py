"""What pre-training with VideoMAC leaves behind, for tests of what comes after it."""

from os import PathLike

import torch

from videomac_mm.models import SparseConvNeXt
from videomac_mm.registry import MODELS

CHANNELS = [4, 6, 8, 10]


def shrink_backbone(backbone: dict) -> int:
    """Make a `SparseConvNeXt` or `SparseResNet` small, in place.

    Returns:
        Channels of its last stage.
    """
    if backbone['type'] == 'videomac_mm.SparseResNet':
        backbone.update(base_channels=4, stem_channels=4)
        return 4 * 8 * 4
    depths = SparseConvNeXt.arch_settings[backbone['arch']]['depths']
    backbone['arch'] = dict(depths=[1] * len(depths), channels=CHANNELS)
    return CHANNELS[-1]


def write_pretraining_checkpoint(backbone: dict, path: str | PathLike) -> dict[str, torch.Tensor]:
    """Write a checkpoint of VideoMAC with this encoder, and return its weights.

    No value is one that an initialisation would give.
    """
    encoder = {key: value for key, value in backbone.items() if key != 'frozen_stages'}
    encoder.update(drop_path_rate=0.0, out_indices=(3,))
    probe = MODELS.build(encoder)(torch.zeros(1, 3, 32, 32))
    model = dict(
        type='videomac_mm.VideoMAC',
        backbone=encoder,
        neck=dict(
            type='videomac_mm.MaskTokenDecoder',
            in_channels=probe[-1].shape[1],
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
