# A few minutes on two CPU cores: small batches, counted in iterations.
optim_wrapper = dict(
    type='OptimWrapper',
    # Far above the paper's 1e-3 * batch / 256: a short run of a small network.
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    constructor='videomac_mm.GroupedOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=300),
]
train_cfg = dict(type='videomac_mm.IterBasedTrainLoop', max_iters=300)

custom_hooks = [
    # Not the paper's 0.996: in a short run the target must forget the random start soon.
    dict(type='videomac_mm.TargetEMAHook', momentum=0.95, end_momentum=1.0),
    dict(type='videomac_mm.ReconstructionHook', interval=100),
    dict(type='videomac_mm.CollapseHook', interval=20),
]
