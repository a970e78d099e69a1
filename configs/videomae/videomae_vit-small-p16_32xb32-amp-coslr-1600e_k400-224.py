_base_ = [
    '../_base_/models/videomae_vit_small.py',
    '../_base_/datasets/k400_clips_224.py',
    '../_base_/schedules/videomae_1600e.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 1024 / 256))
auto_scale_lr = dict(base_batch_size=1024)
