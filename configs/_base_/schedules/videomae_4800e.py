_base_ = './videomae_3200e.py'
train_cfg = dict(max_epochs=4800)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=4800, T_max=4760),
]
