# Generated pictures of four classes on two CPU cores, in a few minutes. Written by
# `python tools/prepare_synthetic.py data/synthetic`; any data set in that layout will do, with its
# own root and classes:
#   --cfg-options train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR
#       test_dataloader.dataset.data_root=DIR model.decode_head.num_classes=2
#       train_dataloader.dataset.metainfo.classes=ground,thing (and of val, test)
# Two cores need OMP_WAIT_POLICY=PASSIVE, which videomac_mm's train tool sets by itself.
_base_ = 'mmseg::_base_/default_runtime.py'
custom_imports = dict(imports=['videomac_mm'], allow_failed_imports=False)

size = (112, 112)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=size,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='videomac_mm.SparseConvNeXt',
        arch='atto',
        use_grn=True,
        layer_scale_init_value=0.0,
        stage_norm='inline',
        out_indices=(0, 1, 2, 3),
        # Not truncated normal of std 0.02, from which a short run learns next to nothing.
        init_cfg=dict(type='Kaiming', layer=['Conv2d', 'Linear']),
    ),
    decode_head=dict(
        type='FCNHead',
        # All four maps at the size of the first, which has 28x28 sites.
        in_channels=[40, 80, 160, 320],
        in_index=[0, 1, 2, 3],
        input_transform='resize_concat',
        channels=64,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=5,
        norm_cfg=dict(type='BN'),  # SyncBN needs GPUs
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

# images/train/00000.png and annotations/train/00000.png, whose grey values are the classes.
data = dict(
    type='BaseSegDataset',
    data_root='data/synthetic/segmentation',
    img_suffix='.png',
    seg_map_suffix='.png',
    metainfo=dict(classes=('ground', '0', '1', '2', '3')),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=size, ratio_range=(1.0, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
val_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations'),  # at its own size, at which predictions are measured
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
        **data,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=val_pipeline,
        **data,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

max_iters = 300
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, end=30),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=max_iters),
)
randomness = dict(seed=0)
