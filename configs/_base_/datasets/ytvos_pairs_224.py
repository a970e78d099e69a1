# YouTube-VOS 2018, training set: every stored frame and its successor, as the paper.
data_root = 'data/youtube-vos-2018/train'

data_preprocessor = dict(
    type='mmaction.ActionDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    format_shape='NCTHW',
)

train_pipeline = [
    dict(type='videomac_mm.SampleFramePair', frame_interval=1),
    dict(type='videomac_mm.FrameFolderDecode'),
    dict(
        type='videomac_mm.ForEachClip',
        transforms=[
            dict(
                type='mmaction.RandomResizedCrop',
                area_range=(0.2, 1.0),
                aspect_ratio_range=(3 / 4, 4 / 3),
            ),
            dict(
                type='mmaction.Resize',
                scale=(224, 224),
                keep_ratio=False,
                interpolation='bicubic',
            ),
            dict(type='mmaction.Flip', flip_ratio=0.5),
        ],
    ),
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,  # set to False along with num_workers=0
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    # Written out, for the train tool of mmpretrain would put its own in place.
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='videomac_mm.FramePairDataset',
        data_root=data_root,
        data_prefix='JPEGImages',
        source='frames',
        index_by='frame',
        pipeline=train_pipeline,
    ),
)
