# UCF101 for 2D recognisers.
_base_ = ['./recognition_ucf101.py', './segments_1x1x8.py']

data_preprocessor = dict(format_shape='NCHW', blending=None)
train_dataloader = dict(
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        _delete_=True,
        type='mmaction.VideoDataset',
        pipeline=_base_.segments_train,
        **_base_.train_data,
    ),
)
val_dataloader = dict(dataset=dict(pipeline=_base_.segments_val))
test_dataloader = dict(dataset=dict(pipeline=_base_.segments_test))
