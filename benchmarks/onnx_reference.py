"""The GCU network as an ONNX graph, and ONNX Runtime to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

DILATIONS = (1, 2, 4, 8, 16) * 3
BN_EPSILON = 1e-8
OPSET, IR = 18, 10


def _folded(tensors: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (out, in, tap) and bias with the batch normalisation folded in."""
    w, beta, gamma, mean, variance = (
        tensors[f"{name}/{part}"].astype(np.float64)
        for part in ("W", "beta", "gamma", "mean", "variance")
    )
    scale = gamma / np.sqrt(variance + BN_EPSILON)
    kernel = (w.reshape(-1, *w.shape[-2:]) * scale).transpose(2, 1, 0)
    return kernel.astype(np.float32), (beta - mean * scale).astype(np.float32)


class _Graph:
    """Nodes and constants, named as they come."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operation: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"n{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(operation, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def convolution(self, x: str, kernel: np.ndarray, bias: np.ndarray, dilation: int = 1) -> str:
        side = dilation * (kernel.shape[-1] // 2)
        weights = self.constant(kernel), self.constant(bias)
        return str(self.add("Conv", x, *weights, dilations=[dilation], pads=[side, side]))

    def statistics(self, x: str, valid: str, mask: str, count: str) -> str:
        """(4, utterance, unit, 1) of (utterance, unit, frame)."""
        last, zero = self.constant([2], np.int64), self.constant([0], np.int64)
        mean = self.add("Div", self.add("ReduceSum", self.add("Mul", x, mask), last), count)
        off = self.add("Mul", self.add("Sub", x, mean), mask)
        variance = self.add("Div", self.add("ReduceSum", self.add("Mul", off, off), last), count)
        ends = [
            self.add(f"Reduce{name}", self.add("Where", valid, x, self.constant(fill)), last)
            for name, fill in (("Min", np.inf), ("Max", -np.inf))
        ]
        found = (mean, self.add("Sqrt", variance), *ends)
        return str(self.add("Concat", *(self.add("Unsqueeze", x, zero) for x in found), axis=0))


def network_graph(tensors: Mapping[str, np.ndarray]) -> Any:
    """A model of coefficients (utterance, frame, 20) and n_frames (utterance,).

    Its output is mean, standard deviation, minimum and maximum of the gated activations over each
    utterance's own frames (4, utterance, layer, unit).
    """
    g = _Graph()
    x = g.add("Transpose", "coefficients", perm=[0, 2, 1])
    frames = g.add("Gather", g.add("Shape", x), g.constant(2, np.int64), axis=0)
    time = g.add("Range", g.constant(0, np.int64), frames, g.constant(1, np.int64))
    axes = g.constant([1, 2], np.int64)
    counts = g.add("Unsqueeze", "n_frames", axes)
    valid = g.add("Less", time, counts)
    mask, count = (g.add("Cast", one, to=TensorProto.FLOAT) for one in (valid, counts))
    z = g.add("Mul", g.add("Tanh", g.convolution(x, *_folded(tensors, "front/conv_in"))), mask)
    layers = []
    for layer, dilation in enumerate(DILATIONS):
        name = f"block_{layer // 5}_{dilation}"
        both = [_folded(tensors, f"{name}/conv_{part}") for part in ("filter", "gate")]
        kernel, bias = (np.concatenate(parts) for parts in zip(*both, strict=True))
        convolved = g.convolution(z, kernel, bias, dilation)
        halves = g.add("Split", convolved, outputs=2, axis=1, num_outputs=2)
        gate = g.add("Mul", g.add("Tanh", halves[0]), g.add("Sigmoid", halves[1]))
        layers.append(g.statistics(gate, valid, mask, count))
        out = g.add("Tanh", g.convolution(gate, *_folded(tensors, f"{name}/conv_out")))
        z = g.add("Mul", g.add("Add", z, out), mask)
    side_by_side = g.add("Concat", *layers, axis=3)
    g.nodes.append(helper.make_node("Transpose", [side_by_side], ["statistics"], perm=[0, 1, 3, 2]))
    return _model(g)


def _model(g: _Graph) -> Any:
    values = helper.make_tensor_value_info
    inputs = [
        values("coefficients", TensorProto.FLOAT, ["utterance", "frame", 20]),
        values("n_frames", TensorProto.INT64, ["utterance"]),
    ]
    outputs = [values("statistics", TensorProto.FLOAT, [4, "utterance", len(DILATIONS), "unit"])]
    graph = helper.make_graph(g.nodes, "gcu", inputs, outputs, g.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR)


class OnnxReference:
    """The graph in ONNX Runtime on the CPU, NumPy arrays in and out."""

    def __init__(self, tensors: Mapping[str, np.ndarray], *, threads: int) -> None:
        model = network_graph(tensors)
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, coefficients: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
        """Statistics (4, utterance, layer, unit)."""
        inputs = {"coefficients": coefficients, "n_frames": n_frames.astype(np.int64)}
        return np.asarray(self._session.run(["statistics"], inputs)[0])
