# Videos that are generated on the fly, with masks of objects as in DAVIS: no download, for
# demos and tests. Frames of native size, a multiple of 32.
_base_ = './label_propagation.py'

test_dataloader = dict(
    num_workers=0,  # drawing a frame takes milliseconds
    persistent_workers=False,
    dataset=dict(
        type='videomac_mm.SyntheticLabelDataset',
        form='masks',
        num_videos=4,
        num_frames=8,
        size=(128, 192),
        num_objects=3,
        pipeline=[dict(type='videomac_mm.PackFrame')],
    ),
)
test_evaluator = dict(type='videomac_mm.DAVISMetric')
