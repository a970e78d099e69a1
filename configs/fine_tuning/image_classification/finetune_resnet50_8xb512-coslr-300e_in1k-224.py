# As the official SparK code (arXiv 2301.03580), with VideoMAC's ResNet-50.
_base_ = '../../_base_/fine_tuning/classification_resnet.py'
