# As VideoMAE's code (arXiv 2203.12602), for 800 epochs of pre-training: no repeated augmentation.
_base_ = [
    '../../_base_/fine_tuning/recognition_video_vit.py',
    '../../_base_/fine_tuning/recognition_ssv2.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    cls_head=dict(num_classes=_base_.num_classes),
)
train_dataloader = dict(batch_size=8, dataset=dict(num_repeats=1))
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 512 / 256))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=50, eta_min_ratio=1e-6 / 5e-4),
]
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=512)
