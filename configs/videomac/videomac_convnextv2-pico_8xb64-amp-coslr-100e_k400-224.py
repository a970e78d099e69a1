# Not in the paper: the recipe of its ConvNeXt-V2-T.
_base_ = [
    '../_base_/models/videomac_convnext.py',
    '../_base_/datasets/k400_pairs_224.py',
    '../_base_/schedules/videomac_100e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(arch='pico'),
    neck=dict(in_channels=512),
)
optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
