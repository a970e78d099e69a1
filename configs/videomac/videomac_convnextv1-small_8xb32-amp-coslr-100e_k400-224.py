_base_ = [
    '../_base_/models/videomac_convnext.py',
    '../_base_/datasets/k400_pairs_224.py',
    '../_base_/schedules/videomac_100e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(arch='small', use_grn=False),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(lr=1e-3 * 256 / 256),
)
auto_scale_lr = dict(base_batch_size=256)
