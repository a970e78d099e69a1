# What 2D recognisers see of a video: one frame of each of 8 equal parts, as mmaction2's TSN
# (arXiv 1608.00859) and TSM (arXiv 1811.08383) do. Every frame of a video is treated alike.
open_and_sample = [
    dict(type='videomac_mm.OpenVideo'),
    dict(type='mmaction.SampleFrames', clip_len=1, frame_interval=1, num_clips=8),
    dict(type='videomac_mm.DecodeFrames'),
    dict(type='mmaction.Resize', scale=(-1, 256)),
]
open_and_sample_test = [
    open_and_sample[0],
    dict(open_and_sample[1], test_mode=True),
    *open_and_sample[2:],
]
pack = [
    dict(type='mmaction.FormatShape', input_format='NCHW'),
    dict(type='mmaction.PackActionInputs'),
]
multi_scale_crop = dict(
    type='mmaction.MultiScaleCrop',
    input_size=224,
    scales=(1, 0.875, 0.75, 0.66),
    random_crop=False,
    max_wh_scale_gap=1,
)

segments_train = [
    *open_and_sample,
    multi_scale_crop,
    dict(type='mmaction.Resize', scale=(224, 224), keep_ratio=False),
    dict(type='mmaction.Flip', flip_ratio=0.5),
    *pack,
]
segments_val = [
    *open_and_sample_test,
    dict(type='mmaction.CenterCrop', crop_size=224),
    *pack,
]
# Of TSN: 25 frames, ten crops of each.
segments_test = [
    open_and_sample[0],
    dict(open_and_sample_test[1], num_clips=25),
    *open_and_sample[2:],
    dict(type='mmaction.TenCrop', crop_size=224),
    *pack,
]

# Of TSM on Kinetics-400: crops from 13 places, and ten crops of the 8 frames.
shifted_train = [
    *open_and_sample,
    dict(multi_scale_crop, num_fixed_crops=13),
    *segments_train[5:],
]
shifted_test = [
    *open_and_sample_test,
    dict(type='mmaction.TenCrop', crop_size=224),
    *pack,
]
# Of TSM on Something-Something V2: twice 8 frames, three crops of the whole height.
directed_test = [
    open_and_sample[0],
    dict(open_and_sample_test[1], twice_sample=True),
    *open_and_sample[2:],
    dict(type='mmaction.ThreeCrop', crop_size=256),
    *pack,
]
