# Action recognition with a ViT-B of pre-training, as VideoMAE's code does (arXiv 2203.12602): the
# mean of all tokens, a new norm, a new linear layer.
model = dict(
    type='mmaction.Recognizer3D',
    backbone=dict(
        type='videomac_mm.VideoVisionTransformer',
        embed_dims=768,
        depth=12,
        num_heads=12,
        num_frames=16,
        drop_path_rate=0.1,
        use_mean_pooling=True,
    ),
    cls_head=dict(
        type='mmaction.TimeSformerHead',
        num_classes=400,
        in_channels=768,
        init_std=2e-5,
        dropout_ratio=0.0,
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
    # base * total_batch / 256, where a repeated video counts once
    optimizer=dict(type='AdamW', lr=5e-4 * 384 / 256, betas=(0.9, 0.999), weight_decay=0.05),
    # Biases and vectors do not decay. num_layers is the depth of the transformer.
    constructor='mmaction.LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.75, num_layers=12),
)
# Warm-up from 0, then a cosine, by iteration; eta_min_ratio is min_lr over lr of VideoMAE's code,
# so that every layer ends at its own share.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 5e-4,
        begin=5,
        end=75,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=75, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=384)
