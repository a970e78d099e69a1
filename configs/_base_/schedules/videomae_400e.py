_base_ = './videomae_800e.py'
train_cfg = dict(max_epochs=400)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=400, T_max=360),
]
