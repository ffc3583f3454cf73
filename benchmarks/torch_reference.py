"""The GCU network in PyTorch: as a paper's supplement would have it, and as fast as it gets.

Both start from the unfolded tensors of a checkpoint and share no line with this package's own
network, so that they also tell whether that is right.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

DILATIONS = (1, 2, 4, 8, 16) * 3
BN_EPSILON = 1e-8


def convolution_and_norm(
    tensors: Mapping[str, np.ndarray], name: str, dilation: int = 1
) -> tuple[nn.Conv1d, nn.BatchNorm1d]:
    """A convolution and its batch normalisation as they were trained, in float64."""

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
        # Buffers, which nn.Module declares as tensors or modules.
        norm.running_mean = tensor("mean").double()
        norm.running_var = tensor("variance").double()
    return convolution.eval(), norm.eval()


def _folded(tensors: Mapping[str, np.ndarray], name: str, dilation: int = 1) -> nn.Conv1d:
    return fuse_conv_bn_eval(*convolution_and_norm(tensors, name, dilation)).float()


class PlainBlock(nn.Module):
    """One block of gated convolutional units, written down as it is drawn."""

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str, dilation: int) -> None:
        super().__init__()
        self.filter, self.gate, self.out = (
            nn.Sequential(*convolution_and_norm(tensors, f"{name}/conv_{part}", step)).float()
            for part, step in (("filter", dilation), ("gate", dilation), ("out", 1))
        )

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gated activation and new residual stream, each (utterance, unit, frame)."""
        gated = torch.tanh(self.filter(z)) * torch.sigmoid(self.gate(z))
        return gated, z + torch.tanh(self.out(gated))


class PlainNetwork(nn.Module):
    """Front convolution and 15 blocks for one utterance at a time."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take the weights from checkpoint tensors, as in `featurestore.weights.Weights`."""
        super().__init__()
        self.front = nn.Sequential(*convolution_and_norm(tensors, "front/conv_in")).float()
        self.blocks = nn.ModuleList(
            PlainBlock(tensors, f"block_{layer // 5}_{dilation}", dilation)
            for layer, dilation in enumerate(DILATIONS)
        )

    def forward(self, coefficients: torch.Tensor) -> list[torch.Tensor]:
        """Gated activations (1, unit, frame) of each layer, from MFCC (1, frame, 20)."""
        z = torch.tanh(self.front(coefficients.transpose(1, 2)))
        gates = []
        for block in self.blocks:
            gated, z = block(z)
            gates.append(gated)
        return gates


def _side_by_side(first: nn.Conv1d, second: nn.Conv1d) -> nn.Conv1d:
    """One convolution that makes the outputs of both: faster than two."""
    channels = first.out_channels + second.out_channels
    both = nn.Conv1d(
        first.in_channels,
        channels,
        first.kernel_size[0],
        padding="same",
        dilation=first.dilation[0],
    )
    with torch.no_grad():
        both.weight.copy_(torch.cat([first.weight, second.weight]))
        assert first.bias is not None
        assert second.bias is not None
        assert both.bias is not None
        both.bias.copy_(torch.cat([first.bias, second.bias]))
    return both


class GCUBlock(nn.Module):
    """One block of gated convolutional units."""

    def __init__(self, tensors: Mapping[str, np.ndarray], name: str, dilation: int) -> None:
        super().__init__()
        self.gated = _side_by_side(
            _folded(tensors, f"{name}/conv_filter", dilation),
            _folded(tensors, f"{name}/conv_gate", dilation),
        )
        self.out = _folded(tensors, f"{name}/conv_out")

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
        self.front = _folded(tensors, "front/conv_in")
        self.blocks = nn.ModuleList(
            GCUBlock(tensors, f"block_{layer // 5}_{dilation}", dilation)
            for layer, dilation in enumerate(DILATIONS)
        )

    def forward(
        self, coefficients: torch.Tensor, n_frames: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Statistics of the gate activations of all layers.

        Args:
            coefficients: MFCC (utterance, frame, 20).
            n_frames: frames of each utterance in a padded batch; None if nothing is padding.

        Returns:
            Mean, standard deviation, minimum and maximum over frames (4, utterance, layer, unit).
        """
        return torch.stack([statistics for _, statistics in self.layers(coefficients, n_frames)], 2)

    def layers(
        self, coefficients: torch.Tensor, n_frames: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Gate activations (utterance, unit, frame) and statistics (4, utterance, unit) of each."""
        valid = mask = None
        if n_frames is not None:
            frames = torch.arange(coefficients.shape[1], device=coefficients.device)
            valid = (frames < n_frames[:, None])[:, None]
            mask = valid.to(coefficients.dtype)
        z = torch.tanh(self.front(coefficients.transpose(1, 2)))
        z = z if mask is None else z * mask
        found = []
        for block in self.blocks:
            gate, z = block(z, mask)
            found.append((gate, statistics(gate, valid)))
        return found


def statistics(x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
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
    """The fast network on a device, NumPy arrays in and tensors out."""

    def __init__(
        self, tensors: Mapping[str, np.ndarray], *, device: str, threads: int | None = None
    ) -> None:
        """Set PyTorch up for full single precision, as this package computes.

        Args:
            tensors: of a checkpoint.
            device: `cpu` or `cuda`.
            threads: that PyTorch uses on the CPU; its own choice by default.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if device == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        self.device = device
        self.network = GCUNetwork(tensors).eval().to(device)

    def __call__(
        self, coefficients: np.ndarray, n_frames: np.ndarray | None = None
    ) -> torch.Tensor:
        """`GCUNetwork.forward`, finished when it returns."""
        with torch.inference_mode():
            outputs: torch.Tensor = self.network(*self._inputs(coefficients, n_frames))
            if self.device == "cuda":
                torch.cuda.synchronize()
            return outputs

    def frames(self, coefficients: np.ndarray, n_frames: np.ndarray | None = None) -> np.ndarray:
        """Gate activations (utterance, layer, frame, unit)."""
        with torch.inference_mode():
            found = self.network.layers(*self._inputs(coefficients, n_frames))
            return torch.stack([gate for gate, _ in found], 1).transpose(2, 3).cpu().numpy()

    def _inputs(
        self, coefficients: np.ndarray, n_frames: np.ndarray | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        counts = None if n_frames is None else torch.from_numpy(n_frames).to(self.device)
        return torch.from_numpy(coefficients).to(self.device), counts
