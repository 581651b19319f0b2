"""What `rivals.Mlp` and `rivals.UNet` ask of PyTorch; images are (N, C, H, W)."""

from math import log

import torch
import torch.nn.functional as F


class Ops:
    """The operations by name."""

    silu, linear = staticmethod(F.silu), staticmethod(F.linear)

    @staticmethod
    def conv(x, weight, bias, stride: int):
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    @staticmethod
    def norm(x, groups: int, gain, bias):
        return F.group_norm(x, groups, gain, bias)

    @staticmethod
    def join(a, b):
        return torch.cat([a, b], dim=1)

    @staticmethod
    def double(x):
        return F.interpolate(x, scale_factor=2)

    @staticmethod
    def per_place(v):
        return v[:, :, None, None]

    @staticmethod
    def tokens(x):
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], 1, -1, x.shape[1])

    @staticmethod
    def image(tokens, like):
        n, c, height, width = like.shape
        return tokens.reshape(n, height, width, c).permute(0, 3, 1, 2)

    @staticmethod
    def attend(qkv):
        return F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))

    @staticmethod
    def waves(t, dims: int):
        half = dims // 2
        angle = t[:, None] * torch.exp((-log(1e4) / (half - 1)) * torch.arange(half))
        return torch.cat([angle.sin(), angle.cos()], dim=1)
