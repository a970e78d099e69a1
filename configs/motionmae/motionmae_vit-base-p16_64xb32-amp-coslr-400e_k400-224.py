# Ours: batch size, learning rate and warm-up, which are those of VideoMAE.
_base_ = [
    '../_base_/models/motionmae_vit_base.py',
    '../_base_/datasets/k400_clips_224.py',
    '../_base_/schedules/videomae_400e.py',
]
