# As the official ConvNeXt V2 code (arXiv 2301.00808).
_base_ = '../../_base_/fine_tuning/classification_convnext.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.1),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(
    optimizer=dict(lr=6.25e-4 * 1024 / 256),
    paramwise_cfg=dict(layer_decay_rate=0.6, layer_decay_type='group'),
)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=20),
    dict(
        _base_.param_scheduler[1],
        eta_min_ratio=1e-6 / (6.25e-4 * 1024 / 256),
        begin=20,
        end=100,
    ),
]
train_cfg = dict(max_epochs=100)
