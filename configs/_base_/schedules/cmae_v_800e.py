# As VideoMAE, since CMAE-V's report (arXiv 2301.06018) is not known to say otherwise; its target
# moves as that of CMAE for images.
_base_ = './videomae_800e.py'
custom_hooks = [
    dict(type='videomac_mm.TargetEMAHook', momentum=0.996, end_momentum=0.996),
    *_base_.custom_hooks,
]
