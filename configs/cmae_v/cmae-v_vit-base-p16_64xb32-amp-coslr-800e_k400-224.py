_base_ = [
    '../_base_/models/cmae_v_vit_base.py',
    '../_base_/datasets/k400_shifted_clips_224.py',
    '../_base_/schedules/cmae_v_800e.py',
]
