# As video_pairs_224.py, for a set of videos whose frames fit on the GPU (3 bytes a pixel): they are
# decoded once, stay there, and are cropped, resized and normalised there. Point both at yours:
#   --cfg-options train_dataloader.dataset.data_root=/path/to/videos
#   data_preprocessor.resident.data_root=/path/to/videos
_base_ = './video_pairs_224.py'

train_pipeline = [
    dict(type='videomac_mm.OpenResidentVideo'),
    *_base_.train_pipeline[1:4],
    dict(type='videomac_mm.PackCrops'),
]
train_pipeline[3].transforms = train_pipeline[3].transforms[:3]  # without FuseCrops

data_preprocessor = dict(
    type='videomac_mm.CropPreprocessor',
    interpolation='bicubic',
    resident=dict(
        type='videomac_mm.UnlabelledVideoDataset',
        data_root='data/videos',
        pipeline=[dict(type='videomac_mm.OpenVideo')],
    ),
    max_bytes=16 * 1024**3,
)

# Nothing is decoded while training: whole videos make a batch, their pairs are not spread.
train_dataloader = dict(
    batch_size=2,
    dataset=dict(spread_pairs=False, pipeline=train_pipeline),
)
