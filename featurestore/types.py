"""Names and literals that several modules share. Importing this module is free."""

from __future__ import annotations

from typing import Literal

CAPTURES: tuple[str, ...] = ("gate", "skip", "residual")  # of the GCU network

FrontEndVariant = Literal["librosa-0.5", "librosa", "vctk-decimate"]

NETWORK = "network"  # the encoder's view, whatever its kind
VIEWS: tuple[str, ...] = (NETWORK, "mfcc", "egemaps")
RESERVED_KINDS = VIEWS  # what an encoder cannot call its views

Statistic = Literal["mean", "std", "min", "max"]
STATISTICS: tuple[Statistic, ...] = ("mean", "std", "min", "max")

FrameDtype = Literal["float16", "float32", "int8"]

SAMPLE_RATE = 16_000  # Hz; everything the network hears
HOP_LENGTH = 512  # samples; 32 ms at 16 kHz
FRAME_PERIOD_S = HOP_LENGTH / SAMPLE_RATE

LAYERS = 15
UNITS = 128
CLASSES = 28
COEFFICIENTS = 20

# Of a network's matrix products: float32 factors, with fewer multiplications, or 16-bit factors.
Arithmetic = Literal["float32", "winograd", "float16", "bfloat16"]
# What an ingest may ask for: the original's arithmetic, the fastest here, or one by name.
PRECISIONS = ("parity", "fast", "float32", "winograd", "float16", "bfloat16")
