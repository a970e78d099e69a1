# Something-Something V2 for 2D recognisers. There is no flip, for classes tell left from right:
# mmaction2 flips in training, exchanging labels, and its TSN flips in its ten test crops.
_base_ = ['./recognition_ssv2.py', './segments_1x1x8.py']

data_preprocessor = dict(format_shape='NCHW', blending=None)
train_dataloader = dict(
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        _delete_=True,
        type='mmaction.VideoDataset',
        pipeline=[step for step in _base_.shifted_train if step['type'] != 'mmaction.Flip'],
        **_base_.train_data,
    ),
)
val_dataloader = dict(dataset=dict(pipeline=_base_.segments_val))
test_dataloader = dict(dataset=dict(pipeline=_base_.directed_test))
