# Kinetics-400 as video files with mmaction2's annotation list.
_base_ = './clips_224.py'

train_dataloader = dict(
    dataset=dict(
        data_root='data/kinetics400',
        ann_file='kinetics400_train_list_videos.txt',
        data_prefix='videos_train',
    ),
)
