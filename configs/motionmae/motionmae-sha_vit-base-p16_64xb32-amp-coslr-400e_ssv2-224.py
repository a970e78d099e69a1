# Ours: batch size, learning rate and warm-up, which are those of VideoMAE.
# One decoder for pixels and motion ("Sha").
_base_ = [
    '../_base_/models/motionmae_vit_base.py',
    '../_base_/datasets/ssv2_clips_224.py',
    '../_base_/schedules/videomae_400e.py',
]
model = dict(neck=dict(shared=True))
