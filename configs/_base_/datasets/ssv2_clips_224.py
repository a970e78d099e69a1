# Something-Something V2 as video files with mmaction2's annotation list.
_base_ = './clips_224.py'

train_dataloader = _base_.train_dataloader
train_dataloader.dataset.update(
    data_root='data/sthv2',
    ann_file='sthv2_train_list_videos.txt',
    data_prefix='videos',
)
# 12 frames per second, and short: every second frame (SampleClips).
train_dataloader.dataset.pipeline[1].frame_interval = 2
