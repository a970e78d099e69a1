_base_ = [
    '../_base_/models/videomae_vit_base.py',
    '../_base_/datasets/k400_clips_224.py',
    '../_base_/schedules/videomae_1600e.py',
]
