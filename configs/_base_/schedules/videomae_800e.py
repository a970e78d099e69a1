# 800 epochs of AdamW with 40 epochs of warm-up, as VideoMAE (arXiv 2203.12602) on Kinetics-400.
_base_ = '../default_runtime.py'
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    # base * total_batch / 256
    optimizer=dict(
        type='AdamW', lr=1.5e-4 * 2048 / 256, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    ),
    constructor='videomac_mm.GroupedOptimWrapperConstructor',
    # No decay of vectors (biases, norms) and of the mask token.
    paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys=dict(mask_token=dict(decay_mult=0.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-12, end=40, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-5 / 1.5e-4,
        begin=40,
        end=800,
        T_max=760,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='videomac_mm.EpochBasedTrainLoop', max_epochs=800)
default_hooks = dict(checkpoint=dict(interval=20))
custom_hooks = [
    dict(type='videomac_mm.ReconstructionHook', interval=1000),
    dict(type='videomac_mm.CollapseHook', interval=100),
]
auto_scale_lr = dict(base_batch_size=2048)
