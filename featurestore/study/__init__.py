"""A whole study: from a manifest to a report, with everything that it was computed from."""
