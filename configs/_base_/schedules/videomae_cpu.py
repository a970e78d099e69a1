# A few minutes on two CPU cores: small batches, counted in iterations.
_base_ = '../default_runtime.py'
optim_wrapper = dict(
    type='OptimWrapper',
    # Far above the paper's 1.5e-4 * batch / 256: a short run of a small network.
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True),
    constructor='videomac_mm.GroupedOptimWrapperConstructor',
    paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys=dict(mask_token=dict(decay_mult=0.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=1000),
]
train_cfg = dict(type='videomac_mm.IterBasedTrainLoop', max_iters=1000)
custom_hooks = [
    dict(type='videomac_mm.ReconstructionHook', interval=500),
    dict(type='videomac_mm.CollapseHook', interval=20),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=500, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
