# Generated videos of four classes on two CPU cores, in a few minutes:
#   mim run videomac_mm prepare_synthetic data/synthetic
# It starts anew, or from VideoMAC's checkpoint of the same network (load_from=PRETRAINED.pth).
# Lists of other videos (`relative/path.mp4 label`) do as well, with --cfg-options
#   {train,val,test}_dataloader.dataset.{data_root,ann_file,data_prefix.video}=...
_base_ = [
    '../../_base_/fine_tuning/recognition_2d_convnext.py',
    '../../_base_/fine_tuning/recognition_2d_k400.py',
    '../../_base_/default_runtime.py',
]
num_classes = 4
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='atto',
        drop_path_rate=0.0,
        # Not truncated normal of std 0.02, from which a short run learns next to nothing.
        init_cfg=dict(type='Kaiming', layer=['Conv2d', 'Linear']),
    ),
    cls_head=dict(num_classes=num_classes, in_channels=320, dropout_ratio=0.0, topk=1),
)

train_pipeline = [
    _base_.open_and_sample[0],
    dict(_base_.open_and_sample[1], num_clips=4),  # and more videos in a batch
    _base_.open_and_sample[2],
    dict(type='mmaction.RandomResizedCrop', area_range=(0.5, 1.0)),
    dict(type='mmaction.Resize', scale=(112, 112), keep_ratio=False),
    dict(type='mmaction.Flip', flip_ratio=0.5),
    *_base_.pack,
]
val_pipeline = [
    _base_.open_and_sample[0],
    dict(_base_.open_and_sample_test[1], num_clips=4),
    _base_.open_and_sample[2],
    dict(type='mmaction.Resize', scale=(-1, 112)),
    dict(type='mmaction.CenterCrop', crop_size=112),
    *_base_.pack,
]
train_data = dict(
    data_root='data/synthetic', ann_file='videos/train.txt', data_prefix=dict(video='videos/train')
)
val_data = dict(
    data_root='data/synthetic', ann_file='videos/val.txt', data_prefix=dict(video='videos/val')
)
# Two cores are better spent on the model.
workers = dict(num_workers=0, persistent_workers=False, pin_memory=False)
train_dataloader = dict(
    batch_size=16,
    sampler=dict(_delete_=True, type='InfiniteSampler'),
    dataset=dict(pipeline=train_pipeline, **train_data),
    **workers,
)
val_dataloader = dict(dataset=dict(pipeline=val_pipeline, **val_data), **workers)
test_dataloader = dict(dataset=dict(pipeline=val_pipeline, **val_data), **workers)
val_evaluator = dict(type='mmaction.AccMetric', metric_options=dict(top_k_accuracy=dict(topk=(1,))))
test_evaluator = val_evaluator

max_iters = 300
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    # Far above 5e-4 * batch / 256: a short run of a small network.
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='videomac_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _base_.optim_wrapper.paramwise_cfg, layer_decay_rate=0.9, layer_decay_type='single'
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters
)
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
