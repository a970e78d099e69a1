# Named in the official code, which cannot build it: the recipe of ConvNeXt-V2-T.
_base_ = [
    '../_base_/models/videomac_convnext.py',
    '../_base_/datasets/k400_pairs_224.py',
    '../_base_/schedules/videomac_100e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        arch='isotropic-small',
        # There are no down-sampling convs between stages.
        init_cfg=[dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=1.0)],
    ),
    neck=dict(in_channels=384, patch_size=16),
    head=dict(patch_size=16),
    # The encoder's stride, not the 32 pixels of the other runs: one prediction per site.
    mask_generator=dict(patch_size=16),
)
optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
