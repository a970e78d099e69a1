# As VideoMAE's code (arXiv 2203.12602).
_base_ = [
    '../../_base_/fine_tuning/recognition_video_vit.py',
    '../../_base_/fine_tuning/recognition_k400.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(embed_dims=1024, depth=24, num_heads=16),
    cls_head=dict(num_classes=_base_.num_classes, in_channels=1024),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3 * 128 / 256),
    paramwise_cfg=dict(num_layers=24),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=35, eta_min_ratio=1e-6 / 2e-3),
]
train_cfg = dict(max_epochs=35)
auto_scale_lr = dict(base_batch_size=128)
