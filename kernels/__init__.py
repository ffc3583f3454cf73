"""The numerical core as plain JAX functions; nothing here imports anything but JAX."""
