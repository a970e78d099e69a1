_base_ = [
    '../../_base_/fine_tuning/recognition_2d_resnet.py',
    '../../_base_/fine_tuning/recognition_2d_k400.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    cls_head=dict(num_classes=_base_.num_classes),
)
train_dataloader = dict(batch_size=32)
