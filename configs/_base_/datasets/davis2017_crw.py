# DAVIS-2017, 30 validation videos, as CRW reads them: frames of native size (480 x 854;
# its option cropSize -1).
test_pipeline = [
    dict(type='videomac_mm.LoadFrame'),
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
