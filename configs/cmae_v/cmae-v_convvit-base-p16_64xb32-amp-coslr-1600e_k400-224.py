_base_ = [
    '../_base_/models/cmae_v_convvit_base.py',
    '../_base_/datasets/k400_shifted_clips_224.py',
    '../_base_/schedules/cmae_v_1600e.py',
]
