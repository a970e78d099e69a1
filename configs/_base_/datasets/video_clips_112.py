# As video_clips_224.py, in half the size and half the length: for CPUs.
_base_ = './video_clips_224.py'

train_dataloader = _base_.train_dataloader
train_dataloader.dataset.pipeline[1].clip_len = 8
train_dataloader.dataset.pipeline[3].input_size = 112
train_dataloader.dataset.pipeline[4].scale = (112, 112)
