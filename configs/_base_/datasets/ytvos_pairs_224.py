# YouTube-VOS 2018, training set: every stored frame and its successor, as the paper.
_base_ = './pairs_224.py'

train_pipeline = [
    dict(type='videomac_mm.SampleFramePair', frame_interval=1),
    dict(type='videomac_mm.FrameFolderDecode'),
    *_base_.train_pipeline[3:],
]

train_dataloader = dict(
    dataset=dict(
        data_root='data/youtube-vos-2018/train',
        data_prefix='JPEGImages',
        source='frames',
        index_by='frame',
        pipeline=train_pipeline,
    ),
)
