# Who does what where: AVA 2.2 with a ViT-B of pre-training, or of fine-tuning on Kinetics. The
# recipe is that of mmaction2's configs/detection/videomae, there for AVA-Kinetics. Needs mmdet.
_base_ = '../../_base_/default_runtime.py'

model = dict(
    # The scope holds for everything inside, also where mmdet names parts of its own.
    type='FastRCNN',
    _scope_='mmdet',
    data_preprocessor=dict(
        type='mmaction.ActionDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        format_shape='NCTHW',
    ),
    backbone=dict(
        type='videomac_mm.VideoVisionTransformer',
        embed_dims=768,
        depth=12,
        num_heads=12,
        num_frames=16,
        drop_path_rate=0.2,
        use_mean_pooling=False,
        return_feat_map=True,
    ),
    roi_head=dict(
        type='AVARoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor3D',
            roi_layer_type='RoIAlign',
            output_size=8,
            with_temporal_pool=True,
        ),
        bbox_head=dict(
            type='BBoxHeadAVA',
            background_class=True,
            in_channels=768,
            num_classes=81,
            multilabel=True,
            dropout_ratio=0.5,
        ),
    ),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssignerAVA', pos_iou_thr=0.9, neg_iou_thr=0.9, min_pos_iou=0.9
            ),
            sampler=dict(
                type='RandomSampler',
                num=32,
                pos_fraction=1,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=1.0,
        ),
    ),
    test_cfg=dict(rcnn=None),
)

# Frames at 30 per second and FAIR's person boxes, as mmaction2 prepares them.
data_root = 'data/ava/rawframes'
anno_root = 'data/ava/annotations'
label_file = f'{anno_root}/ava_action_list_v2.2_for_activitynet_2019.pbtxt'
train_data = dict(
    type='mmaction.AVADataset',
    ann_file=f'{anno_root}/ava_train_v2.2.csv',
    exclude_file=f'{anno_root}/ava_train_excluded_timestamps_v2.2.csv',
    label_file=label_file,
    proposal_file=f'{anno_root}/ava_dense_proposals_train.FAIR.recall_93.9.pkl',
    data_prefix=dict(img=data_root),
)
val_data = dict(
    type='mmaction.AVADataset',
    ann_file=f'{anno_root}/ava_val_v2.2.csv',
    exclude_file=f'{anno_root}/ava_val_excluded_timestamps_v2.2.csv',
    label_file=label_file,
    proposal_file=f'{anno_root}/ava_dense_proposals_val.FAIR.recall_93.9.pkl',
    data_prefix=dict(img=data_root),
    test_mode=True,
)

train_pipeline = [
    dict(type='mmaction.SampleAVAFrames', clip_len=16, frame_interval=4),
    dict(type='mmaction.RawFrameDecode'),
    dict(type='mmaction.RandomRescale', scale_range=(256, 320)),
    dict(type='mmaction.RandomCrop', size=256),
    dict(type='mmaction.Flip', flip_ratio=0.5),
    dict(type='mmaction.FormatShape', input_format='NCTHW', collapse=True),
    dict(type='mmaction.PackActionInputs'),
]
# Whole frames.
val_pipeline = [
    dict(type='mmaction.SampleAVAFrames', clip_len=16, frame_interval=4, test_mode=True),
    dict(type='mmaction.RawFrameDecode'),
    dict(type='mmaction.Resize', scale=(-1, 256)),
    dict(type='mmaction.FormatShape', input_format='NCTHW', collapse=True),
    dict(type='mmaction.PackActionInputs'),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,  # set to False along with num_workers=0
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(pipeline=train_pipeline, **train_data),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(pipeline=val_pipeline, **val_data),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='mmaction.AVAMetric',
    ann_file=val_data['ann_file'],
    label_file=label_file,
    exclude_file=val_data['exclude_file'],
)
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    # base * total_batch / 256
    optimizer=dict(type='AdamW', lr=5e-4 * 64 / 256, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmaction.LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_type='layer_wise', decay_rate=0.75, num_layers=12),
    clip_grad=dict(max_norm=40, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=5, end=20, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(base_batch_size=64)
