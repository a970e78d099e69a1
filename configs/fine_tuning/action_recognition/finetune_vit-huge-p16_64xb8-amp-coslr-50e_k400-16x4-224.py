# As VideoMAE's code (arXiv 2203.12602).
_base_ = [
    '../../_base_/fine_tuning/recognition_video_vit.py',
    '../../_base_/fine_tuning/recognition_k400.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(embed_dims=1280, depth=32, num_heads=16, drop_path_rate=0.2, with_cp=True),
    cls_head=dict(num_classes=_base_.num_classes, in_channels=1280, dropout_ratio=0.5),
)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3 * 512 / 256),
    paramwise_cfg=dict(num_layers=32),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=50, eta_min_ratio=1e-5 / 1e-3),
]
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=512)
