# Ours: VideoMAE's recipe, of which also the ratio of the mask.
_base_ = [
    '../_base_/models/motionmae_vit_base.py',
    '../_base_/datasets/ucf101_clips_224.py',
    '../_base_/schedules/videomae_3200e.py',
]
model = dict(mask_generator=dict(mask_ratio=0.75))
