# Fine-tuning of VideoMAC's ConvNeXt V2-S as a Temporal Segment Network (arXiv 1608.00859): frames
# are classified one by one, and their scores averaged. The recipe is ours, for there is none.
model = dict(
    type='mmaction.Recognizer2D',
    backbone=dict(
        type='videomac_mm.SparseConvNeXt',
        arch='small',
        use_grn=True,
        layer_scale_init_value=0.0,
        stage_norm='inline',
        drop_path_rate=0.2,
    ),
    cls_head=dict(
        type='mmaction.TSNHead',
        num_classes=400,
        in_channels=768,
        dropout_ratio=0.5,
        label_smooth_eps=0.1,
        average_clips='prob',
        # Written out, for the head's own default is found in the scope `mmaction` alone.
        loss_cls=dict(type='mmaction.CrossEntropyLoss'),
    ),
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    # base * total_batch / 256
    optimizer=dict(type='AdamW', lr=5e-4 * 256 / 256, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='videomac_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.75,
        layer_decay_type='group',
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=5, end=50, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=256)
