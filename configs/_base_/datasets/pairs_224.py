# Pairs of frames out of video files, each pair cut by itself, as VideoMAC is pre-trained
# (arXiv 2402.19082).
_base_ = './unlabelled_clips.py'

train_pipeline = [
    dict(type='videomac_mm.OpenVideo'),
    # Files have any frame rate: the time between two stored frames of YouTube-VOS
    # (6 per second), the paper's data, rather than a number of frames.
    dict(type='videomac_mm.SampleFramePair', frame_interval=1 / 6, unit='seconds'),
    dict(type='videomac_mm.DecodeFrames'),
    dict(
        type='videomac_mm.ForEachClip',
        transforms=[
            dict(
                type='mmaction.RandomResizedCrop',
                area_range=(0.2, 1.0),
                aspect_ratio_range=(3 / 4, 4 / 3),
                lazy=True,
            ),
            dict(
                type='mmaction.Resize',
                scale=(224, 224),
                keep_ratio=False,
                interpolation='bicubic',
                lazy=True,
            ),
            dict(type='mmaction.Flip', flip_ratio=0.5, lazy=True),
            dict(type='videomac_mm.FuseCrops'),
        ],
    ),
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
