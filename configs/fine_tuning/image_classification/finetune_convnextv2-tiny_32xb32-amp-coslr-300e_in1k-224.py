# As the official ConvNeXt V2 code (arXiv 2301.00808).
_base_ = '../../_base_/fine_tuning/classification_convnext.py'
