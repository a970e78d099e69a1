_base_ = [
    '../_base_/models/videomae_vit_base.py',
    '../_base_/datasets/ucf101_clips_224.py',
    '../_base_/schedules/videomae_3200e.py',
]
model = dict(mask_generator=dict(mask_ratio=0.75))
