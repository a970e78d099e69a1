# As the official ConvNeXt V2 code (arXiv 2301.00808): neither Mixup nor CutMix, no warm-up.
_base_ = '../../_base_/fine_tuning/classification_convnext.py'
model = dict(
    backbone=dict(arch='atto', drop_path_rate=0.1),
    head=dict(in_channels=320, loss=dict(label_smooth_val=0.2)),
    train_cfg=None,
)
optim_wrapper = dict(optimizer=dict(lr=2e-4 * 1024 / 256, weight_decay=0.3))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / (2e-4 * 1024 / 256),
        end=600,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=600)
