# UCF101 as video files with mmaction2's annotation list of the first split.
_base_ = './clips_224.py'

train_dataloader = dict(
    batch_size=24,
    dataset=dict(
        data_root='data/ucf101',
        ann_file='ucf101_train_split_1_videos.txt',
        data_prefix='videos',
    ),
)
