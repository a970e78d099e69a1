# Two CPU cores, a few minutes, no download: generated videos of moving shapes.
_base_ = [
    '../_base_/models/videomac_convnext.py',
    '../_base_/datasets/synthetic_pairs.py',
    '../_base_/schedules/videomac_cpu.py',
    '../_base_/default_runtime.py',
]
# Truncated normal of std 0.02, not the official code's 1, from which a short run does not recover.
init_cfg = [dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02)]
model = dict(
    backbone=dict(arch='atto', init_cfg=init_cfg),
    neck=dict(in_channels=320, embed_dims=256, init_cfg=init_cfg),
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
