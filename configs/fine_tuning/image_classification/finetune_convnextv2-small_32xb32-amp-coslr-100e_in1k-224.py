# No recipe of ConvNeXt V2 names this size: that of V2-B (arXiv 2301.00808), which is as deep.
_base_ = '../../_base_/fine_tuning/classification_convnext.py'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1),
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
