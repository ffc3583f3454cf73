"""Files that are installed with the package: the default weights, their record and model card."""
