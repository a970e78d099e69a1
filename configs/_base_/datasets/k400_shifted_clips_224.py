# Kinetics-400 for CMAE-V: a second clip starts up to two steps of a clip later (ours: no
# source names the largest shift). Both are cut alike.
_base_ = './k400_clips_224.py'

train_dataloader = _base_.train_dataloader
train_dataloader.dataset.pipeline[1].max_shift = 2 * 4
