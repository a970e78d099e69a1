# HMDB51 as video files with mmaction2's annotation list of the first split. There is no official
# script: batch size and interval are those of UCF101.
_base_ = './clips_224.py'

train_dataloader = dict(
    batch_size=24,
    dataset=dict(
        data_root='data/hmdb51',
        ann_file='hmdb51_train_split_1_videos.txt',
        data_prefix='videos',
    ),
)
