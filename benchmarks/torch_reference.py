"""The GCU network in plain PyTorch, as one would write it: the reference that is timed against.

It starts from the unfolded tensors of a checkpoint and lets PyTorch fold the batch normalisation,
so that it also tells whether this package's own network is right.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

DILATIONS = (1, 2, 4, 8, 16) * 3
BN_EPSILON = 1e-8


def _normalised_convolution(
    tensors: Mapping[str, np.ndarray], name: str, dilation: int = 1
) -> nn.Conv1d:
    """A convolution with its batch normalisation folded in."""

    def tensor(part: str) -> torch.Tensor:
        return torch.tensor(tensors[f"{name}/{part}"])

    kernel = tensor("W").reshape(-1, *tensors[f"{name}/W"].shape[-2:]).permute(2, 1, 0)
    channels, inputs, taps = kernel.shape
    convolution = nn.Conv1d(
        inputs, channels, taps, padding="same", dilation=dilation, bias=False, dtype=torch.float64
    )
    norm = nn.BatchNorm1d(channels, eps=BN_EPSILON, dtype=torch.float64)
    with torch.no_grad():
        convolution.weight.copy_(kernel)
        norm.weight.copy_(tensor("gamma"))
        norm.bias.copy_(tensor("beta"))
        norm.running_mean.copy_(tensor("mean"))
        norm.running_var.copy_(tensor("variance"))
    return fuse_conv_bn_eval(convolution.eval(), norm.eval()).float()


def _side_by_side(first: nn.Conv1d, second: nn.Conv1d) -> nn.Conv1d:
    """One convolution that makes the outputs of both: faster than two."""
    channels = first.out_channels + second.out_channels
    both = nn.Conv1d(
        first.in_channels, channels, first.kernel_size, padding="same", dilation=first.dilation
    )
    with torch.no_grad():
        both.weight.copy_(torch.cat([first.weight, second.weight]))
        both.bias.copy_(torch.cat([first.bias, second.bias]))
    return both


class GCUBlock(nn.Module):
    """One block of gated convolutional units."""

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str, dilation: int) -> None:
        super().__init__()
        self.gated = _side_by_side(
            _normalised_convolution(tensors, f"{name}/conv_filter", dilation),
            _normalised_convolution(tensors, f"{name}/conv_gate", dilation),
        )
        self.out = _normalised_convolution(tensors, f"{name}/conv_out")

    def forward(
        self, z: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gated activation and new residual stream, each (utterance, unit, frame)."""
        filters, gates = self.gated(z).chunk(2, dim=1)
        gate = torch.tanh(filters) * torch.sigmoid(gates)
        z = z + torch.tanh(self.out(gate))
        return gate, z if mask is None else z * mask


class GCUNetwork(nn.Module):
    """Front convolution and 15 blocks; the character logits are nobody's feature and left out."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take the weights from checkpoint tensors, as in `featurestore.weights.Weights`."""
        super().__init__()
        self.front = _normalised_convolution(tensors, "front/conv_in")
        self.blocks = nn.ModuleList(
            GCUBlock(tensors, f"block_{layer // 5}_{dilation}", dilation)
            for layer, dilation in enumerate(DILATIONS)
        )

    def forward(
        self, coefficients: torch.Tensor, n_frames: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate activations of all layers and their statistics.

        Args:
            coefficients: MFCC (utterance, frame, 20).
            n_frames: frames of each utterance in a padded batch; None if nothing is padding.

        Returns:
            Gates (utterance, layer, unit, frame), in PyTorch's own order of axes, and mean,
            standard deviation, minimum and maximum over frames (4, utterance, layer, unit).
        """
        valid = mask = None
        if n_frames is not None:
            frames = torch.arange(coefficients.shape[1], device=coefficients.device)
            valid = (frames < n_frames[:, None])[:, None]
            mask = valid.to(coefficients.dtype)
        z = torch.tanh(self.front(coefficients.transpose(1, 2)))
        z = z if mask is None else z * mask
        gates = []
        for block in self.blocks:
            gate, z = block(z, mask)
            gates.append(gate)
        stacked = torch.stack(gates, dim=1)
        return stacked, _statistics(stacked, None if valid is None else valid[:, None])


def _statistics(x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean, population standard deviation, minimum and maximum along the last axis."""
    if valid is None:
        return torch.stack([x.mean(-1), x.std(-1, correction=0), x.amin(-1), x.amax(-1)])
    count = valid.sum(-1)
    mean = torch.where(valid, x, 0.0).sum(-1) / count
    deviation = torch.where(valid, x - mean[..., None], 0.0)
    std = (deviation.square().sum(-1) / count).sqrt()
    low = torch.where(valid, x, torch.inf).amin(-1)
    high = torch.where(valid, x, -torch.inf).amax(-1)
    return torch.stack([mean, std, low, high])


class Reference:
    """The network on a device, NumPy arrays in and tensors out."""

    def __init__(self, tensors: Mapping[str, np.ndarray], *, device: str, threads: int) -> None:
        """Set PyTorch up for full single precision, as this package computes.

        Args:
            tensors: of a checkpoint.
            device: `cpu` or `cuda`.
            threads: that PyTorch uses on the CPU.
        """
        torch.set_num_threads(threads)
        if device == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        self.device = device
        self.network = GCUNetwork(tensors).eval().to(device)

    def __call__(
        self, coefficients: np.ndarray, n_frames: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`GCUNetwork.forward`, finished when it returns."""
        with torch.inference_mode():
            inputs = torch.from_numpy(coefficients).to(self.device)
            counts = None if n_frames is None else torch.from_numpy(n_frames).to(self.device)
            outputs = self.network(inputs, counts)
            if self.device == "cuda":
                torch.cuda.synchronize()
            return outputs

    def stored(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one utterance, MFCC (frame, 20): float16 gates and float32 statistics in memory."""
        gates, pooled = self(coefficients[None])
        return gates[0].half().cpu().numpy(), pooled[:, 0].cpu().numpy()
