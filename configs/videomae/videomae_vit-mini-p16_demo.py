# Two CPU cores, a few minutes, no download: generated videos of moving shapes.
_base_ = [
    '../_base_/models/videomae_vit_mini.py',
    '../_base_/datasets/synthetic_clips.py',
    '../_base_/schedules/videomae_cpu.py',
]
model = dict(backbone=dict(img_size=96), neck=dict(num_patches=8 * 6 * 6))
