_base_ = [
    '../../_base_/fine_tuning/recognition_2d_convnext.py',
    '../../_base_/fine_tuning/recognition_2d_ucf101.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    cls_head=dict(num_classes=_base_.num_classes),
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 128 / 256))
auto_scale_lr = dict(base_batch_size=128)
