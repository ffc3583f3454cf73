"""Places that hold bytes under names: a folder, a bucket, and the Zarr arrays in them.

Everything that a store, a manifest or a recording is read from or written to goes through a
`Place`. Only this package knows whether that is a disk or an object store.
"""

from featurestore.storage.place import Place, as_place, is_url, split_file

__all__ = ["Place", "as_place", "is_url", "split_file"]
