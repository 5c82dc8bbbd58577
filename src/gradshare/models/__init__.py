"""Networks that can be adapted, and batch norm with explicit modes."""

from gradshare.models.batch_norm import BatchNorm2d, BatchNormMode
from gradshare.models.conv4 import Conv4
from gradshare.models.conv_block import ConvBlock

__all__ = ["BatchNorm2d", "BatchNormMode", "Conv4", "ConvBlock"]
