# 3200 epochs, as VideoMAE on UCF101: small batches, twice the base learning rate, the same end.
_base_ = './videomae_800e.py'
optim_wrapper = dict(optimizer=dict(lr=3e-4 * 192 / 256))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=3200, T_max=3160, eta_min_ratio=1e-5 / 3e-4),
]
train_cfg = dict(max_epochs=3200)
default_hooks = dict(checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=192)
