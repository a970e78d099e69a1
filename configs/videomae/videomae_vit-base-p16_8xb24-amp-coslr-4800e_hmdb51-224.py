# Ours: no script was published. The recipe of UCF101, for longer.
_base_ = [
    '../_base_/models/videomae_vit_base.py',
    '../_base_/datasets/hmdb51_clips_224.py',
    '../_base_/schedules/videomae_4800e.py',
]
model = dict(mask_generator=dict(mask_ratio=0.75))
