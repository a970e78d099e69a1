# Ours: CMAE-V (arXiv 2301.06018) names no recipe; that of VideoMAE's ViT-B.
_base_ = [
    '../../_base_/fine_tuning/recognition_conv_vit.py',
    '../../_base_/fine_tuning/recognition_ssv2.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    cls_head=dict(num_classes=_base_.num_classes),
)
train_dataloader = dict(batch_size=6)
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 384 / 256))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=30, eta_min_ratio=1e-6 / 5e-4),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=384)
