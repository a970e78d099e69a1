# The standard network up to its third stage.
backbone = dict(
    type='mmpretrain.ResNet',
    depth=50,
    num_stages=3,
    strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(2,),
)
