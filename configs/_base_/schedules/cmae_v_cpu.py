# As videomae_cpu.py, with a target.
_base_ = './videomae_cpu.py'
custom_hooks = [
    # Not 0.996: in a short run the target must forget the random start soon.
    dict(type='videomac_mm.TargetEMAHook', momentum=0.95, end_momentum=0.95),
    *_base_.custom_hooks,
]
