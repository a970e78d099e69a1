# 32 GPUs, as the official script says; its command line has 64.
_base_ = [
    '../_base_/models/videomae_vit_small.py',
    '../_base_/datasets/ssv2_clips_224.py',
    '../_base_/schedules/videomae_2400e.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 1024 / 256))
auto_scale_lr = dict(base_batch_size=1024)
