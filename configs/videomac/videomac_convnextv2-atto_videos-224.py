# A folder of videos on two CPU cores, in a quarter of an hour. Point it at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
_base_ = [
    '../_base_/models/videomac_convnext.py',
    '../_base_/datasets/video_pairs_224.py',
    '../_base_/schedules/videomac_cpu.py',
    '../_base_/default_runtime.py',
]
# Truncated normal of std 0.02, not the official code's 1, from which a short run does not recover.
init_cfg = [dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02)]
model = dict(
    backbone=dict(arch='atto', init_cfg=init_cfg),
    neck=dict(in_channels=320, embed_dims=256, init_cfg=init_cfg),
)
max_iters = 700
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
