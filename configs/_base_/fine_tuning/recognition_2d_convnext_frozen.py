# As recognition_2d_convnext.py, with frozen features: the head alone learns. The recipe is ours.
_base_ = './recognition_2d_convnext.py'

model = dict(
    backbone=dict(frozen_stages=4, drop_path_rate=0.0),
    cls_head=dict(dropout_ratio=0.0),
)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    # base * total_batch / 256
    optimizer=dict(type='AdamW', lr=1e-3 * 256 / 256, betas=(0.9, 0.999), weight_decay=0.0),
)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=30)]
train_cfg = dict(max_epochs=30)
