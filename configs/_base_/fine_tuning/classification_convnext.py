# ImageNet-1k with ConvNeXt-V2-T as the official ConvNeXt V2 code fine-tunes it (arXiv 2301.00808).
# mmpretrain's data set base is that recipe: RandAugment m9-mstd0.5-inc1, erasing of pixels, 0.25.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['videomac_mm'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='videomac_mm.SparseConvNeXt',
        arch='tiny',
        use_grn=True,
        layer_scale_init_value=0.0,
        # VideoMAC's encoders have a norm after each stage, so the last one comes before the
        # pooling, not after it as in plain ConvNeXt.
        stage_norm='inline',
        drop_path_rate=0.2,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

train_dataloader = dict(batch_size=32, drop_last=True)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    # base * total_batch / 256
    optimizer=dict(type='AdamW', lr=8e-4 * 1024 / 256, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='videomac_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.9,
        layer_decay_type='single',
        # neither biases nor vectors decay
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
    ),
)
# By iteration, from 0, down to 1e-6 (times the share of the layer).
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, end=40, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / (8e-4 * 1024 / 256),
        begin=40,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# Validation is that of the averaged weights.
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
auto_scale_lr = dict(base_batch_size=1024)
