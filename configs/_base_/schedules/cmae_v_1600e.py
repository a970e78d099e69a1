_base_ = './videomae_1600e.py'
custom_hooks = [
    dict(type='videomac_mm.TargetEMAHook', momentum=0.996, end_momentum=0.996),
    *_base_.custom_hooks,
]
