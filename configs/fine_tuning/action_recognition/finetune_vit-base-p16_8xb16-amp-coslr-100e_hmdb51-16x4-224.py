# Ours: VideoMAE's code has no recipe; that of UCF101.
_base_ = [
    '../../_base_/fine_tuning/recognition_video_vit.py',
    '../../_base_/fine_tuning/recognition_hmdb51.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(drop_path_rate=0.2, with_cp=True),
    cls_head=dict(num_classes=_base_.num_classes, dropout_ratio=0.5),
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 128 / 256),
    paramwise_cfg=dict(decay_rate=0.7),
)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=100, eta_min_ratio=1e-5 / 5e-4),
]
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=128)
