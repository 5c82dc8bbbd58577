"""Networks that can be adapted, and batch norm with explicit modes."""

from gradshare.models.batch_norm import BatchNorm2d, BatchNormMode
from gradshare.models.conv4 import Conv4
from gradshare.models.conv_block import ConvBlock
from gradshare.models.drop_block import DropBlock
from gradshare.models.layers import accelerate
from gradshare.models.mlp import MLP
from gradshare.models.resnet12 import ResNet12
from gradshare.models.weights import freeze

__all__ = [
    "MLP",
    "BatchNorm2d",
    "BatchNormMode",
    "Conv4",
    "ConvBlock",
    "DropBlock",
    "ResNet12",
    "accelerate",
    "freeze",
]
