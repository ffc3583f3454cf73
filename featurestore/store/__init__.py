"""The feature store on disk: plain Zarr v3 arrays, one immutable part after another."""
