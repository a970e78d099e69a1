default_scope = 'videomac_mm'

# Needed when the config runs under another codebase's tools (`mim train mmaction2 CONFIG`).
custom_imports = dict(imports=['videomac_mm'], allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='videomac_mm.CheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # A loss or a gradient that is inf or NaN never reaches the weights.
    non_finite=dict(type='videomac_mm.NonFiniteHook'),
    # What cannot be read is counted over all processes, and reported.
    data_faults=dict(type='videomac_mm.DataFaultsHook'),
    # BatchNorm's statistics differ from rank to rank, and one rank writes the checkpoint.
    sync_buffers=dict(type='SyncBuffersHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),  # gloo where there is no GPU
)

log_level = 'INFO'
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])

# Each rank its own seed: masks are drawn on the model's side and must differ between ranks.
randomness = dict(seed=0, diff_rank_seed=True)

load_from = None
resume = False
