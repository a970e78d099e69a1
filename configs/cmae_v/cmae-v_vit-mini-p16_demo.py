# Two CPU cores, a few minutes, no download: generated videos of moving shapes.
_base_ = [
    '../_base_/models/cmae_v_vit_mini.py',
    '../_base_/datasets/synthetic_clips.py',
    '../_base_/schedules/cmae_v_cpu.py',
]
model = dict(backbone=dict(img_size=96), neck=dict(num_patches=8 * 6 * 6))
train_dataloader = _base_.train_dataloader
train_dataloader.dataset.pipeline[0].max_shift = 4
