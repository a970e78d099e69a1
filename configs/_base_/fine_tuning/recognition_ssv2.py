# Something-Something V2 as mmaction2 prepares it. A clip spans the whole video, with one frame from
# each of 16 equal parts; there is no flip, for classes tell left from right.
_base_ = './recognition_k400.py'

num_classes = 174
data_preprocessor = dict(
    blending=dict(
        augments=[
            dict(type='mmaction.MixupBlending', alpha=0.8, num_classes=num_classes),
            dict(type='mmaction.CutmixBlending', alpha=1.0, num_classes=num_classes),
        ],
    ),
)

train_pipeline = [
    _base_.train_pipeline[0],
    dict(type='mmaction.UniformSample', clip_len=16),
    *[step for step in _base_.train_pipeline[2:] if step['type'] != 'mmaction.Flip'],
]
val_pipeline = [
    _base_.val_pipeline[0],
    dict(type='mmaction.UniformSample', clip_len=16, test_mode=True),
    *_base_.val_pipeline[2:],
]
# Two clips, three crops of each.
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='mmaction.UniformSample', clip_len=16, num_clips=2, test_mode=True),
    *_base_.test_pipeline[2:],
]

train_data = dict(
    data_root='data/sthv2',
    ann_file='sthv2_train_list_videos.txt',
    data_prefix=dict(video='videos'),
)
val_data = dict(
    data_root='data/sthv2',
    ann_file='sthv2_val_list_videos.txt',
    data_prefix=dict(video='videos'),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **train_data))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline, **val_data))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline, **val_data))
