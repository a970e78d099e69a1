# As recognition_2d_resnet.py, with the shift of TSM (arXiv 1811.08383).
_base_ = './recognition_2d_resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='videomac_mm.TemporalShifted',
        backbone=_base_.model.backbone,
        num_segments=8,
    ),
    cls_head=dict(type='mmaction.TSMHead', num_segments=8),
)
optim_wrapper = dict(optimizer=dict(lr=5e-4 * 128 / 256))
auto_scale_lr = dict(base_batch_size=128)
