# Ours: VideoMAE's code has no recipe; that of its ViT-B.
_base_ = [
    '../../_base_/fine_tuning/recognition_video_vit.py',
    '../../_base_/fine_tuning/recognition_ssv2.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(embed_dims=1024, depth=24, num_heads=16, with_cp=True),
    cls_head=dict(num_classes=_base_.num_classes, in_channels=1024),
)
train_dataloader = dict(batch_size=6)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 384 / 256),
    paramwise_cfg=dict(num_layers=24),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=30, eta_min_ratio=1e-6 / 5e-4),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=384)
