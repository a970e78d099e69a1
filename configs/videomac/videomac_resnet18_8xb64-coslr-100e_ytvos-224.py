_base_ = [
    '../_base_/models/videomac_resnet.py',
    '../_base_/datasets/ytvos_pairs_224.py',
    '../_base_/schedules/videomac_100e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(depth=18),
    neck=dict(in_channels=512),
)
