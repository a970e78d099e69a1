# Kinetics-400 as video files with mmaction2's annotation list. The paper takes a
# 1/130 subset of its frames; ann_file may list any subset.
_base_ = './pairs_224.py'

train_dataloader = dict(
    dataset=dict(
        data_root='data/kinetics400',
        ann_file='kinetics400_train_list_videos.txt',
        data_prefix='videos_train',
    ),
)
