# Clips of 16 frames out of video files, as VideoMAE is pre-trained (arXiv 2203.12602 and its code):
# no flip, no colour jitter. The official files of Kinetics are stored with a short edge of 320
# pixels; larger ones cost time and memory (a clip of 1080p half a second and 260 MB).
_base_ = './unlabelled_clips.py'

train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        pipeline=[
            dict(type='videomac_mm.OpenVideo'),
            dict(type='videomac_mm.SampleClips', clip_len=16, frame_interval=4),
            dict(type='videomac_mm.DecodeFrames'),
            # One box for all frames, of both clips where there are two.
            dict(
                type='mmaction.MultiScaleCrop',
                input_size=224,
                scales=(1, 0.875, 0.75, 0.66),
                max_wh_scale_gap=1,
                random_crop=False,
                num_fixed_crops=13,
            ),
            dict(type='mmaction.Resize', scale=(224, 224), keep_ratio=False),
            dict(type='mmaction.FormatShape', input_format='NCTHW'),
            dict(type='mmaction.PackActionInputs'),
        ],
    ),
)
