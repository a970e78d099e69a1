_base_ = [
    '../../_base_/fine_tuning/recognition_2d_resnet_shifted.py',
    '../../_base_/fine_tuning/recognition_2d_k400.py',
    '../../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    cls_head=dict(num_classes=_base_.num_classes),
)
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=_base_.shifted_train))
test_dataloader = dict(dataset=dict(pipeline=_base_.shifted_test))
