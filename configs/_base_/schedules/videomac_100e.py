# 100 epochs of AdamW with 10 epochs of warm-up, as the paper (arXiv 2402.19082).
optim_wrapper = dict(
    type='OptimWrapper',
    # base * total_batch / 256
    optimizer=dict(
        type='AdamW', lr=1e-3 * 512 / 256, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    ),
    constructor='videomac_mm.GroupedOptimWrapperConstructor',
    # No decay of biases and LayerNorms. GRN's two vectors decay, as in the official code.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=90, begin=10, end=100, convert_to_iter_based=True),
]
train_cfg = dict(type='videomac_mm.EpochBasedTrainLoop', max_epochs=100)

custom_hooks = [
    dict(type='videomac_mm.TargetEMAHook', momentum=0.996, end_momentum=1.0),
    dict(type='videomac_mm.ReconstructionHook', interval=1000),
    dict(type='videomac_mm.CollapseHook', interval=50),
]
auto_scale_lr = dict(base_batch_size=512)
