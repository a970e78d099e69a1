# DAVIS-2017, 30 validation videos, as DINO reads them: short side 480, long side rounded
# down to a multiple of 64 (480 x 832), resized as uint8. Its data preprocessor divides the
# red channel by 58.14 (.228), not by the usual 58.395.
test_pipeline = [
    dict(type='videomac_mm.LoadFrame'),
    dict(type='videomac_mm.ResizeShortSide', size=480, divisor=64),
    dict(type='videomac_mm.PackFrame'),
]

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,  # set to False along with num_workers=0
    sampler=dict(type='videomac_mm.VideoSampler'),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='videomac_mm.DAVISDataset',
        data_root='data/davis2017',
        year=2017,
        pipeline=test_pipeline,
    ),
)
test_evaluator = dict(type='videomac_mm.DAVISMetric')
test_cfg = dict()
