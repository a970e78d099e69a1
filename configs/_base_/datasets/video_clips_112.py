# As video_clips_224.py, at half the size: for CPUs.
_base_ = './video_clips_224.py'

train_dataloader = _base_.train_dataloader
train_dataloader.batch_size = 8
train_dataloader.dataset.pipeline[3].input_size = 112
train_dataloader.dataset.pipeline[4].scale = (112, 112)
