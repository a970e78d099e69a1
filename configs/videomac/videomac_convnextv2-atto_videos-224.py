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

train_pipeline = [
    dict(type='videomac_mm.OpenVideo'),
    # The time between two stored frames of YouTube-VOS, as the base config.
    dict(type='videomac_mm.SampleFramePair', frame_interval=1 / 6, unit='seconds'),
    dict(type='mmaction.DecordDecode'),
    dict(
        type='videomac_mm.ForEachClip',
        repeats=4,  # decoding a pair costs several times the step that it feeds
        transforms=[
            dict(
                type='mmaction.RandomResizedCrop',
                # not the paper's 0.2 to 1: a short run sees little, and should see it often
                area_range=(0.5, 1.0),
                aspect_ratio_range=(3 / 4, 4 / 3),
            ),
            dict(
                type='mmaction.Resize',
                scale=(224, 224),
                keep_ratio=False,
                interpolation='bicubic',
            ),
            dict(type='mmaction.Flip', flip_ratio=0.5),
        ],
    ),
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]
train_dataloader = dict(
    batch_size=4,  # with the repeats, 16 pairs
    num_workers=1,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)

max_iters = 700
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
