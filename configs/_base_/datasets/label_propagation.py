# What the data sets of label propagation share: an item is a frame, a video stays in one process.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,  # set to False along with num_workers=0
    sampler=dict(type='videomac_mm.VideoSampler'),
    collate_fn=dict(type='pseudo_collate'),
)
test_cfg = dict()
